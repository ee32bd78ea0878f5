"""Image transformations: uint8 image in, uint8 image out, one seeded generator per image.

`transform` marks a user's own function as a transform (see `docs/transforms.md`).
"""

from robustcli.transforms.plugins import transform

__all__ = ["transform"]
