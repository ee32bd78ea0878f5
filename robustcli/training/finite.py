"""What stops a training that has come to numbers that are none: nothing of it is saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from robustcli.core.errors import RunError

_SHOWN = 8
SCALER_TRIES = 32
"""Steps in a row that float16's loss scaler may skip: more halvings than its scale has."""


def check_loss(
    loss: Tensor, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> None:
    """Raises RunError unless `loss` is finite.

    Args:
        loss: Of a batch.
        ids: The images of the batch.
        constant: Those of one value everywhere.
        epoch: Counted from 0.
        step: Of the optimizer, counted from 0.
    """
    if not torch.isfinite(loss):
        raise not_finite(f"The loss is {loss.item()}", ids, constant, epoch, step)


def check_gradient(
    norm: Tensor, named: Iterable[tuple[str, nn.Parameter]], ids: Sequence[str],
    constant: Sequence[str], epoch: int, step: int,
) -> None:  # fmt: skip
    """Raises RunError unless the gradient's `norm` is finite; the message names parameters.

    For the other arguments see `check_loss`.
    """
    if torch.isfinite(norm):
        return
    bad = [n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
    shown = ", ".join(f"`{name}`" for name in bad[:3])
    of = f" of {len(bad)} parameters ({shown}{', ...' if len(bad) > 3 else ''})" if bad else ""
    raise not_finite(f"The gradient{of} is not finite", ids, constant, epoch, step)


def not_finite(
    what: str, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> RunError:
    """The error for the user: which images, those of one value first, and what may help."""
    odd = ", ".join(constant[:_SHOWN])
    named = f" Of one value everywhere, and so most likely the reason: {odd}." if constant else ""
    return RunError(
        f"{what} in epoch {epoch + 1}, step {step + 1}.",
        f"{images_in_words(ids)}{named}",
        "The checkpoints of the last finished epoch are kept. Look at those images; else try a "
        "smaller `--lr`, `--clip 1` or `--precision fp32`, with `--fresh` or another `--out`.",
    )


def images_in_words(ids: Sequence[str]) -> str:
    """The first images of a batch, in a sentence."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"Images of the batch: {', '.join(ids[:_SHOWN])}{more}."


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm over all gradients; 0 where there are none."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
