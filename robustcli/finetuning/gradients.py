"""Gradient profiles: statistics of the gradients of each parameter tensor over iterations.

Gradients are measured before clipping and without the loss scale. Each iteration adds five numbers
per tensor. Only the last gradients are kept in memory, to compute their change in the next step.

Sources: "Exploring SSMs for Vision Tasks" (Team 23), figure 1, gives no formula; `mean_abs` takes
it as the mean of |g| over the elements of a tensor, and `rms`, `max_abs` and `abs_mean` are the
alternatives. `change` is the mean of |g - previous g| after GradES (arXiv 2509.01842), which uses
the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.core.io import replacing
from robustcli.models.mamba import BidirectionalMamba, Mamba
from robustcli.models.vmamba import SS2D

StatisticKind = Literal["mean_abs", "rms", "max_abs", "abs_mean", "change"]
STATISTIC_KINDS: tuple[str, ...] = get_args(StatisticKind)
SCAN_MODULES = (Mamba, BidirectionalMamba, SS2D)
_NOTHING = (math.nan,) * len(STATISTIC_KINDS)
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("mamba", pa.bool_()),
        ("weight_rms", pa.float64()),
        ("iteration", pa.int64()),
        *((kind, pa.float64()) for kind in STATISTIC_KINDS),
    ]
)


@dataclass(frozen=True)
class Statistic:
    """Gradient statistics of one parameter tensor over a profile.

    Args:
        shape: Shape of the tensor.
        mamba: Whether the tensor belongs to a state-space block, by the type of its module.
        weight_rms: Root mean square of the weight at the start of the profile.
        by_kind: Mean of each kind of statistic over the iterations; NaN if the tensor never had a
            gradient.
        change_ratio: Mean of `change` over the last quarter of the iterations with a value, divided
            by the mean over the first quarter; NaN with fewer than two values.
    """

    shape: tuple[int, ...]
    mamba: bool
    weight_rms: float
    by_kind: Mapping[str, float]
    change_ratio: float = math.nan

    @property
    def count(self) -> int:
        """Number of elements of the tensor."""
        return torch.Size(self.shape).numel()


def mamba_parameters(network: nn.Module) -> frozenset[str]:
    """Names of the parameters inside state-space blocks, which are found by module type."""
    inside = set()
    for path, module in network.named_modules():
        if isinstance(module, SCAN_MODULES):
            prefix = f"{path}." if path else ""
            inside |= {f"{prefix}{name}" for name, _ in module.named_parameters()}
    return frozenset(inside)


class GradientProfile:
    """Collects gradient statistics of a network, one iteration per call of `add`."""

    def __init__(self, network: nn.Module) -> None:
        self._parameters = dict(network.named_parameters())
        self._mamba = mamba_parameters(network)
        sizes = torch._foreach_norm([p.detach() for p in self._parameters.values()])
        self._weight_rms = {
            name: float(norm) / p.numel() ** 0.5
            for (name, p), norm in zip(self._parameters.items(), sizes, strict=True)
        }
        self.measured: list[tuple[tuple[str, ...], Tensor]] = []
        self.last: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.measured)

    def add(self) -> None:
        """Adds the current gradients of the parameters as one iteration.

        Ignores the iteration if a gradient is not finite: the loss scaler of float16 skips such a
        step, and every other precision ends the training.
        """
        gradients = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        if not gradients:
            return
        numbers = _measure(list(gradients.values()))
        if not torch.isfinite(numbers).all():
            return
        self.measured.append((tuple(gradients), torch.cat([numbers, self._change(gradients)])))
        # Copies: clipping changes the gradients in place.
        self.last = {name: gradient.detach().clone() for name, gradient in gradients.items()}

    def _change(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """(1, tensors) float64: mean |g - previous g|; NaN without previous gradients."""
        change = torch.full((1, len(gradients)), math.nan, dtype=torch.float64)
        places = [place for place, name in enumerate(gradients) if name in self.last]
        if places:
            known = {n: g for n, g in gradients.items() if n in self.last}
            last = [self.last[name].to(g.device) for name, g in known.items()]
            sums = torch._foreach_norm(torch._foreach_sub(list(known.values()), last), 1)
            counts = torch.tensor([g.numel() for g in known.values()], dtype=torch.float64)
            change[0, places] = torch.stack(sums).cpu().double() / counts
        return change

    def rows(self) -> pd.DataFrame:
        """One row per iteration and tensor; statistics are NaN if the tensor had no gradient."""
        rows = [
            {
                "name": name,
                "shape": list(parameter.shape),
                "mamba": name in self._mamba,
                "weight_rms": self._weight_rms[name],
                "iteration": iteration,
                **dict(zip(STATISTIC_KINDS, numbers.get(name, _NOTHING), strict=True)),
            }
            for iteration, numbers in enumerate(map(_by_name, self.measured))
            for name, parameter in self._parameters.items()
        ]
        return pd.DataFrame(rows, columns=SCHEMA.names)


def _by_name(measured: tuple[tuple[str, ...], Tensor]) -> dict[str, list[float]]:
    names, values = measured
    return dict(zip(names, values.T.tolist(), strict=True))


def _measure(gradients: list[Tensor]) -> Tensor:
    """(kinds without `change`, tensors) float64 on the CPU, in a single device transfer."""
    counts = torch.tensor([g.numel() for g in gradients], dtype=torch.float64)
    sums = torch.stack([g.sum() for g in gradients])
    norms = [torch.stack(torch._foreach_norm(gradients, order)) for order in (1, 2, torch.inf)]
    absolute, square, most, total = (v.cpu().double() for v in (*norms, sums))
    return torch.stack([absolute / counts, square / counts.sqrt(), most, (total / counts).abs()])


def unmeasured(network: nn.Module) -> dict[str, Statistic]:
    """Statistics of each parameter of `network` without a profile: all gradients are NaN."""
    inside = mamba_parameters(network)
    return {
        name: Statistic(
            tuple(p.shape),
            name in inside,
            float(p.detach().square().mean().sqrt()),
            dict.fromkeys(STATISTIC_KINDS, math.nan),
        )
        for name, p in network.named_parameters()
    }


def statistics(rows: pd.DataFrame) -> dict[str, Statistic]:
    """Mean statistics per tensor over the iterations of a profile (rows of `GradientProfile`)."""
    kinds = list(STATISTIC_KINDS)
    by_name = rows.groupby("name", sort=False)
    means = by_name[kinds].mean()
    ratios = [_change_ratio(changes.to_numpy(dtype=float)) for _, changes in by_name["change"]]
    facts = rows.drop_duplicates("name")
    return {
        name: Statistic(
            tuple(map(int, shape)), mamba, rms, dict(zip(kinds, values, strict=True)), ratio
        )
        for name, shape, mamba, rms, values, ratio in zip(
            means.index.to_list(), facts["shape"].to_list(), facts["mamba"].to_list(),
            facts["weight_rms"].to_list(), means.to_numpy().tolist(), ratios, strict=True,
        )
    }  # fmt: skip


def _change_ratio(changes: NDArray[np.float64]) -> float:
    """See `Statistic.change_ratio`; `changes` contains the values of one tensor in order."""
    known = changes[~np.isnan(changes)]
    quarter = max(1, len(known) // 4)
    if len(known) < 2 or not (early := known[:quarter].mean()):
        return math.nan
    return float(known[-quarter:].mean() / early)


def write_profile(path: Path, rows: pd.DataFrame, model: str) -> None:
    """Writes a profile of `model` durably as Parquet."""
    schema = SCHEMA.with_metadata({"model": model})
    table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_profile(
    path: Path, network: nn.Module, model: str, content: bytes | None = None
) -> pd.DataFrame:
    """Rows of the profile at `path`, which must belong to `network`.

    Args:
        path: The file.
        network: The network to profile.
        model: Its name.
        content: The content of the file, if it was read before (the file may be gone).

    Raises:
        UsageError: The file does not exist, cannot be read, or belongs to another network.
    """
    if content is None and not path.is_file():
        raise UsageError(
            f"`--profile {path}` does not exist.", "", "Create one with `--profile-only`."
        )
    try:
        source = path.read_bytes() if content is None else content
        # nulls where an older profile has no `change`
        table = pq.read_table(pa.BufferReader(source), schema=SCHEMA)
        metadata = pq.read_schema(pa.BufferReader(source)).metadata
        origin = (metadata or {}).get(b"model", b"").decode()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"`--profile {path}` cannot be read.",
            f"Expected a file `gradients.parquet` of `robust finetune`: {error}",
            "Create one with `--profile-only`.",
        ) from error
    rows: pd.DataFrame = table.to_pandas()
    _check_same(path, rows, network, origin, model)
    return rows


def profile_length(content: bytes) -> int:
    """Number of iterations in a profile that `read_profile` has checked."""
    table = pq.read_table(pa.BufferReader(content), columns=["iteration"])
    return len(table["iteration"].unique())


def _check_same(
    path: Path, rows: pd.DataFrame, network: nn.Module, origin: str, model: str
) -> None:
    expected = {name: tuple(p.shape) for name, p in network.named_parameters()}
    profiled = {name: statistic.shape for name, statistic in statistics(rows).items()}
    names = dict.fromkeys([*profiled, *expected])
    different = [name for name in names if expected.get(name) != profiled.get(name)]
    if different:
        raise UsageError(
            f"`--profile {path}` belongs to another model.",
            f"It was measured on `{origin}`; "
            f"{_difference(different[0], expected, profiled, model)} ({len(different)} of "
            f"{len(names)} tensors differ).",
            "Profile this model with `--profile-only`.",
        )


def _difference(
    name: str,
    expected: Mapping[str, tuple[int, ...]],
    profiled: Mapping[str, tuple[int, ...]],
    model: str,
) -> str:
    if name in profiled:
        return f"`{model}` has no `{name}` of shape {profiled[name]}"
    return f"it has no `{name}` of shape {expected[name]}, but `{model}` has"
