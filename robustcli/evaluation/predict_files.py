"""Which images get a mask, and where it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcli.core.errors import UsageError
from robustcli.data.listing import Entry, list_folder
from robustcli.data.tables import Say, unheard

OVERLAY = "_overlay"
_MASK = "_mask"  # how the LGG set names the true mask beside its image
_SHOWN = 3


@dataclass(frozen=True)
class Job:
    """One image, the file of its mask, and that of its overlay if one is wanted."""

    image: Path
    mask: Path
    overlay: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that is written for this image."""
        return (self.mask,) if self.overlay is None else (self.mask, self.overlay)


def list_jobs(
    images: Sequence[Path], out: Path, *, overlays: bool, say: Say = unheard
) -> tuple[Job, ...]:
    """The images in order, each with its outputs below `out`.

    An image of a folder keeps its path inside that folder, a single file its name; the mask has the
    image's stem. Folders are searched to any depth. Left out are what lies below `out`, true masks
    beside their images (`X_mask.tif` with `X.tif`) and the folder `masks` beside `images`; and, as
    everywhere, leftovers of other programs (`say` hears how many).

    Raises:
        UsageError: There is nothing there, or two outputs would be one file, or an output would be
            an image.
    """
    named = sorted(
        _named(images, out.resolve(), say), key=lambda one: (one[1].as_posix(), str(one[0]))
    )
    if not named:
        raise UsageError(
            f"There are no images in {' and '.join(f'`{path}`' for path in images)}.",
            "Expected a folder with image files (JPEG, PNG, TIFF, ...) or such files themselves.",
            "Check the path in `--data`.",
        )
    jobs = tuple(_job(path, out, relative, overlays=overlays) for path, relative in named)
    _check_outputs(jobs)
    return jobs


def _named(images: Sequence[Path], out: Path, say: Say) -> Iterator[tuple[Path, PurePosixPath]]:
    for path in images:
        if path.is_dir():
            listing = list_folder(path)
            for note in listing.notes(path):
                say(note)
            found = [entry for entry in listing.entries if not _is_below(entry.path, out)]
            names = {entry.relative for entry in found}
            kept = [entry for entry in found if not _is_true_mask(entry, names)]
            yield from ((entry.path, PurePosixPath(entry.relative)) for entry in kept)
        elif path.is_file():
            yield path, PurePosixPath(path.name)
        else:
            raise UsageError(
                f"There is nothing at `{path}`.",
                "Expected a folder of images, or an image.",
                "Check the path in `--data`.",
            )


def _is_below(path: Path, folder: Path) -> bool:
    return folder in path.resolve().parents


def _is_true_mask(entry: Entry, names: set[str]) -> bool:
    path = PurePosixPath(entry.relative)
    image = path.with_name(path.stem.removesuffix(_MASK) + path.suffix)
    beside = path.stem.endswith(_MASK) and str(image) in names
    return beside or (entry.folder == "masks" and any(n.startswith("images/") for n in names))


def _job(path: Path, out: Path, relative: PurePosixPath, *, overlays: bool) -> Job:
    folder = out / relative.parent
    overlay = folder / f"{relative.stem}{OVERLAY}.png" if overlays else None
    return Job(path, folder / f"{relative.stem}.png", overlay)


def _check_outputs(jobs: Sequence[Job]) -> None:
    owners: dict[Path, list[Path]] = defaultdict(list)
    for job in jobs:
        for output in job.outputs:
            owners[output].append(job.image)
    clashes = [(output, paths) for output, paths in owners.items() if len(paths) > 1]
    if clashes:
        output, paths = clashes[0]
        raise UsageError(
            f"{len(clashes)} files would be written for more than one image.",
            f"`{output}` belongs to {' and '.join(f'`{path}`' for path in paths[:_SHOWN])}.",
            "Put them into folders of their own, which are kept, or predict them in turn.",
        )
    images = {job.image.resolve() for job in jobs}
    over = [output for output in owners if output.resolve() in images]
    if over:
        raise UsageError(
            f"`{over[0]}` is an image that would be overwritten by its mask.",
            "`--out` is where the images are.",
            "Choose another folder with `--out`.",
        )
