"""How large an image is, by its file's header alone."""

from __future__ import annotations

import io

from PIL import Image

from robustcli.data.decode import FORMATS, UnreadableImage, read_bytes
from robustcli.data.index import ImageRef


def image_size(ref: ImageRef) -> tuple[int, int]:
    """Height and width in pixels, as `decode` would give them.

    Raises:
        UnreadableImage: The file is missing, or no image.
    """
    try:
        source = ref.path if ref.member is None else io.BytesIO(read_bytes(ref))
        with Image.open(source, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # Pillow's readers answer a corrupt file with almost any exception
        raise UnreadableImage(f"its size cannot be read: {error}") from error
