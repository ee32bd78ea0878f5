"""The position embedding at another size."""

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.positions import fit_positions, resize_positions
from robustcli.models.vim import build


def test_resized_positions_keep_the_class_token_and_the_grid():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, 5, 4, 4, generator=generator)
    own = torch.full((1, 1, 5), 7.0)
    patches = grid.flatten(2).transpose(1, 2)
    positions = torch.cat((patches[:, :8], own, patches[:, 8:]), 1)
    resized = resize_positions(positions, (7, 5))
    assert resized.shape == (1, 36, 5)
    assert torch.equal(resized[:, 17:18], own)
    rest = torch.cat((resized[:, :17], resized[:, 18:]), 1)
    expected = F.interpolate(grid, (7, 5), mode="bicubic", align_corners=False)
    assert torch.allclose(rest, expected.flatten(2).transpose(1, 2), atol=1e-6)


def test_resizing_to_the_same_grid_changes_nothing():
    positions = torch.randn(1, 17, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resize_positions(positions, (4, 4)), positions, atol=1e-6)


def test_a_linear_ramp_stays_a_ramp_across_the_class_token():
    """The release's own helper takes token 0 for the class token and would bend it."""
    ramp = torch.arange(14.0).repeat(14, 1)  # grows to the right
    patches = ramp.reshape(1, -1, 1)
    positions = torch.cat((patches[:, :98], torch.zeros(1, 1, 1), patches[:, 98:]), 1)
    resized = resize_positions(positions, (28, 28))
    grid = torch.cat((resized[:, :392], resized[:, 393:]), 1).view(28, 28)
    assert float(grid.std(0).max()) < 1e-5
    assert torch.allclose(grid[5, 4:24].diff(), torch.tensor(0.5), atol=0.1)  # bicubic ripples


def test_positions_of_no_square_grid_cannot_be_resized():
    with pytest.raises(UsageError, match=r"(?s)of 6 patches cannot be resized.*no square grid"):
        resize_positions(torch.zeros(1, 7, 2), (4, 4))


def test_weights_are_fitted_to_another_size():
    small, large = build("vim-t", depth=1, img_size=64), build("vim-t", depth=1, img_size=96)
    fitted = fit_positions(small.state_dict(), large.config.grid)
    large.load_state_dict(fitted)
    assert torch.equal(large.pos_embed[:, 18], small.pos_embed[:, 8])
    assert fit_positions(small.state_dict(), small.config.grid).keys() == small.state_dict().keys()
    kept = fit_positions(small.state_dict(), small.config.grid)["pos_embed"]
    assert torch.equal(kept, small.pos_embed)
