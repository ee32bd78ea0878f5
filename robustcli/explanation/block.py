"""Explains one block of photos: targets, maps, their scores, and result rows.

Maps are scored by insertion and deletion curves, which need the network and are computed here. The
scores computed from the curves are pure functions in `metrics.explanation_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robustcli.adapters.memory import BatchLimit
from robustcli.core.errors import RunError
from robustcli.core.seeds import identity_seed
from robustcli.explanation.methods import ExplanationMethod
from robustcli.explanation.network import Attribution, ExplainedNetwork, batched
from robustcli.explanation.record import Arrays, TargetKind, cells_of
from robustcli.explanation.views import Places, View
from robustcli.metrics.explanation_scores import (
    centroid_shift,
    curve_area,
    map_correlation,
    pointing_hit,
)
from robustcli.transforms.base import CLEAN, Cell

_LEAST_SEEN = 0.02  # smallest share of pixels in both views for a comparison of maps
_SAME_MASK = 0.5  # smallest dice of two predicted masks that count as the same prediction


@dataclass(frozen=True)
class Answers:
    """The network's predictions for the photos of one view.

    Args:
        probabilities: Class probabilities (N, K) of a classifier, or foreground probabilities
            (N, H, W) of a segmenter.
        predictions: Classes (N,) of a classifier, or masks, bool (N, H, W), of a segmenter.
    """

    probabilities: Tensor
    predictions: Tensor


def answers_of(
    explained: ExplainedNetwork, view: View, limit: BatchLimit, *, batch_size: int,
    threshold: float = 0.5,
) -> Answers:  # fmt: skip
    """The predictions for the photos of `view`, on the CPU; computed in batches that fit memory."""

    def answered(ask: Callable[[Tensor], Tensor]) -> Tensor:
        def in_batches(size: int) -> Tensor:
            parts = batched(len(view.pixels), size)
            return torch.cat([ask(view.pixels[part].to(explained.device)).cpu() for part in parts])

        return limit.fitting(batch_size, in_batches, _size_in_words(view.pixels))

    with torch.no_grad():
        logits = answered(explained.logits)
    if explained.task == "cls":
        probabilities = explained.softmax(logits)
        return Answers(probabilities, probabilities.argmax(1))
    foreground = logits[:, 0].sigmoid()
    if explained.most_probable is None:
        return Answers(foreground, foreground >= threshold)
    with torch.no_grad():
        masks = answered(partial(explained.most_probable, explained.module))
    return Answers(foreground, masks)


def _size_in_words(pixels: Tensor) -> str:
    """Width and height of `pixels` (N, C, H, W), in words."""
    return f"{pixels.shape[3]}x{pixels.shape[2]} pixels"


@dataclass(frozen=True)
class Result:
    """One map with its scores; `picture` is set by methods that generate pictures."""

    relevance: NDArray[np.float32]
    scores: Mapping[str, float]
    picture: NDArray[np.uint8] | None = None


Key = tuple[object, ...]


@dataclass(frozen=True)
class MapRequest:
    """One row to compute, for a view of photo number `photo` and a kind of target.

    `cell` is that of the view, and `file_cell` that of the file with the row.
    """

    view: str
    cell: Cell
    photo: int
    kind: TargetKind
    key: Key
    file_cell: Cell


@dataclass
class BlockExplanation:
    """Explains the photos of one block.

    The maps of a method are computed in batches that depend only on the block and on all its cells,
    so that they have the same bytes whichever files were finished before, and whichever process
    computes them.

    Args:
        explained: The network.
        shuffled: The network with shuffled weights, for the sanity check; None for no check.
        views: The views of the block, by cell.
        answers: The predictions for the views, by cell.
        places: For each transform whose files are computed, if it moves pixels, and each photo: the
            position in the clean view of each pixel of the transformed view; see
            `views.moved_places`.
        regions: For the same cells and the clean one, the object region (h, w) of each photo; None
            if it is unknown.
        model: Name of the model.
        seed: Seed of the run.
        batch_size: Number of images per forward pass.
        limit: Reduces the batch size when memory runs out.
    """

    explained: ExplainedNetwork
    shuffled: ExplainedNetwork | None
    views: Mapping[Cell, View]
    answers: Mapping[Cell, Answers]
    places: Mapping[Cell, Sequence[Places | None]]
    regions: Mapping[Cell, Sequence[NDArray[np.bool_] | None]]
    model: str
    seed: int
    batch_size: int
    limit: BatchLimit
    _results: dict[Key, Result] = field(default_factory=dict)
    _batches: dict[str, list[list[MapRequest]]] = field(default_factory=dict)

    def explain(
        self, method: ExplanationMethod, cell: Cell, array_file: str, advance: Callable[[int], None]
    ) -> tuple[list[dict[str, object]], Arrays]:
        """The rows and arrays of one method and cell; reports computed rows to `advance`.

        Raises:
            RunError: A map is not finite, because the gradients of the network are not.
        """
        requests = self._requests(method, cell)
        self._compute(method, requests, advance)
        order = list(dict.fromkeys(request.key for request in requests))
        index = {key: number for number, key in enumerate(order)}
        results = [self._results[key] for key in order]
        shown = [CLEAN] if cell == CLEAN or method.kind == "model" else [CLEAN, cell]
        photos = [self.views[view_cell].photos for view_cell in shown]
        names = [sample.image_id for view_cell in shown for sample in self.views[view_cell].samples]
        count = len(self.views[CLEAN].samples)
        first = {view_cell: number * count for number, view_cell in enumerate(shown)}
        rows = [
            {
                **self._row(method, cell, request),
                "array_file": array_file,
                "array_index": index[request.key],
                "photo_index": first[request.cell] + request.photo,
            }
            for request in requests
        ]
        pictures = [result.picture for result in results if result.picture is not None]
        arrays = Arrays(
            np.stack([result.relevance for result in results]),
            np.concatenate(photos),
            tuple(names),
            tuple(
                "clean" if view_cell == CLEAN else "transformed"
                for view_cell in shown
                for _ in range(count)
            ),
            np.stack(pictures) if pictures else None,
        )
        return rows, arrays

    # Requests: the rows to compute, and their targets.

    def _requests(self, method: ExplanationMethod, cell: Cell) -> list[MapRequest]:
        views = [("clean", CLEAN)]
        if cell != CLEAN and method.kind != "model":
            views.append(("transformed", cell))
        kinds: tuple[TargetKind, ...] = ("true", "predicted") if method.targeted else ("none",)
        return [
            MapRequest(view, of, photo, kind, self._key(method, cell, of, photo, kind), cell)
            for photo in range(len(self.views[CLEAN].samples))
            for view, of in views
            for kind in kinds
        ]

    def _key(
        self, method: ExplanationMethod, cell: Cell, of: Cell, photo: int, kind: TargetKind
    ) -> Key:
        """Identifies a map: the method, the photo and its transform, and the target."""
        name = self.views[CLEAN].samples[photo].image_id
        place: Key = (of.transform, of.severity, name) if method.from_photo else ()
        target = self._class(cell, photo, kind) if self.explained.task == "cls" else kind
        return (method.name, *place, target)

    def _class(self, cell: Cell, photo: int, kind: TargetKind) -> int | None:
        """The explained class; kind `predicted` is the prediction for the transformed photo."""
        if kind == "true":
            return self.views[CLEAN].samples[photo].target
        if kind == "predicted":
            return int(self.answers[cell].predictions[photo])
        return None

    def _target(self, request: MapRequest) -> Tensor:
        """The target of `request`: a class (), or a mask (H, W) in its view.

        For methods without a target, the prediction for that view (of segmenters: all pixels),
        whose probability the insertion and deletion curves follow.
        """
        if self.explained.task == "cls":
            target = self._class(request.file_cell, request.photo, request.kind)
            answer = int(self.answers[request.cell].predictions[request.photo])
            return torch.tensor(answer if target is None else target)
        if request.kind == "none":
            return torch.ones(self.views[request.cell].photos.shape[1:3], dtype=torch.bool)
        return self._mask(request)

    def _mask(self, request: MapRequest) -> Tensor:
        masks = (
            self.views[request.cell].masks
            if request.kind == "true"
            else self.answers[request.cell].predictions
        )
        assert masks is not None, "segmenters have masks"
        return masks[request.photo]

    # Maps and their scores.

    def _batches_of(self, method: ExplanationMethod) -> list[list[MapRequest]]:
        """All maps of `method` in batches: first those of clean photos, shared by all cells."""
        if method.name not in self._batches:
            by_cell: dict[Cell, dict[Key, MapRequest]] = {CLEAN: {}}
            cells = cells_of(method, self.views)
            requests = [request for cell in cells for request in self._requests(method, cell)]
            for request in sorted(requests, key=lambda request: request.cell != CLEAN):
                if request.key not in by_cell[CLEAN]:
                    by_cell.setdefault(request.cell, {}).setdefault(request.key, request)
            size = self.batch_size
            self._batches[method.name] = [
                list(of_cell.values())[first : first + size]
                for of_cell in by_cell.values()
                for first in range(0, len(of_cell), size)
            ]
        return self._batches[method.name]

    def _compute(
        self, method: ExplanationMethod, requests: Sequence[MapRequest],
        advance: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Computes the batches with missing results."""
        missing = {request.key for request in requests if request.key not in self._results}
        batches = [
            batch
            for batch in self._batches_of(method)
            if any(request.key in missing for request in batch)
        ]
        total, shape = len(requests), _size_in_words(self.views[CLEAN].pixels)
        for number, batch in enumerate(batches):
            start = 0
            while start < len(batch):
                compute = partial(self._compute_part, method, batch[start:])
                start += self.limit.fitting(self.batch_size, compute, shape)
            advance(total * (number + 1) // len(batches) - total * number // len(batches))
        if not batches:
            advance(total)

    def _compute_part(
        self, method: ExplanationMethod, left: Sequence[MapRequest], batch_size: int
    ) -> int:
        """Adds the results of the first `batch_size` of `left`; returns their number."""
        new = {request.key: request for request in left[:batch_size]}
        device = self.explained.device
        pixels = torch.stack([self.views[w.cell].pixels[w.photo] for w in new.values()]).to(device)
        targets = torch.stack([self._target(request) for request in new.values()]).to(device)
        seeds = [identity_seed(self.seed, *key, bits=63) for key in new]
        function = method.function()
        made: Attribution = function(
            self.explained, pixels, targets, batch_size=batch_size, seeds=seeds
        )
        self._check_finite(method, made, list(new.values()))
        scores = [
            {name: float(values[number]) for name, values in made.checks.items()}
            for number in range(len(new))
        ]
        maps = made.maps.detach().float()
        if method.kind == "localised":
            self._add_curves(pixels, targets, maps, scores, batch_size)
            if self.shuffled is not None:
                shuffled_result: Attribution = function(
                    self.shuffled, pixels, targets, batch_size=batch_size, seeds=seeds
                )
                self._add_sanity(maps, shuffled_result.maps, scores)
        for number, key in enumerate(new):
            picture = None if made.pictures is None else made.pictures[number].cpu().numpy()
            self._results[key] = Result(maps[number].cpu().numpy(), scores[number], picture)
        return len(new)

    def _check_finite(
        self, method: ExplanationMethod, made: Attribution, requests: Sequence[MapRequest]
    ) -> None:
        for number, request in enumerate(requests):
            if not bool(torch.isfinite(made.maps[number]).all()):
                sample = self.views[CLEAN].samples[request.photo]
                raise RunError(
                    f"`{method.name}` of `{sample.image_id}` ({request.view}) is not a number.",
                    f"The gradients of `{self.model}` are not finite for this photo.",
                    "Use `--method occlusion`, which needs no gradients, or exclude the photo.",
                )

    def _add_curves(
        self, pixels: Tensor, targets: Tensor, maps: Tensor, scores: list[dict[str, float]],
        batch_size: int,
    ) -> None:  # fmt: skip
        # A constant map has no order of pixels, so it has no curves.
        varied = [number for number, values in enumerate(maps) if values.min() < values.max()]
        if not varied:
            return
        insertion, deletion = insertion_and_deletion(
            self.explained, pixels[varied], targets[varied], maps[varied], batch_size=batch_size
        )
        areas = (curve_area(curve.double().numpy()) for curve in (insertion, deletion))
        for number, inserted, deleted in zip(varied, *areas, strict=True):
            scores[number] |= {"insertion_auc": float(inserted), "deletion_auc": float(deleted)}

    @staticmethod
    def _add_sanity(maps: Tensor, shuffled_maps: Tensor, scores: list[dict[str, float]]) -> None:
        for number, row in enumerate(scores):
            same = map_correlation(
                maps[number].cpu().numpy(), shuffled_maps[number].detach().float().cpu().numpy()
            )
            if same is not None:
                row["sanity_similarity"] = same

    # Rows.

    def _row(self, method: ExplanationMethod, cell: Cell, request: MapRequest) -> dict[str, object]:
        sample = self.views[CLEAN].samples[request.photo]
        result = self._results[request.key]
        row: dict[str, object] = {
            "model": self.model,
            "image_id": sample.image_id,
            "method": method.name,
            "transform": cell.transform,
            "severity": cell.severity,
            "view": request.view,
            "target_kind": request.kind,
            "flipped": self._flipped(cell, request.photo),
            **self._target_columns(cell, request),
            **result.scores,
        }
        if method.kind != "localised":
            return row
        region = self.regions[request.cell][request.photo]
        if region is not None:
            row["pointing_hit"] = pointing_hit(result.relevance, region)
        if request.view == "transformed":
            row |= self._comparison(method, cell, request)
        return row

    def _target_columns(self, cell: Cell, request: MapRequest) -> dict[str, object]:
        answers, labels = self.answers[request.cell], self.explained.classes
        if self.explained.task == "seg":
            columns: dict[str, object] = {}
            if request.kind != "none":
                mask = self._mask(request)
                inside = answers.probabilities[request.photo][mask if bool(mask.any()) else ...]
                empty = "" if bool(mask.any()) else " (empty: the complete image)"
                columns = {
                    "target_label": f"{request.kind} mask{empty}",
                    "probability": float(inside.mean()),
                }
            return columns
        columns = {
            "prediction": int(answers.predictions[request.photo]),
            "true_class": self.views[CLEAN].samples[request.photo].target,
        }
        target = self._class(cell, request.photo, request.kind)
        if target is not None:
            columns |= {
                "target_class": target,
                "target_label": labels[target],
                "probability": float(answers.probabilities[request.photo, target]),
            }
        return columns

    def _flipped(self, cell: Cell, photo: int) -> bool | None:
        if cell == CLEAN:
            return None
        before, after = (self.answers[key].predictions[photo].numpy() for key in (CLEAN, cell))
        if self.explained.task == "cls":
            return bool(before != after)
        if before.shape != after.shape:
            return None
        before, known_pixels = self._moved(cell, photo, before)
        pixels = int(before.sum() + (after & known_pixels).sum())
        return pixels > 0 and 2 * int((before & after).sum()) / pixels < _SAME_MASK

    def _moved(
        self, cell: Cell, photo: int, clean: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The clean map or mask (H, W), moved by the transform, and a mask of its known pixels."""
        places = self.places[cell][photo] if cell in self.places else None
        if places is None:
            return clean, np.ones(clean.shape, bool)
        known_pixels = places >= 0
        moved = clean.reshape(-1)[np.maximum(places, 0)]
        return np.where(known_pixels, moved, np.zeros_like(moved)), known_pixels

    def _comparison(
        self, method: ExplanationMethod, cell: Cell, request: MapRequest
    ) -> dict[str, object]:
        """Compares the transformed map with the clean map after moving it by the transform."""
        clean_key = self._key(method, cell, CLEAN, request.photo, request.kind)
        clean, changed = (self._results[key].relevance for key in (clean_key, request.key))
        has_moved = cell in self.places and self.places[cell][request.photo] is not None
        clean, known_pixels = self._moved(cell, request.photo, clean)
        changed = np.where(known_pixels, changed, 0)
        if known_pixels.mean() < _LEAST_SEEN:
            return {"map_moved": has_moved}
        return {
            "map_moved": has_moved,
            "map_similarity": map_correlation(clean, changed, known_pixels),
            "centroid_shift": centroid_shift(clean, changed),
        }


# Faithfulness of maps: insertion and deletion curves.

CURVE_STEPS = 8
"""Number of steps of a curve; each step inserts or deletes one eighth of the pixels."""
BLUR = 10 / 224
"""Standard deviation of the blur at the start of insertion, as a share of the longer side."""


def insertion_and_deletion(
    explained: ExplainedNetwork, pixels: Tensor, targets: Tensor, maps: Tensor, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Insertion and deletion curves: two tensors (N, CURVE_STEPS + 1) of target probabilities.

    Insertion starts from the blurred photo and restores its pixels, those with the highest map
    values first. Deletion starts from the photo and replaces its pixels with the mean colour, in
    the same order.

    Args:
        explained: The network.
        pixels: Normalised photos (N, C, H, W).
        targets: Targets, see `ExplainedNetwork.score`.
        maps: Maps (N, H, W).
        batch_size: Largest number of images per forward pass.

    Source: Petsiuk et al., "RISE" (BMVC 2018), section 3.4.
    """
    shares = [step / CURVE_STEPS for step in range(CURVE_STEPS + 1)]
    curves = [
        _curves(explained, pixels[row], targets[row], maps[row], shares, batch_size)
        for row in range(len(pixels))
    ]
    return (
        torch.stack([insertion for insertion, _ in curves]),
        torch.stack([deletion for _, deletion in curves]),
    )


def _curves(
    explained: ExplainedNetwork, photo: Tensor, target: Tensor, relevance: Tensor,
    shares: list[float], batch_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The two curves of one photo (C, H, W), on the CPU."""
    order = relevance.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank.view(1, *relevance.shape)
    blurred, bare = blur(photo[None])[0], explained.mean_colour(photo[None])[0]
    count = relevance.numel()
    inputs = []
    for first, second in ((photo, blurred), (bare, photo)):  # selected pixels, all others
        inputs += [torch.where(rank < round(s * count), first, second) for s in shares]
    stack = torch.stack(inputs)
    with torch.no_grad():
        probabilities = torch.cat(
            [
                explained.probability(
                    stack[part], target[None].expand(part.stop - part.start, *target.shape)
                ).cpu()
                for part in batched(len(stack), batch_size)
            ]
        )
    return probabilities[: len(shares)], probabilities[len(shares) :]


def blur(pixels: Tensor) -> Tensor:
    """Pixels (N, C, H, W) after a Gaussian blur of width `BLUR`; borders are replicated."""
    sigma = max(BLUR * max(pixels.shape[2:]), 0.5)
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    channels = pixels.shape[1]
    for shape, pad in (((1, -1), (reach, reach, 0, 0)), ((-1, 1), (0, 0, reach, reach))):
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *kernel.view(*shape).shape)
        pixels = F.conv2d(F.pad(pixels, pad, mode="replicate"), weight, groups=channels)
    return pixels
