"""The pointwise worst case over a suite: who is attacked, verdicts, resuming, what a cache may not share."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import APGD, FGSM, L2, PGD, Linf, Square
from robrep.evaluation import Evaluation, Rate, accuracy, against_radius, evaluate, robust_accuracy
from robrep.files import atomic_write
from robrep.random import fold, noise
from robrep.suites import ClassifierAttack

X = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SUITE = [
    ClassifierAttack("weak", FGSM()),
    ClassifierAttack("other", Square(15), "margin"),
    ClassifierAttack("targeted", APGD(5, leave_early=True), "targeted_margin", 2),
    ClassifierAttack("strong", PGD(10, restarts=2)),
]


class Rowwise(nn.Module):
    """Three classes, computed without matrix products, so that an image's result is the same in any batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        w = torch.randn(3, 36, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.w = nn.Parameter(scale * w)

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5).unsqueeze(1) * self.w).sum(2)


class Noisy(Rowwise):
    """The same with a code that is sampled."""

    samples = 4

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    @property
    def mean_code(self) -> Rowwise:
        return Rowwise()

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        assert ids is not None, "ids were not passed on"
        self.seeds.append(seed)
        logits = super().forward(x).unsqueeze(1) + 2 * noise(seed, ids, (self.samples, 3))
        return logits.log_softmax(2).logsumexp(1) - math.log(self.samples)


Y = Rowwise()(X).argmax(1)
Y[::10] = (Y[::10] + 1) % 3  # some are wrong from the start


def same(a: Evaluation, b: Evaluation) -> bool:
    stages = [(s.name, s.attacked, s.broken, s.robust.correct.tolist(), s.refused) for e in (a, b) for s in e.stages]
    half = len(stages) // 2
    return (
        stages[:half] == stages[half:]
        and torch.equal(a.robust.correct, b.robust.correct)
        and torch.equal(a.x_adv, b.x_adv)
        and a.unconfirmed == b.unconfirmed
    )


# --- the worst case -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.15)])
@pytest.mark.parametrize("kind", [Rowwise, Noisy])
def test_the_worst_case_is_the_and_of_single_runs(threat: Any, kind: type) -> None:
    model = kind()
    clean = accuracy(model, X, Y).correct
    single = [evaluate(model, X, Y, attack, threat) for attack in SUITE]
    together = clean.clone()
    for one in single:
        together &= one.robust.correct
    alone, cumulative = (evaluate(model, X, Y, SUITE, threat, individually=flag) for flag in (True, False))
    assert 0 < together.sum() < clean.sum()
    before = clean
    for whole in (alone, cumulative):
        assert torch.equal(whole.robust.correct, together) and torch.equal(whole.clean.correct, clean)
        assert whole.unconfirmed == 0
        assert torch.equal(whole.stages[-1].robust.correct, together)
        before = clean
        for stage in whole.stages:
            assert not (stage.robust.correct & ~before).any(), "not monotone"
            before = stage.robust.correct
    for stage, one in zip(alone.stages, single, strict=True):
        assert stage.attacked == clean.sum() and stage.broken == one.stages[0].broken
        assert stage.broken == int((clean & ~one.robust.correct).sum())
    left = int(clean.sum())
    for stage in cumulative.stages:
        assert stage.attacked == left
        left -= stage.broken
        assert left == stage.robust.correct.sum()


