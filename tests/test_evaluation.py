"""Evaluation: intervals against scipy, verdicts that the attack could not foresee, results that no batch size moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from robrep.attacks import FGSM, L2, PGD, Linf
from robrep.encoders import MLPHead
from robrep.evaluation import (
    Rate,
    accuracy,
    adversarial_images,
    against_radius,
    draws_noise,
    paired_bootstrap,
    predict,
    robust_accuracy,
    wilson,
)
from robrep.gaussians import Gaussian
from robrep.heads import Classifier, train_head
from robrep.random import fold, noise

X = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(3, (50,), generator=torch.Generator().manual_seed(1))


class Rowwise(nn.Module):
    """Three classes, computed without matrix products, so that an image's result is the same in any batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        w = torch.randn(3, 36, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.w = nn.Parameter(scale * w)

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5).unsqueeze(1) * self.w).sum(2)


class Noisy(Rowwise):
    """The same with a code that is sampled: it takes ids and seed, as a Classifier does."""

    samples = 4

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        assert ids is not None, "ids were not passed on"
        self.seeds.append(seed)
        self.modes.append(self.training)
        e = noise(seed, ids, (self.samples, 3))
        logits = super().forward(x).unsqueeze(1) + 2 * e
        return logits.log_softmax(2).logsumexp(1) - math.log(self.samples)


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 10, 500, 10_000])
def test_wilson(n: int) -> None:
    for k in sorted({0, 1, n // 3, n // 2, n - 1, n} & set(range(n + 1))):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        low, high = wilson(k, n)
        assert low == pytest.approx(expected.low, abs=1e-9) and high == pytest.approx(expected.high, abs=1e-9)
        assert 0 <= low <= k / n <= high <= 1
        narrow = binomtest(k, n).proportion_ci(0.5, method="wilson")
        assert wilson(k, n, 0.6744897501960817) == pytest.approx((narrow.low, narrow.high), abs=1e-9)
    assert wilson(0, n)[0] == 0 and wilson(0, n)[1] > 0
    assert wilson(n, n)[1] == 1 and wilson(n, n)[0] < 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_wilson_refuses(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"successes is {k} and n is {n}, expected 0 <= successes <= n"):
        wilson(k, n)


def test_rate() -> None:
    rate = Rate(torch.tensor([True, False, True, True]))
    assert (rate.n, rate.value) == (4, 0.75)
    assert (rate.low, rate.high) == rate.interval == wilson(3, 4)
    record = rate.to_dict()
    assert {k: record[k] for k in ("value", "low", "high", "n")} == dict(value=0.75, low=rate.low, high=rate.high, n=4)
    assert str(rate).startswith("75.0 % [30.1, 95.4] of 4")
    for wrong in (torch.tensor([1, 0]), torch.zeros(0, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="correct is .*, expected bool of shape"):
            Rate(wrong)


def test_wilson_covers() -> None:
    """95 % of the intervals hold the true rate, also where it is near 1."""
    g = torch.Generator().manual_seed(0)
    for rate in (0.5, 0.97):
        hits = (torch.rand(2000, 100, generator=g) < rate).sum(1).tolist()
        held = sum(low <= rate <= high for low, high in (wilson(k, 100) for k in hits)) / 2000
        assert 0.92 < held < 0.985


def test_paired_bootstrap() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2000, generator=g) < 0.8
    b = a & (torch.rand(2000, generator=g) < 0.9)  # wrong wherever a is, and sometimes elsewhere
    difference, low, high = paired_bootstrap(a, b, draws=4000)
    d = a.double() - b.double()
    assert difference == pytest.approx(d.mean().item())
    half = 1.959964 * d.std().item() / 2000**0.5
    assert low == pytest.approx(difference - half, abs=0.1 * half)
    assert high == pytest.approx(difference + half, abs=0.1 * half)
    unpaired = 1.959964 * ((a.double().var() + b.double().var()) / 2000).sqrt().item()
    assert high - low < 1.5 * unpaired, "the pairing was lost"
    assert paired_bootstrap(b, a, draws=4000) == pytest.approx((-difference, -high, -low), abs=0.002)
    assert paired_bootstrap(a, a) == (0, 0, 0)
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)
    assert paired_bootstrap(a.float(), b.float(), draws=4000) == (difference, low, high)


def test_paired_bootstrap_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    paired_bootstrap(Y > 0, Y > 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("a", "b", "draws", "message"),
    [
        (torch.ones(3), torch.ones(4), 10, r"a has shape \(3,\) and b \(4,\), expected the same"),
        (torch.ones(0), torch.ones(0), 10, "N at least 1"),
        (torch.ones(2, 2), torch.ones(2, 2), 10, r"a has shape \(2, 2\)"),
        (torch.ones(3), torch.ones(3), 0, "draws is 0, expected at least 1"),
    ],
)
def test_paired_bootstrap_refuses(a: Tensor, b: Tensor, draws: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, draws=draws)


# --- accuracy -----------------------------------------------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    model = Rowwise()
    rate = accuracy(model, X, Y)
    assert torch.equal(rate.correct, model(X).argmax(1) == Y)
    perfect = accuracy(model, X, model(X).argmax(1))
    assert perfect.value == 1 and perfect.n == 50
    as_bytes = (255 * X).to(torch.uint8)
    one, other = accuracy(model.float(), as_bytes, Y), accuracy(model, as_bytes.float() / 255, Y)
    assert torch.equal(one.correct, other.correct)


@pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 500])
@pytest.mark.parametrize("kind", [Rowwise, Noisy])
@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.1)])
def test_the_batch_size_changes_nothing(batch_size: int, kind: type, threat: Any) -> None:
    model = kind()
    y = model.w.new_zeros(50).long() if kind is Noisy else model(X).argmax(1)
    attack = PGD(5, restarts=2, keep="best")
    assert torch.equal(accuracy(model, X, y, batch_size=batch_size).correct, accuracy(model, X, y).correct)
    whole = robust_accuracy(model, X, y, attack, threat)
    assert torch.equal(robust_accuracy(model, X, y, attack, threat, batch_size=batch_size).correct, whole.correct)
    assert 0 < whole.value < 1, "a test that sees no difference"


