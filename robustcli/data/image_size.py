"""How large an image is, by its file's header alone."""

from __future__ import annotations

import io

from robustcli.data.decode import UnreadableImage, read_bytes, read_image
from robustcli.data.index import ImageRef


def image_size(ref: ImageRef) -> tuple[int, int]:
    """Height and width in pixels, as `decode` would give them.

    Raises:
        UnreadableImage: The file is missing, or no image.
    """
    try:
        source = ref.path if ref.member is None else io.BytesIO(read_bytes(ref))
        return read_image(source, lambda image: (image.height, image.width))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableImage(f"its size cannot be read: {reason}") from error
    except UnreadableImage as error:
        raise UnreadableImage(f"its size cannot be read: {error.reason}") from error