def test_only_survivors_are_attacked() -> None:
    model, seen = Rowwise(), []

    def attack(objective: Any, x: Tensor, threat: Any, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        seen.append(ids.tolist())
        assert torch.equal(x, X[ids]) and torch.equal(y, Y[ids])
        return PGD(3)(objective, x, threat, y, ids=ids, seed=seed)

    result = evaluate(
        model, X, Y, [ClassifierAttack("a", PGD(3)), ClassifierAttack("b", attack)], Linf(0.02), batch_size=8
    )
    tried = result.stages[0].robust.correct.nonzero().squeeze(1)
    assert [i for part in seen for i in part] == tried.tolist() and max(map(len, seen)) == 8
    seen.clear()
    everything = evaluate(model, X, Y, [ClassifierAttack("b", attack)], Linf(10.0), after=Rate(torch.arange(50) < 20))
    assert seen == [[i for i in range(20) if i % 10]]
    assert not everything.robust.correct[20:].any() and everything.clean.value == 0.9
    seen.clear()
    nobody = evaluate(model, X, Y, attack, Linf(0.1), after=Rate(torch.zeros(50, dtype=torch.bool)))
    assert not seen and nobody.robust.value == 0 and nobody.stages[0].attacked == 0


def test_the_images_that_broke_it() -> None:
    result = evaluate(Rowwise(), X, Y, SUITE, Linf(0.02))
    right = Rowwise()(result.x_adv).argmax(1) == Y
    assert torch.equal(right, result.robust.correct)
    wrong = ~result.clean.correct
    assert torch.equal(result.x_adv[wrong], X[wrong]) and result.x_adv.dtype == X.dtype
    bytes_ = (255 * X).to(torch.uint8)
    narrow = evaluate(Rowwise().float(), bytes_, Y, SUITE, Linf(0.02))
    assert narrow.x_adv.dtype == torch.float32
    assert torch.equal(
        narrow.robust.correct, evaluate(Rowwise().float(), bytes_ / 255, Y, SUITE, Linf(0.02)).robust.correct
    )


@pytest.mark.parametrize("kind", [Rowwise, Noisy])
def test_batches_and_radii_of_each_image(kind: type) -> None:
    radii = torch.linspace(0, 0.08, 50)
    whole = evaluate(kind(), X, Y, SUITE, Linf(radii))
    assert same(whole, evaluate(kind(), X, Y, SUITE, Linf(radii), batch_size=7))
    assert ((whole.x_adv - X).abs().flatten(1).amax(1) <= radii + 1e-6).all()
    for eps in (0, 25, 49):
        one = evaluate(kind(), X, Y, SUITE, Linf(radii[eps].item()))
        assert one.robust.correct[eps] == whole.robust.correct[eps]
    for count in (49, 51):
        with pytest.raises(ValueError, match=f"eps has {count} rows, expected 50"):
            evaluate(kind(), X, Y, SUITE, Linf(torch.full((count,), 0.1)))


def test_a_curve_against_the_radius() -> None:
    for norm, top in ((Linf, 0.05), (L2, 0.4)):
        radii = [top, 0.0, 0.3 * top, 0.6 * top, 0.3 * top]
        curve = against_radius(Rowwise(), X, Y, PGD(20), norm, radii)
        separate = [robust_accuracy(Rowwise(), X, Y, PGD(20), norm(eps)).value for eps in radii]
        assert curve["x"] == radii and curve["y"] == separate
        assert curve["y"][1] == 0.9 > curve["y"][2] > curve["y"][3] > curve["y"][0]
        assert all(low <= v <= high for low, v, high in zip(curve["low"], curve["y"], curve["high"], strict=True))


def test_who_is_broken_at_a_radius_is_not_attacked_at_a_larger_one() -> None:
    """The curve goes on where it was, also where an attack is worse at a larger radius."""
    attacked: dict[float, list[int]] = {}

    def attack(objective: Any, x: Tensor, threat: Any, *given: Any, ids: Tensor, seed: int) -> Tensor:
        attacked.setdefault(threat.eps, []).extend(ids.tolist())
        return PGD(20)(objective, x, threat, *given, ids=ids, seed=seed) if threat.eps < 0.02 else x

    curve = against_radius(Rowwise(), X, Y, attack, Linf, [0.01, 0.03, 0.02])
    alone = evaluate(Rowwise(), X, Y, PGD(20), Linf(0.01))
    assert 0 < alone.robust.value < alone.clean.value and curve["y"] == [alone.robust.value] * 3
    left = alone.robust.correct.nonzero().squeeze(1).tolist()
    assert attacked == {0.01: alone.clean.correct.nonzero().squeeze(1).tolist(), 0.02: left, 0.03: left}


# --- models that sample, and verdicts -----------------------------------------------------------------------------


def test_the_verdict_s_noise_is_unseen() -> None:
    model, attacks = Noisy(), []

    def attack(*arguments: Any, **keywords: Any) -> Tensor:
        before = len(model.seeds)
        found = PGD(4, restarts=2)(*arguments, **keywords)
        attacks.extend(model.seeds[before:])
        return found

    suite = [ClassifierAttack("a", attack), ClassifierAttack("b", attack), *SUITE]
    result = evaluate(model, X, Y, suite, Linf(0.02), seed=6)
    verdict = fold(6, "verdict")
    assert verdict in model.seeds and verdict not in attacks and len(set(attacks)) == len(attacks) == 20
    assert "4 samples" in result.stages[0].robust.attack


def test_what_the_last_check_does_not_confirm() -> None:
    """A model that is wrong every other time it looks."""

    class Moody(Rowwise):
        looks = 0

        def forward(self, x: Tensor) -> Tensor:
            self.looks += 1
            return super().forward(x) * (-1 if self.looks == 2 else 1)

    def nothing(objective: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x

    result = evaluate(Moody(), X, Y, nothing, Linf(0.1))
    assert result.unconfirmed == 45 and result.stages[0].broken == 0
    assert torch.equal(result.robust.correct, result.clean.correct)
    assert "unconfirmed: 45 of 50 images were broken at a first look and right at a second" in str(result)
    assert "unconfirmed" not in str(evaluate(Rowwise(), X, Y, nothing, Linf(0.1)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda x: (x + 0.11).clamp(max=1), r"x_adv leaves the l-inf ball of radius 0.1 by 0.01"),
        (lambda x: x + 0.1, "x_adv has values from .*, expected finite values in"),
        (lambda x: x * math.nan, "x_adv has values from nan"),
    ],
)
def test_an_attack_that_cheats_is_refused(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(Rowwise(), X, Y, lambda objective, x, *_, **__: found(x), Linf(0.1))


# --- resuming -----------------------------------------------------------------------------------------------------


class Fragile:
    """An attack that counts its calls, and fails at one of them."""

    def __init__(self, search: Any, fails_at: int | None = None) -> None:
        self.search, self.calls, self.fails_at = search, 0, fails_at

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return self.search(*arguments, **keywords)

    def __repr__(self) -> str:
        return repr(self.search)

    @property
    def fingerprint(self) -> str:
        """What it finds does not depend on what it counts."""
        return repr(self.search)


def fragile(fails_at: int | None) -> tuple[list[ClassifierAttack], list[Fragile]]:
    searches = [Fragile(PGD(3)), Fragile(PGD(5), fails_at)]
    return [ClassifierAttack(name, search) for name, search in zip("ab", searches, strict=True)], searches


@pytest.mark.parametrize("kind", [Rowwise, Noisy])
def test_it_goes_on_where_it_stopped(tmp_path: Path, kind: type) -> None:
    whole = evaluate(kind(), X, Y, fragile(None)[0], Linf(0.02), batch_size=5)
    suite, _ = fragile(3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(kind(), X, Y, suite, Linf(0.02), batch_size=5, cache=tmp_path)
    suite, searches = fragile(None)
    first, parts = (math.ceil(stage.attacked / 5) for stage in whole.stages)
    assert same(evaluate(kind(), X, Y, suite, Linf(0.02), batch_size=5, cache=tmp_path), whole)
    assert [s.calls for s in searches] == [0, parts - 2]
    assert same(evaluate(kind(), X, Y, suite, Linf(0.02), batch_size=5, cache=tmp_path), whole)
    assert [s.calls for s in searches] == [0, parts - 2], "attacked again"
    # another suite takes what the same attack has found
    evaluate(kind(), X, Y, suite[:1], Linf(0.02), batch_size=5, cache=tmp_path)
    assert [s.calls for s in searches] == [0, parts - 2]
    # damaged files are set aside, with a line that says so
    (folder,) = (f for f in (tmp_path / "evaluations").iterdir() if len(list(f.iterdir())) == first)
    files = sorted(folder.iterdir())
    assert first > 4 and len(list(tmp_path.rglob("*.npz"))) == first + parts
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-50])
    files[2].write_bytes(b"nonsense" * 20)
    shutil.copy(files[-1], files[3])  # of other images
    with pytest.warns(UserWarning, match="is damaged .*; it is set aside as .* and made anew") as lines:
        assert same(evaluate(kind(), X, Y, suite, Linf(0.02), batch_size=5, cache=tmp_path), whole)
    assert [s.calls for s in searches] == [4, parts - 2] and len(lines) == 3
    assert len(list(folder.glob("*.damaged"))) == 3 and len(list(folder.glob("*.npz"))) == first
    with warnings.catch_warnings(), atomic_write(folder / "00000000-00000004-5.npz") as unfinished:
        warnings.simplefilter("error")  # what another process is writing is not damaged, and stays where it is
        unfinished.write_bytes(b"half a fi")
        assert same(evaluate(kind(), X, Y, suite, Linf(0.02), batch_size=5, cache=tmp_path), whole)
        assert unfinished.read_bytes() == b"half a fi"
    assert [s.calls for s in searches] == [4, parts - 2]


class Settings(Rowwise):
    """What it does hangs on a number and on a buffer that is not saved."""

    def __init__(self, sign: int = 1, shift: float = 0.0) -> None:
        super().__init__()
        self.sign = sign
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * super().forward(x + self.shift)


def test_a_cache_is_not_shared(tmp_path: Path) -> None:
    def calls(model: nn.Module = None, search: Any = None, x: Tensor = X, y: Tensor = Y, **change: Any) -> int:  # type: ignore[assignment]
        attack = Fragile(search or PGD(2))
        threat = change.pop("threat", Linf(0.02))
        suite = change.pop("suite", None) or ClassifierAttack("a", attack)
        evaluate(model or Settings(), x, y, suite, threat, cache=tmp_path, **change)
        return attack.calls

    assert calls() == 1 and calls() == 0
    changed = torch.cat([X[:49], X[:1]])
    for change in (
        {"model": Settings(-1)},
        {"model": Settings(shift=0.01)},
        {"seed": 1},
        {"precision": "bf16-mixed"},
        {"threat": Linf(0.021)},
        {"threat": L2(0.02)},
        {"threat": Linf(torch.full((50,), 0.02))},
        {"threat": Linf(torch.full((50,), 0.02 + 1e-7))},
        {"x": changed},
        {"x": X.float().double()},
        {"y": Y.roll(1)},
        {"search": PGD(3)},
    ):
        assert calls(**change) > 0, change
        assert calls(**change) == 0, change
    other = Settings()
    other.w.data[0, 0] += 1e-9
    assert calls(other) == 1
    assert calls() == 0
    # x' of an image does not depend on these
    for change in (
        {"batch_size": 7},
        {"after": Rate(torch.arange(50) < 40)},
        {"individually": True},
        {"keep": False},
    ):
        assert calls(**change) == 0, change


def changed(shift: float) -> list[Any]:
    """A reader's attack, threat and model, whose code is the same text with another number in it."""

    def attack(objective: Any, x: Tensor, threat: Any, *given: Any, **keywords: Any) -> Tensor:
        return (x + shift).clamp(0, 1)

    @dataclass(frozen=True)
    class Ball(Linf):
        def projection(self, x: Tensor) -> Any:
            project = super().projection(x)
            return lambda x_adv: project(x_adv + shift)

    class Shifted(Rowwise):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + shift)

    return [attack, Ball(0.1), Shifted()]


