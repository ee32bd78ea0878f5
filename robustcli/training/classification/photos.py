"""Photos as they are kept while they are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from robustcli.core.errors import RunError
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.index import ImageRef
from robustcli.training.batches.cache import Pixels


@dataclass(frozen=True)
class Photo:
    """One image: (H, W, 3), RGB."""

    image: Pixels

    @property
    def arrays(self) -> tuple[Pixels]:
        """The image."""
        return (self.image,)

    @classmethod
    def of(cls, *arrays: Pixels) -> Self:
        """The photo of `arrays`."""
        return cls(*arrays)


def decode_photo(ref: ImageRef) -> Photo:
    """The pixels of `ref`.

    Raises:
        RunError: The file cannot be decoded.
    """
    try:
        return Photo(decode(ref))
    except UnreadableImage as error:
        raise RunError(
            f"The image `{ref.image_id}` cannot be read.",
            f"{ref.path}: {error.reason}.",
            "Repair or remove the file, then repeat the command.",
        ) from error
