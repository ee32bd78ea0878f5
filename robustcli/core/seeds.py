"""Seeds from identities: equal identities get equal random numbers on every machine."""

from __future__ import annotations

import hashlib


def identity_seed(*identity: object, bits: int = 64) -> int:
    """A seed in `[0, 2**bits)` that depends only on `identity`.

    Args:
        identity: Identity of the random draw, outermost first: run seed, transform, severity,
            image id. Hashes the length and text of each part, so that `("a", "bc")` and
            `("ab", "c")` differ.
        bits: Width of the seed, 1 to 256.
    """
    digest = hashlib.sha256()
    for part in identity:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") % (1 << bits)
