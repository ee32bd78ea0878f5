"""How a scan is cut into programs: nothing left out, nothing twice, enough of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustcli.models.scan import triton
from robustcli.models.scan.triton import plan, tile

WANTED = 528  # 4 for each of the 132 multiprocessors of an H100


@given(
    K=st.integers(1, 16), S=st.integers(1, 300), L=st.integers(1, 70_000), D=st.integers(1, 3000),
    merged=st.booleans(), wanted=st.integers(1, 2000),
)  # fmt: skip
def test_every_step_lies_in_one_section_and_no_section_is_empty(K, S, L, D, merged, wanted):
    cut = plan((K, S, L, D), merged, wanted)
    steps = cut.per_section * cut.T
    assert (cut.sections - 1) * steps < L <= cut.sections * steps
    assert (cut.chunks - 1) * cut.T < L <= cut.chunks * cut.T
    assert (cut.blocks - 1) * cut.DB < D <= cut.blocks * cut.DB
    assert cut.per_program in ((1, K) if merged else (1,))
    programs = S * cut.blocks * (K // cut.per_program) * cut.sections
    assert 2 * programs >= wanted or cut.per_section == 1 or cut.sections * 2 > cut.chunks


@given(channels=st.integers(1, 5000))
def test_tiles_are_powers_of_two(channels):
    T, block = tile(channels)
    assert T * block == triton.TILE
    assert block & (block - 1) == 0
    assert block == 32 or block // 2 < channels <= block


@pytest.mark.parametrize(
    ("dims", "each", "sections"),
    [
        ((4, 64, 3136, 192), 4, 1),  # VMamba's first stage, a training batch
        ((4, 8, 3136, 256), 1, 3),
        ((4, 1, 3136, 256), 1, 17),  # one image
        ((1, 1, 65536, 64), 1, 256),  # UMambaEnc at 256 pixels
    ],
)
def test_the_sizes_that_matter(dims, each, sections):
    cut = plan(dims, dims[0] > 1, WANTED)
    assert (cut.per_program, cut.sections) == (each, sections)
