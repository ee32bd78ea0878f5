"""Seeds from identities: the same thing gets the same randomness wherever and whenever it runs."""

from __future__ import annotations

import hashlib


def identity_seed(*identity: object, bits: int = 64) -> int:
    """A seed in `[0, 2**bits)` that depends on `identity` alone.

    Args:
        identity: What is being seeded, outermost first: run seed, transform, severity, image id.
            Each part counts by its `str`, with its length, so `("a", "bc")` is not `("ab", "c")`.
        bits: Width of the seed, 1 to 256.
    """
    digest = hashlib.sha256()
    for part in identity:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") % (1 << bits)