@pytest.mark.parametrize("part", ["attack", "threat", "model"])
def test_edited_code_is_not_taken_from_the_cache(tmp_path: Path, part: str) -> None:
    """faults/stale_evaluation_cache.py: the cell is edited and run again."""
    found = []
    for shift in (0.0, 0.05):
        attack, ball, model = changed(shift)
        arguments = {
            "model": model if part == "model" else Rowwise(),
            "attacks": attack if part == "attack" else PGD(2),
            "threat": ball if part == "threat" else Linf(0.1),
        }
        fresh, kept = (evaluate(x=X, y=Y, cache=cache, **arguments) for cache in (None, tmp_path))
        assert same(fresh, kept)
        found.append(kept)
    assert len(list((tmp_path / "evaluations").iterdir())) == 2 and not same(*found)


def test_what_cannot_be_identified_is_not_kept(tmp_path: Path) -> None:
    calls: list[int] = []

    class Endless:
        def __init__(self) -> None:
            self.stream = (i for i in range(10))

        def __call__(self, objective: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
            calls.append(len(x))
            return x

        def __str__(self) -> str:
            return "endless"

    for _ in range(2):
        with pytest.warns(UserWarning, match="keeps nothing in the cache: attack 'endless' holds .* 'generator'"):
            evaluate(Rowwise(), X, Y, [Endless(), PGD(2)], Linf(0.02), cache=tmp_path)
    assert len(calls) == 2
    model = Rowwise()
    model.file = open(os.devnull)  # type: ignore[assignment]  # noqa: SIM115
    with pytest.warns(UserWarning, match="keeps nothing in the cache: model holds .*TextIOWrapper"):
        evaluate(model, X, Y, PGD(3), Linf(0.02), cache=tmp_path)
    model.file.close()  # type: ignore[union-attr,operator]
    assert not list(tmp_path.iterdir())


# --- words, precision, compilation --------------------------------------------------------------------------------


def test_words() -> None:
    result = evaluate(Rowwise(), X, Y, SUITE, Linf(0.02))
    text = str(result)
    for part in ("50 images", "l-inf ball of radius 0.02", "weak", "targeted", "broke", "all"):
        assert part in text


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(Rowwise(), X, Y, SUITE, Linf(0.02), batch_size=20, progress="suite")
    said = capsys.readouterr().err
    assert said.count("suite: image 200/200") == 1
    evaluate(Rowwise(), X, Y, SUITE, Linf(0.02))
    assert not capsys.readouterr().err


def linear_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))


