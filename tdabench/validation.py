"""What is wrong with a file that was read, in words."""

from __future__ import annotations

from pydantic import ValidationError


def faults(error: ValidationError, *inside: str) -> list[str]:
    """Return each fault as ``place: what is wrong``; at least one.

    Parameters
    ----------
    inside
        Where in the file the value stands that was validated; nothing if it is the file.
    """
    found = error.errors(include_url=False)
    return [f"{'.'.join(map(str, (*inside, *fault['loc']))) or 'file'}: {fault['msg']}" for fault in found]
