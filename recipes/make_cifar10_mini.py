"""Makes `robustcli/assets/cifar10-mini.tar` from the test images of CIFAR-10.

    python recipes/make_cifar10_mini.py --source test.tar.gz

The source is a tar of JPEGs, `test/<class>/NNNN.jpg`. The same source results in the same bytes:
images are selected by (seed, id), their files are copied unchanged, and the tar contains no dates
or owners.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

from robustcli.core.io import write_bytes
from robustcli.data.sources import Classes, open_dataset
from robustcli.data.splits import take

# A tar has a header of 512 bytes per image and pads the image to a multiple of 512: 100 images per
# class would be 1.55 MB, above the limit of 1.5 MB for a bundled data set.
PER_CLASS = 96
SEED = 0
TARGET = Path(__file__).parents[1] / "robustcli" / "assets" / "cifar10-mini.tar"


def build(source: Path) -> bytes:
    """The tar of the selected images, `<class>/NNNN.jpg`, sorted by name."""
    index = open_dataset(str(source), Classes("cifar10", label_space="cifar10"))
    buffer = io.BytesIO()
    # Without the padding to 10,240 bytes that `tarfile` adds: two empty blocks end a tar.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image in take(index, per_class=PER_CLASS, limit=None, seed=SEED).samples:
            content = image.image.read()
            member = tarfile.TarInfo(image.image_id)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset + 2 * tarfile.BLOCKSIZE
    return buffer.getvalue()[:end]


def main() -> None:
    """Writes the asset and prints its size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="tar of the test images")
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    content = build(arguments.source)
    write_bytes(arguments.out, content)
    print(f"{arguments.out}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