@pytest.mark.parametrize("kind", [Rowwise, Noisy])
@pytest.mark.parametrize("attack", [PGD(5), FGSM(), PGD(2, restarts=2)])
@pytest.mark.parametrize("norm", [Linf, L2])
def test_robust_accuracy_is_never_above_accuracy(kind: type, attack: Any, norm: type) -> None:
    for seed in range(3):
        model = kind()
        clean = accuracy(model, X, Y, seed=seed)
        at_zero = robust_accuracy(model, X, Y, attack, norm(0), seed=seed)
        assert torch.equal(at_zero.correct, clean.correct), "radius 0 is not the clean accuracy"
        for eps in (0.001, 0.05, 1.0):
            robust = robust_accuracy(model, X, Y, attack, norm(eps), seed=seed)
            assert not (robust.correct & ~clean.correct).any()
    worst = robust_accuracy(model, X, Y, attack, Linf(1.0))
    assert worst.value <= 1 / 3


def test_robust_accuracy_of_a_linear_model_is_known() -> None:
    """A two-class linear model is right at every x' exactly if its margin exceeds eps ||w||_1."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(36, generator=torch.Generator().manual_seed(3), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            score = ((x.flatten(1) - 0.5) * self.w).sum(1)
            return torch.stack([-score, score], 1)

    model, eps = Two(), 0.03
    x = 0.1 + 0.8 * X  # away from the walls
    score = model(x)[:, 1].detach()
    y = (score > 0).long()
    exact = score.abs() > eps * model.w.abs().sum()
    assert 0.2 < exact.double().mean() < 0.8
    assert torch.equal(robust_accuracy(model, x, y, PGD(10), Linf(eps)).correct, exact)


def test_wrong_images_are_not_attacked() -> None:
    model, seen = Rowwise(), []

    def attack(objective: Any, x: Tensor, threat: Any, *given: Any, ids: Tensor, seed: int) -> Tensor:
        seen.extend(ids.tolist())
        assert torch.equal(x, X[ids]) and torch.equal(given[0], Y[ids])
        return x

    clean = accuracy(model, X, Y)
    robust = robust_accuracy(model, X, Y, attack, Linf(0.1), batch_size=7)
    assert sorted(seen) == clean.correct.nonzero().squeeze(1).tolist()
    assert torch.equal(robust.correct, clean.correct)
    nothing_right = robust_accuracy(model, X, (model(X).argmax(1) + 1) % 3, attack, Linf(0.1))
    assert nothing_right.value == 0


def test_the_verdict_draws_noise_that_the_attack_has_not_seen() -> None:
    model, split = Noisy(), {}

    def attack(*arguments: Any, **keywords: Any) -> Tensor:
        split["before"] = list(model.seeds)
        model.seeds.clear()
        x_adv = PGD(4, restarts=2, keep="best")(*arguments, **keywords)
        split["attack"] = list(model.seeds)
        model.seeds.clear()
        return x_adv

    robust_accuracy(model, X, Y, attack, Linf(0.1), seed=6)
    verdict = {*split["before"], *model.seeds}
    assert len(verdict) == 1, "the image as it is and x' are judged by the same noise"
    assert len(split["attack"]) == len(set(split["attack"])) == 2 * 5
    assert not verdict & set(split["attack"])
    model.seeds.clear()
    accuracy(model, X, Y, seed=6)
    assert set(model.seeds) == verdict == {fold(6, "verdict")}
    assert not any(model.modes)


def test_modes_statistics_and_global_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    model[3].eval()
    modes, before = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    accuracy(model, X, Y)
    robust_accuracy(model, X, Y, PGD(2), Linf(0.1))
    adversarial_images(model, X, Y, PGD(2), Linf(0.1))

    def fails(*_: Any, **__: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        robust_accuracy(model, X, model.eval()(X).argmax(1), fails, Linf(0.1))
    for m, mode in zip(model.modules(), modes, strict=True):
        m.training = mode
    with pytest.raises(ZeroDivisionError):
        adversarial_images(model, X, Y, fails, Linf(0.1))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_adversarial_images_raise_the_loss() -> None:
    for model in (Rowwise(), Noisy()):
        x_adv = adversarial_images(model, X, Y, PGD(10), L2(0.5), seed=1)
        assert torch.equal(x_adv, adversarial_images(model, X, Y, PGD(10), L2(0.5), ids=torch.arange(50), seed=1))
        assert not torch.equal(x_adv, adversarial_images(model, X, Y, PGD(10), L2(0.5), seed=2))
        assert (L2(0).distance(x_adv, X) <= 0.5 + 1e-6).all()

        def loss(x: Tensor, model: nn.Module = model) -> Tensor:
            logits = predict(model, x, ids=torch.arange(50), seed=77)
            return nn.functional.cross_entropy(logits, Y, reduction="none").detach()

        assert (loss(x_adv) > loss(X)).double().mean() > 0.95


def test_the_gradient_is_that_of_the_averaged_probability() -> None:
    """Expectation over transformation: one step goes along the gradient of -log of the mean over the samples."""
    model, ids = Noisy(), torch.arange(50)
    leaf = X.clone().requires_grad_()
    seed = fold(fold(fold(4, "attack"), "FGSM"), "step", 0, 0)
    probability = model(leaf, ids=ids, seed=seed).exp()[ids, Y]
    (g,) = torch.autograd.grad(-probability.log().sum(), leaf)
    expected = (X + 0.01 * g.sign()).clamp(0, 1)
    got = adversarial_images(model, X, Y, FGSM(random_start=False), Linf(0.01), seed=4)
    torch.testing.assert_close(got, expected)


def test_which_models_draw_noise() -> None:
    assert draws_noise(Noisy()) and draws_noise(Classifier(nn.Identity(), nn.Identity()))
    assert not draws_noise(Rowwise())


def test_an_unbounded_attack_leaves_no_more_than_chance() -> None:
    """A trained model with a Gaussian code, attacked through its average with a radius that allows any image."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 16))

        def forward(self, x: Tensor) -> Gaussian:
            code = self.net(x)
            return Gaussian(code[:, :8], nn.functional.softplus(code[:, 8:]) * 0.1 + 0.01)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, head = Encoder(), MLPHead(8, 2)
    x = X.float().repeat(4, 1, 1, 1) * 0.2 + 0.2
    y = torch.arange(200) % 2
    x[y == 1, :, :3] += 0.4
    train_head(encoder, head, x, y, epochs=30, batch_size=50, lr=0.02)
    model = Classifier(encoder, head, 5)
    assert accuracy(model, x, y).value > 0.9
    assert robust_accuracy(model, x, y, PGD(20), Linf(1.0)).value <= 0.5
    curve = against_radius(model, x, y, PGD(10), Linf, [0.0, 0.02, 0.3])
    assert curve["x"] == [0.0, 0.02, 0.3] and curve["y"][0] == accuracy(model, x, y).value
    assert curve["y"][0] >= curve["y"][1] > curve["y"][2]
    assert all(low <= v <= high for low, v, high in zip(curve["low"], curve["y"], curve["high"], strict=True))


