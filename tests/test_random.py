"""Random numbers belong to (seed, id): not to the batch, not to the global state; and they are random."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robrep import random as library
from robrep.random import as_seed, fold, generator, noise, permutation, uniform

QUICK = settings(deadline=None, max_examples=25, database=None, derandomize=True)
DRAWS = pytest.mark.parametrize("draw", [noise, uniform])


@pytest.mark.parametrize("draw", [noise, uniform])
@QUICK
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
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
    for step in (1, 0x9E3779B97F4A7C15 - 2**64):
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
    parts += [(0, 0), (0, 1), (1, 0), (10, 1), (1, 1, 0), (2**63 - 1,), (-(2**63),), ("a", 1), ("a1",)]
    folded = [fold(*p) for p in parts]
    assert len(set(folded)) == len(parts)
    assert all(0 <= f < 2**63 for f in folded)


def splitmix64(seed: int, count: int) -> list[int]:
    """The first numbers of SplitMix64, as its authors' C code computes them, in numpy's unsigned integers."""
    state, out = np.uint64(seed % 2**64), []
    with np.errstate(over="ignore"):
        for _ in range(count):
            state += np.uint64(0x9E3779B97F4A7C15)
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            out.append(int(z ^ (z >> np.uint64(31))))
    return out


def test_known_values() -> None:
    """Records rely on them: the same on every machine, in every version."""
    # SplitMix64 seeded with 1234567, as published beside its code
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published
    nothing = int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "little")
    assert [fold(i) for i in range(5)] == [word >> 1 for word in splitmix64(nothing, 5)]
    for seed, i in ((0, 0), (3, 7), (-1, 2**62), (2**63 - 1, -5)):
        stream = library._hash(fold("ids", seed) + (i + 1) * library.INCREMENT & library.WORD)
        words = splitmix64(stream, 3)
        halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
        flat = [((half - 2**32 if half >> 31 else half) // 2**8) / 2**24 + 0.5 for half in halves]
        assert uniform(seed, torch.tensor([i]), (6,))[0].tolist() == flat
        radius = [math.sqrt(-2 * math.log(((word >> 32 ^ 1 << 31) + 0.5) / 2**32)) for word in words]
        angle = [2 * math.pi * (word & 0xFFFFFFFF) / 2**32 for word in words]
        normal = [r * math.cos(t) for r, t in zip(radius, angle, strict=True)]
        normal += [r * math.sin(t) for r, t in zip(radius, angle, strict=True)]
        torch.testing.assert_close(noise(seed, torch.tensor([i]), (6,))[0], torch.tensor(normal), rtol=1e-6, atol=1e-7)


@QUICK
@given(parts=st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3), min_size=1, max_size=4))
def test_a_tensor_is_the_seed_that_its_number_is(parts: list[int | str]) -> None:
    as_tensors = [torch.tensor(p) if isinstance(p, int) else p for p in parts]
    folded, expected = fold(*as_tensors), fold(*parts)
    assert int(folded) == expected
    ids = torch.arange(3)
    for draw in (uniform, noise):
        assert torch.equal(draw(torch.tensor(expected), ids, (2, 3)), draw(expected, ids, (2, 3)))
    assert torch.equal(permutation(torch.tensor(expected), 9), permutation(expected, 9))


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, torch.tensor, lambda v: torch.tensor(v).int()])
def test_equal_seeds_of_any_integer_type_are_equal(kind: Any) -> None:
    seed, ids = kind(3), torch.arange(2)
    assert int(fold(seed, "a", kind(4))) == fold(3, "a", 4)
    assert torch.equal(noise(seed, ids, (2,)), noise(3, ids, (2,)))
    assert torch.equal(permutation(seed, 5), permutation(3, 5))


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (1.0, TypeError, "seed is 1.0, expected an integer"),
        (np.float32(1), TypeError, "expected an integer"),
        (True, TypeError, "seed is True"),
        (None, TypeError, "seed is None"),
        ("1", TypeError, "seed is '1'"),
        (2**63, ValueError, r"seed is 9223372036854775808, expected an integer in -2\*\*63 ... 2\*\*63 - 1"),
        (-(2**63) - 1, ValueError, "seed is -9223372036854775809"),
        (torch.tensor(1.0), TypeError, "seed is a torch.float32 tensor of shape"),
        (torch.tensor([1]), TypeError, r"seed is a torch.int64 tensor of shape \(1,\)"),
        (torch.tensor(True), TypeError, "seed is a torch.bool tensor"),
    ],
)
def test_wrong_seeds(seed: Any, error: type[Exception], message: str) -> None:
    for draw in (noise, uniform):
        with pytest.raises(error, match=message):
            draw(seed, torch.arange(2), (2,))
    with pytest.raises(error, match=message):
        as_seed(seed)
    if not isinstance(seed, str):
        with pytest.raises(error, match=message.replace("seed is", "a part of the seed is")):
            fold("a", seed)


# --- quality: each test has a chance of 1 in 10,000 to fail for perfect numbers; the seeds are fixed ------------------


def bits(seed: int, ids: torch.Tensor, words: int) -> np.ndarray:
    """The bits of the first words of each stream, (N, 64 * words), 0 or 1."""
    raw = library._words(seed, ids, words).numpy().astype("<i8").view(np.uint8)
    return np.unpackbits(raw, axis=1, bitorder="little")


def test_every_bit_is_fair_and_independent_of_its_neighbours() -> None:
    """Of neighbouring seeds, ids and places: the shares of ones, and of agreement, bit by bit (chi-square)."""
    n = 20_000
    a = bits(0, torch.arange(n), 2)
    neighbours = {
        "one": np.ones_like(a), "id": bits(0, torch.arange(n) + 1, 2), "seed": bits(1, torch.arange(n), 2),
        "place": np.roll(a, 64, axis=1), "bit": np.roll(a, 1, axis=1), "doubled id": bits(0, 2 * torch.arange(n), 2),
    }  # fmt: skip
    for name, b in neighbours.items():
        agree = (a == b).sum(0)
        z2 = ((agree - n / 2) ** 2 / (n / 4)).sum()
        assert 1e-4 < stats.chi2.sf(z2, a.shape[1]) < 1 - 1e-4, name


@pytest.mark.parametrize("vary", ["seed", "id", "place"])
def test_serial_pairs_and_triples_fill_the_cube(vary: str) -> None:
    """Chi-square over the cells of a cube, for numbers that follow each other in seeds, in ids, or in places."""
    n = 60_000
    if vary == "seed":
        u = torch.cat([uniform(seed, torch.zeros(1, dtype=torch.int64), (1,)) for seed in range(n // 10)])[:, 0]
    else:
        u = uniform(7, torch.arange(n), (1,))[:, 0] if vary == "id" else uniform(7, torch.arange(1), (n,))[0]
    for dim, cells in ((1, 256), (2, 16), (3, 6)):
        points = (u[: len(u) // dim * dim].view(-1, dim) * cells).long()
        index = (points * cells ** torch.arange(dim)).sum(1)
        counts = torch.bincount(index, minlength=cells**dim).numpy()
        assert stats.chisquare(counts).pvalue > 1e-4, (vary, dim)


def test_birthday_spacings() -> None:
    """Marsaglia's test: among n birthdays in a year of m days, the number of equal spacings is Poisson n^3 / (4 m)."""
    n, m, runs = 512, 2**24, 200
    days = (uniform(11, torch.arange(runs), (n,)) * m).long().sort(1).values
    spacings = days.diff(dim=1).sort(1).values
    equal = int((spacings.diff(dim=1) == 0).sum())
    mean = runs * n**3 / (4 * m)
    assert stats.poisson.cdf(equal, mean) > 1e-4 and stats.poisson.sf(equal, mean) > 1e-4


