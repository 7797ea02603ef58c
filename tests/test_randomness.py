"""Random numbers belong to (seed, id): not to the batch, not to the global state; and they are random."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robrep.randomness import fold, generator, noise, permutation, uniform

QUICK = settings(deadline=None, max_examples=25, database=None, derandomize=True)
DRAWS = pytest.mark.parametrize("draw", [noise, uniform])


@pytest.mark.parametrize("draw", [noise, uniform])
@QUICK
@given(
    seed=st.integers(-(2**70), 2**70),
    ids=st.lists(st.integers(-5, 2**62), min_size=1, max_size=6),
    shape=st.lists(st.integers(1, 5), max_size=3),
)
def test_a_row_depends_on_seed_and_id_alone(draw: Any, seed: int, ids: list[int], shape: list[int]) -> None:
    together = draw(seed, torch.tensor(ids), shape)
    assert together.shape == (len(ids), *shape) and together.dtype == torch.float32
    for i, row in zip(ids, together, strict=True):
        assert torch.equal(draw(seed, torch.tensor([i]), shape)[0], row)


@DRAWS
def test_no_row_at_all(draw: Any) -> None:
    assert draw(0, torch.zeros(0, dtype=torch.int64), (2, 3)).shape == (0, 2, 3)


@DRAWS
def test_other_seeds_and_ids_give_other_numbers(draw: Any) -> None:
    ids = torch.arange(40)
    rows = torch.cat([draw(seed, ids, (4,)) for seed in (*range(10), 2**40)])
    assert len(rows.unique(dim=0)) == len(rows)


@DRAWS
def test_default_dtype_does_not_matter(draw: Any) -> None:
    expected = draw(3, torch.arange(4), (5,))
    torch.set_default_dtype(torch.float64)
    try:
        got = draw(3, torch.arange(4), (5,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_distribution() -> None:
    ids = torch.arange(400)
    normal, flat = noise(1, ids, (50,)), uniform(1, ids, (50,))
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(flat.flatten().numpy(), "uniform").pvalue > 1e-3
    assert flat.min() >= 0 and flat.max() < 1
    # the first number of each stream, one for each example, is where weak seeding shows
    assert stats.kstest(noise(1, torch.arange(2000), (1,)).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(uniform(0, torch.arange(2000), ()).numpy(), "uniform").pvalue > 1e-3


def test_no_seed_is_another_one_moved_along_the_ids() -> None:
    """Ids are mixed by adding multiples of a constant: a seed that differs by it must not give the next id's stream."""
    for step in (1, 0x9E3779B97F4A7C15):
        a, b = noise(5, torch.arange(20), (2,)), noise(5 + step, torch.arange(20), (2,))
        assert len(torch.cat([a, b]).unique(dim=0)) == 40


def test_streams_are_not_correlated() -> None:
    a = noise(0, torch.arange(200), (100,))
    others = [noise(0, torch.arange(200) + 1, (100,)), noise(1, torch.arange(200), (100,)), a.roll(1, 1)]
    for b in others:
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 4 / 20000**0.5


@DRAWS
@pytest.mark.parametrize(
    "ids", [[0, 1], torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor(0), torch.tensor([0], dtype=torch.int32)]
)
def test_wrong_ids(draw: Any, ids: Any) -> None:
    with pytest.raises(TypeError, match=r"ids is .*, expected an int64 tensor of shape \(N,\)"):
        draw(0, ids, (2,))


def test_fold() -> None:
    parts: list[tuple[int | str, ...]] = [(), (0,), (1,), (-1,), ("1",), ("",), ("a", "b"), ("ab",), ("b", "a")]
    parts += [(0, 0), (0, 1), (1, 0), (10, 1), (1, 1, 0), (2**63,), (2**64,), ("a", 1), ("a1",)]
    folded = [fold(*p) for p in parts]
    assert len(set(folded)) == len(parts)
    assert all(0 <= f < 2**63 for f in folded)
    assert [fold(*p) for p in parts] == folded
    # the same on every machine, Python and run: records rely on it
    expected = hashlib.blake2b(b"int:0\x1fstr:z", digest_size=8).digest()
    assert fold(0, "z") == int.from_bytes(expected, "little") >> 1


def test_permutation() -> None:
    for n in (1, 2, 100):
        assert torch.equal(permutation(5, n).sort().values, torch.arange(n))
        assert torch.equal(permutation(5, n), permutation(5, n))
    orders = [tuple(permutation(seed, 20).tolist()) for seed in range(20)]
    assert len(set(orders)) == 20
    # positions are spread evenly: where element 0 lands, over many seeds
    where = np.bincount([int((permutation(s, 5) == 0).nonzero()) for s in range(1000)], minlength=5)
    assert stats.chisquare(where).pvalue > 1e-3


def test_the_global_state_is_neither_read_nor_written() -> None:
    def draw_all() -> list[torch.Tensor]:
        ids = torch.arange(3)
        own = torch.randn(4, generator=generator("a", 1))
        return [noise(0, ids, (3,)), uniform(0, ids, (3,)), permutation(0, 9), own]

    torch.manual_seed(1)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    first = draw_all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    torch.manual_seed(2)
    assert all(itertools.starmap(torch.equal, zip(first, draw_all(), strict=True)))