def test_bf16() -> None:
    model, dtypes = linear_network(), set()
    model[1].register_forward_hook(lambda m, i, o: dtypes.add((o.dtype, torch.is_grad_enabled())))
    y = model(X.float()).argmax(1)
    dtypes.clear()
    full = evaluate(model, X.float(), y, APGD(10), Linf(0.05))
    assert {d for d, _ in dtypes} == {torch.float32}
    rough = evaluate(model, X.float(), y, APGD(10), Linf(0.05), precision="bf16-mixed")
    assert (torch.bfloat16, True) in dtypes and (torch.float32, False) in dtypes, "the verdict is in full precision"
    assert rough.x_adv.dtype == torch.float32 and abs(full.robust.value - rough.robust.value) <= 0.06
    assert not torch.equal(full.x_adv, rough.x_adv)


def test_a_compiled_model() -> None:
    """Captured and differentiated ahead of time as for any backend; generating C++ would only take longer."""
    model, x = linear_network(), X[:24].float()
    y = model(x).argmax(1)
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    attacks = [ClassifierAttack("APGD", APGD(4, leave_early=True))]
    ours, theirs = (evaluate(m, x, y, attacks, Linf(0.05)) for m in (compiled, model))  # type: ignore[arg-type]
    assert torch.equal(ours.robust.correct, theirs.robust.correct)
    torch.testing.assert_close(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-5)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="after has 3 rows, expected 50"):
        evaluate(Rowwise(), X, Y, FGSM(), Linf(0.1), after=Rate(torch.ones(3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="y has 49 labels, expected 50"):
        evaluate(Rowwise(), X, Y[1:], FGSM(), Linf(0.1))
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(Rowwise(), X, Y, FGSM(), Linf(0.1), batch_size=0)


def test_attacks_that_cannot_be_used() -> None:
    from robrep.suites import FAB

    with pytest.raises(ValueError, match="attacks has none that can attack this model .* made for models that sample"):
        evaluate(Noisy(), X, Y, FAB(), Linf(0.02))
    mixed = evaluate(Noisy(), X, Y, [FAB(), PGD(3)], Linf(0.02))
    assert mixed.stages[0].refused and mixed.stages[0].attacked == 0 and "left out" in str(mixed)
    assert torch.equal(mixed.stages[0].robust.correct, mixed.clean.correct)
    assert torch.equal(mixed.robust.correct, evaluate(Noisy(), X, Y, PGD(3), Linf(0.02)).robust.correct)