def test_a_rate_names_its_attack() -> None:
    assert accuracy(Rowwise(), X, Y).attack == ""
    rate = robust_accuracy(Noisy(), X, Y, PGD(3, restarts=2), Linf(0.1))
    for part in ("PGD-3", "2 restarts", "l-inf", "0.1", "4 samples"):
        assert part in rate.attack and part in rate.to_dict()["attack"]
    assert "samples" not in robust_accuracy(Rowwise(), X, Y, PGD(3), L2(0.1)).attack


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    robust_accuracy(Rowwise(), X, Y, PGD(1), Linf(0.1), batch_size=20, progress="PGD-1")
    assert "PGD-1: image 50/50" in capsys.readouterr().err
    robust_accuracy(Rowwise(), X, Y, PGD(1), Linf(0.1))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": Y[1:]}, ValueError, "y has 49 labels, expected 50"),
        ({"y": Y.float()}, TypeError, "y has dtype torch.float32"),
        ({"y": Y - 1}, ValueError, "y has labels from -1"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, r"y has shape \(0,\)"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, expected at least 1"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    change = dict(change)
    x, y = change.pop("x", X), change.pop("y", Y)
    with pytest.raises(error, match=message):
        accuracy(Rowwise(), x, y, **change)
    with pytest.raises(error, match=message):
        robust_accuracy(Rowwise(), x, y, PGD(2), Linf(0.1), **change)


def test_images_out_of_range() -> None:
    for x in (X + 1, X.masked_fill(X > 0.9, math.nan)):
        with pytest.raises(ValueError, match=r"x has values from .*, expected finite values in \[0, 1\]"):
            adversarial_images(Rowwise(), x, Y, PGD(2), Linf(0.1))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.full((4, 1, 8, 8), 1.5), torch.zeros(4, dtype=torch.int64), "x has values from 1.5"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), 10), "labels from 10 to 10, expected labels in 0 ... 9"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), -1), "labels from -1"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "3 labels, expected 4"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "at least one class index"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(ValueError, match=words):
        accuracy(model, images, labels)
    with pytest.raises(ValueError, match=words):
        robust_accuracy(model, images, labels, PGD(1), Linf(0.1))
