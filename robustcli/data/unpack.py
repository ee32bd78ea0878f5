"""From a downloaded archive to the tar of a data set, checked by what it holds."""

from __future__ import annotations

import tarfile
from pathlib import Path

from robustcli.core.atomic import replacing
from robustcli.core.errors import RunError, UsageError
from robustcli.data.datasets import Dataset
from robustcli.data.tar import decompress, list_tar


def unpack(dataset: Dataset, packed: Path, target: Path) -> None:
    """Makes the tar `target` from the downloaded `packed`, which is then removed.

    Raises:
        RunError: The download is damaged or not `dataset`; it is removed, so that the next fetch
            starts anew.
    """
    with replacing(target) as beside:
        try:
            decompress(packed, beside)
            images = len(list_tar(beside).entries)
        except (UsageError, tarfile.TarError) as error:
            raise _not_the_set(dataset, packed, f"it is damaged: {error}") from error
        if images != dataset.images:
            raise _not_the_set(dataset, packed, f"it holds {images} images")
    packed.unlink()


def _not_the_set(dataset: Dataset, packed: Path, found: str) -> RunError:
    packed.unlink(missing_ok=True)
    packed.with_name(packed.name + ".sha256").unlink(missing_ok=True)
    return RunError(
        f"What came from {dataset.url} is not `{dataset.name}`.",
        f"Expected an archive of {dataset.images} images, but {found}.",
        "Nothing was kept. Repeat the command, or fetch the data from its source by hand.",
    )
