"""Image and mask are changed together, by the image's own seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.training.batches.augmentations import AUGMENTATIONS, augment, augmentation_name
from tests.training.pairs import disc


def pair(number: int = 0, side: int = 48) -> tuple[Tensor, Tensor]:
    image, mask = disc(number, side, side)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)[None]


def seen(image: Tensor) -> Tensor:
    """The disc as the image shows it: reddish there, grey or black elsewhere."""
    redness = image[:1].float() - image[1:2].float()
    return redness > redness.max() / 2


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_moves_with_the_image(seed: int) -> None:
    image, mask = augment(*pair(), name="light", seed=seed)
    assert torch.equal(seen(image), mask.bool())


@pytest.mark.parametrize("seed", range(12))
def test_the_strong_one_moves_both_to_the_same_place(seed: int) -> None:
    image, mask = augment(*pair(), name="strong", seed=seed)
    assert set(mask.unique().tolist()) == {0, 1}
    shown, marked = (found[0].nonzero().float().mean(0) for found in (seen(image), mask))
    assert torch.allclose(shown, marked, atol=1.0)  # pixels; blurring moves the edge only


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_types_and_sizes_stay(name: str) -> None:
    image, mask = augment(*pair(), name=name, seed=3)
    assert type(image) is type(mask) is Tensor
    assert image.dtype == mask.dtype == torch.uint8
    assert (image.shape, mask.shape) == ((3, 48, 48), (1, 48, 48))


def test_all_eight_positions_of_a_square_come() -> None:
    mask = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    found = {
        tuple(augment(mask.repeat(3, 1, 1), mask, name="light", seed=s)[1].flatten().tolist())
        for s in range(100)
    }
    assert len(found) == 8


def test_none_changes_nothing() -> None:
    image, mask = pair()
    changed = augment(image, mask, name="none", seed=5)
    assert torch.equal(changed[0], image)
    assert torch.equal(changed[1], mask)


def test_the_seed_alone_decides_and_nobody_elses_randomness_moves() -> None:
    torch.manual_seed(1)
    first = augment(*pair(), name="strong", seed=8)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    augment(*pair(1), name="strong", seed=9)
    again = augment(*pair(), name="strong", seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = augment(*pair(), name="strong", seed=10)
    assert not torch.equal(first[0], other[0])


def test_an_unknown_name() -> None:
    assert augmentation_name("Light") == "light"
    with pytest.raises(UsageError, match="No augmentation is called `heavy`"):
        augmentation_name("heavy")
