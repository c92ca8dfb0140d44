"""Room for the pieces of many examples, which come in batches: what is multiplied many at once is held here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tdabench.pieces import Piece, put, room_for


class Room:
    """Memory for the pieces of consecutive examples, written to again each time it is full.

    Fetching fresh memory costs more than filling it, and so does copying; sums are formed in their place.

    Parameters
    ----------
    n
        How many examples there are in all.
    most_bytes
        What may be held.
    """

    def __init__(self, n: int, most_bytes: int) -> None:
        self._n, self._most_bytes = n, most_bytes
        self._places: list[Piece] = []
        self._layer = self._filled = 0

    def place(self, piece: Piece) -> Piece:
        """Return a piece in the form whose dot products are cheap, written to its place if it has one.

        Parameters
        ----------
        piece
            The next of a batch, in the order of the first batch's.
        """
        if not self._places:
            return piece.compact()
        there = self._places[self._layer]
        self._layer = (self._layer + 1) % len(self._places)
        put(piece, there, self._filled)
        return there.part(slice(self._filled, self._filled + len(piece)))

    def filled(self, batches: Iterable[tuple[slice, list[Piece]]]) -> Iterator[tuple[slice, list[Piece]]]:
        """Yield the placed pieces of as many consecutive examples at once as may be held.

        They are good until the next are asked for.

        Parameters
        ----------
        batches
            Which examples and what :meth:`place` made of their pieces; none is longer than the first.
        """
        start = 0
        for rows, pieces in batches:
            size = rows.stop - rows.start
            if rows.start == 0:
                self._open(pieces, size)
            if not self._places:
                yield rows, pieces
                continue
            self._filled += size
            left = self._n - rows.stop
            if left == 0 or self._filled + min(size, left) > len(self._places[0]):
                yield slice(start, rows.stop), [piece.part(slice(self._filled)) for piece in self._places]
                start, self._filled = rows.stop, 0

    def _open(self, pieces: list[Piece], size: int) -> None:
        """Make room for pieces like those of the first batch, and put them there; not if it is all, or no two fit."""
        at_once = min(self._n, size * max(1, self._most_bytes // sum(piece.bytes for piece in pieces)))
        if at_once > size:
            self._places = [room_for(piece, at_once) for piece in pieces]
            for piece, there in zip(pieces, self._places, strict=True):
                put(piece, there, 0)
