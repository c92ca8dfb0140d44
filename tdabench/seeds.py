"""Seeds: every random stream is named, and a stream depends on its name alone.

A seed is a hash of what it belongs to (task, purpose, number, epoch, ...). Nothing draws from a global generator, so
the order of the work, the grouping of replicas and the number of workers cannot change a result. Streams of ground
truth and of attribution models start with different words, so they have different seeds; a test looks for two of the
shipped tasks that torch, which uses 32 bits of a seed, would not tell apart.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


MOST_SEED = 2**53 - 1
"""The highest seed of a run: the page's script, like much that reads JSON, would round a higher one to another."""


def derive_seed(*name: str | int) -> int:
    """Return the seed of a named stream: 63 bits of the SHA-256 of its name."""
    text = json.dumps(name, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*name: str | int) -> torch.Generator:
    """Return a CPU generator seeded for a named stream; drawing on the CPU keeps streams equal on every device."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*name))
