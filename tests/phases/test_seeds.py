"""Seeds depend on the run's seed and the names, and on nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from phases.seeds import child_seed, numpy_rng, torch_rng

names = st.lists(st.text(max_size=8) | st.integers(0, 99), min_size=1, max_size=3)


@given(st.integers(0, 2**32), names)
def test_child_seeds_fit_torch_and_repeat(seed: int, path: list[str | int]) -> None:
    assert 0 <= child_seed(seed, *path) < 2**63
    assert child_seed(seed, *path) == child_seed(seed, *path)


def test_purposes_and_seeds_differ() -> None:
    seeds = {child_seed(seed, name, index) for seed in (0, 1) for name in ("init", "data") for index in range(50)}
    assert len(seeds) == 200


def test_generators_repeat() -> None:
    assert numpy_rng(1, "x").integers(1 << 30) == numpy_rng(1, "x").integers(1 << 30)
    assert torch.equal(torch.randn(4, generator=torch_rng(1, "x")), torch.randn(4, generator=torch_rng(1, "x")))