def test_the_spectrum_is_white() -> None:
    """No frequency along ids or places carries more than chance allows (the largest of the periodogram's ordinates)."""
    for u in (uniform(3, torch.arange(4096), (1,))[:, 0], uniform(3, torch.arange(1), (4096,))[0]):
        power = np.abs(np.fft.rfft(u.numpy() - 0.5))[1:-1] ** 2 / (4096 / 12)
        assert stats.kstest(power, "expon").pvalue > 1e-4
        assert power.max() < math.log(len(power) / 1e-4)


def test_normal_tails() -> None:
    x = noise(5, torch.arange(2000), (1000,)).flatten()
    for at in (1, 2, 3, 4):
        for count in (int((x > at).sum()), int((x < -at).sum())):
            mean = len(x) * stats.norm.sf(at)
            assert abs(count - mean) < 4 * mean**0.5, at
    assert 4.5 < x.abs().max() < 6.8
    assert stats.kstest(x[:100_000].numpy(), "norm").pvalue > 1e-4
    moments = [x.double().pow(k).mean().item() for k in (1, 2, 3, 4)]
    errors = [(v / len(x)) ** 0.5 for v in (1, 2, 15, 96)]  # variances of powers of a standard normal number
    assert all(abs(m - e) < 4 * s for m, e, s in zip(moments, (0, 1, 0, 3), errors, strict=True))


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
