"""Mutual information: estimators against loops and known truths, linear vulnerability against Monte Carlo, critics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robrep.attacks import PGD, Adversary, Linf
from robrep.book import worst_case_mi
from robrep.book.early_stopping import train_head_stopped
from robrep.book.worst_case_mi import (
    CriticOf,
    Neuron,
    VectorCritic,
    WorstCaseCriticOf,
    correlated_gaussians,
    correlated_gaussians_ratio,
    dual_exponent,
    entropy_drop,
    estimate_information,
    fano_accuracy,
    feature_vulnerability,
    linear_vulnerability,
    read_off,
    representation_vulnerability,
)
from robrep.encoders import Critic, InfoMaxEncoder, InfoMaxHead
from robrep.encoders.infomax import Normalize, ResidualUnits
from robrep.evaluation import robust_accuracy
from robrep.heads import Classifier
from robrep.information import ESTIMATORS, donsker_varadhan, info_nce, information, jensen_shannon
from robrep.methods import InfoMax, WorstCaseInfoMax, information_attack
from robrep.training import fit


def random_scores(seed: int, n: int = 5) -> torch.Tensor:
    return 2 * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- estimators -----------------------------------------------------------------------------------------------------


def slow(u: list[list[float]]) -> dict[str, float]:
    """The four estimators, entry by entry."""
    n, pairs = len(u), [(i, j) for i in range(len(u)) for j in range(len(u)) if i != j]
    joint = sum(u[i][i] for i in range(n)) / n

    def softplus(t: float) -> float:
        return math.log1p(math.exp(t))

    return {
        "dv": joint - math.log(sum(math.exp(u[i][j]) for i, j in pairs) / len(pairs)),
        "dv-counted": joint - math.log((n + sum(math.exp(u[i][j]) for i, j in pairs)) / len(pairs)),
        "nce": sum(u[i][i] - math.log(sum(map(math.exp, u[i])) / n) for i in range(n)) / n,
        "js": 2 * math.log(2)
        - sum(softplus(-u[i][i]) for i in range(n)) / n
        - sum(softplus(u[i][j]) for i, j in pairs) / len(pairs),
    }


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", range(3))
def test_estimators_against_loops(name: str, seed: int) -> None:
    scores = random_scores(seed)
    assert ESTIMATORS[name](scores).item() == pytest.approx(slow(scores.tolist())[name], abs=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_have_gradients_and_locations(name: str) -> None:
    scores = torch.stack([random_scores(s) for s in range(3)]).requires_grad_()
    each = ESTIMATORS[name](scores)
    assert each.shape == (3,)
    assert torch.allclose(each[1], ESTIMATORS[name](scores[1]))
    assert information(scores, name).item() == pytest.approx(each.mean().item())
    assert torch.autograd.gradcheck(ESTIMATORS[name], scores)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 30), st.integers(2, 9))
def test_invariance_and_ceilings(seed: int, shift: float, n: int) -> None:
    scores = random_scores(seed, n)
    assert donsker_varadhan(scores + shift).item() == pytest.approx(donsker_varadhan(scores).item(), abs=1e-9)
    assert info_nce(scores + shift).item() == pytest.approx(info_nce(scores).item(), abs=1e-9)
    assert info_nce(scores) <= math.log(n) and jensen_shannon(scores) <= 2 * math.log(2)
    assert donsker_varadhan(scores, "counted") <= donsker_varadhan(scores) + 1e-12


def test_constant_critic_knows_nothing() -> None:
    zero = torch.zeros(1, 6, 6)
    assert all(information(zero, name).item() == pytest.approx(0.0, abs=1e-6) for name in ("dv", "nce", "js"))


def test_released_form_hides_behind_large_scores() -> None:
    """The counted diagonal costs much where the critic's scores are low and nothing where they are high."""
    x, z = correlated_gaussians(1024, 2, 1.347, seed=0)
    scores = correlated_gaussians_ratio(x.double(), z.double(), 1.347)
    lost = [(donsker_varadhan(scores) - donsker_varadhan(scores + s, "counted")).item() for s in (-6.0, 0.0, 6.0)]
    assert lost[0] > 0.3 and lost[0] > lost[1] > lost[2] >= 0 and lost[2] < 1e-4


def test_exact_ratio() -> None:
    """The closed form of the density ratio is the one of torch.distributions, and DV at it is the truth."""
    x, z = correlated_gaussians(1500, 3, 1.0, seed=1)
    x, z = x.double(), z.double()
    rho = math.sqrt(1 - math.exp(-2 / 3))
    pair = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    )
    both = torch.stack(torch.broadcast_tensors(x[:4, None], z[None, :4]), -1)
    one = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    ratio = (pair.log_prob(both) - one.log_prob(both).sum(-1)).sum(-1)
    assert torch.allclose(correlated_gaussians_ratio(x[:4], z[:4], 1.0), ratio)
    assert donsker_varadhan(correlated_gaussians_ratio(x, z, 1.0)).item() == pytest.approx(1.0, abs=0.05)
    empirical = torch.corrcoef(torch.stack([x[:, 0], z[:, 0]]))[0, 1].item()
    assert empirical == pytest.approx(rho, abs=0.03)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, 1)])
def test_bad_scores_are_refused(bad: torch.Tensor) -> None:
    for function in ESTIMATORS.values():
        with pytest.raises(ValueError, match="scores has shape"):
            function(bad)
    with pytest.raises(ValueError, match="masked is 'zero'"):
        donsker_varadhan(torch.zeros(2, 2), "zero")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator is 'dvv', expected one of 'dv'"):
        information(torch.zeros(1, 2, 2), "dvv")


# --- exact vulnerability --------------------------------------------------------------------------------------------


def a_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float, float]:
    g = torch.Generator().manual_seed(seed)
    d = 2 + seed % 4
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    w, theta = torch.randn(2, d, generator=g, dtype=torch.float64)
    eps, p = 0.05 + 0.8 * float(torch.rand((), generator=g)), (math.inf, 2.0, 1.0, 3.0)[seed % 4]
    return w / w.norm(), theta, root @ root.mT + 0.3 * torch.eye(d, dtype=torch.float64), eps, p


def monte_carlo(w, theta, covariance, eps, p, n=400_000, seed=0) -> tuple[float, float]:
    """AG and RV by drawing images and moving those that can change sides, with an explicit worst perturbation."""
    g = torch.Generator().manual_seed(seed)
    y = 2.0 * torch.randint(0, 2, (n,), generator=g) - 1
    x = (
        y[:, None] * theta
        + torch.randn(n, len(w), generator=g, dtype=torch.float64) @ torch.linalg.cholesky(covariance).mT
    )
    if p == 1:
        push = torch.zeros_like(w)
        push[w.abs().argmax()] = w[w.abs().argmax()].sign()
    elif math.isinf(p):
        push = w.sign()
    else:
        q = dual_exponent(p)
        push = w.sign() * w.abs() ** (q - 1)
        push = push / push.abs().pow(p).sum() ** (1 / p)
    s, sign = x @ w, 1.0 if w @ theta >= 0 else -1.0
    wrong = sign * s * y < 0
    wrong_attacked = sign * ((x - (sign * y)[:, None] * eps * push) @ w) * y < 0
    gap = (wrong_attacked.double() - wrong.double()).mean().item()
    up = (((x + eps * push) @ w > 0).double().mean()).item()  # all that can be moved to one side is moved
    down = (((x - eps * push) @ w > 0).double().mean()).item()
    clean = (s > 0).double().mean()
    entropies = [-(t * math.log(t) + (1 - t) * math.log(1 - t)) if 0 < t < 1 else 0.0 for t in (up, down)]
    h = -(clean * clean.log() + (1 - clean) * (1 - clean).log()).item()
    return gap, h - min(entropies)


@pytest.mark.parametrize("seed", range(20))
def test_theorem_3_2(seed: int) -> None:
    """Exact and by Monte Carlo: the corrected order holds, the printed one cannot."""
    case = a_case(seed)
    v = linear_vulnerability(*case)
    gap, value = monte_carlo(*case, seed=seed)
    assert v.gap == pytest.approx(gap, abs=4e-3) and v.value == pytest.approx(value, abs=6e-3)
    assert v.low <= v.value + 1e-12 and v.value <= v.high + 1e-12
    assert v.gap > 0
    printed = v.high <= v.value and v.value <= v.low  # F(AG) <= RV <= F(AG / 2)
    assert not printed
    assert v.low < v.high


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 5), st.sampled_from([1.0, 1.5, 2.0, 4.0, math.inf]))
def test_corrected_order_always(seed: int, eps: float, p: float) -> None:
    w, theta, covariance, _, _ = a_case(seed)
    v = linear_vulnerability(w, theta, covariance, eps, p)
    assert v.low <= v.value + 1e-12 and v.value <= v.high + 1e-12
    assert 0 <= v.moved <= 0.5 and 0 <= v.gap <= 1
    flipped = linear_vulnerability(-w, theta, covariance, eps, p)
    assert flipped == pytest.approx(v)


def test_known_values_and_errors() -> None:
    assert entropy_drop(0.1).item() == pytest.approx(0.020136, abs=1e-6)
    assert entropy_drop(0.05).item() == pytest.approx(0.005008, abs=1e-6)
    assert entropy_drop(0.5).item() == pytest.approx(math.log(2))
    eye = torch.eye(2, dtype=torch.float64)
    assert linear_vulnerability(eye[0], eye[0], eye, 0.0).value == 0
    assert linear_vulnerability(eye[0], eye[0], eye, 100.0).value == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="t is 0.6"):
        entropy_drop(0.6)
    with pytest.raises(ValueError, match="variance of w.x"):
        linear_vulnerability(0 * eye[0], eye[0], eye, 0.1)
    with pytest.raises(ValueError, match="have shapes"):
        linear_vulnerability(eye[0], eye[0], eye[:1], 0.1)
    with pytest.raises(ValueError, match="p is 0.5"):
        linear_vulnerability(eye[0], eye[0], eye, 0.1, 0.5)


def test_fano() -> None:
    assert fano_accuracy(1.08, 10) == pytest.approx(0.770, abs=5e-4)
    assert fano_accuracy(0.0, 10) == pytest.approx(0.301, abs=5e-4)
    assert fano_accuracy(5.0, 10) == 1.0
    with pytest.raises(ValueError, match="classes is 1"):
        fano_accuracy(1.0, 1)


# --- networks -------------------------------------------------------------------------------------------------------


def test_sizes_of_the_print() -> None:
    for shape, flat, locations in (((3, 32, 32), 4096, 64), ((1, 28, 28), 2304, 49)):
        f, t = InfoMaxEncoder(shape).eval(), Critic(shape).eval()
        assert f.code[1].in_features == flat and t.locations == locations
        assert isinstance(f.features[0], Normalize) == (shape[0] == 3)
        x = torch.rand(2, *shape)
        with torch.no_grad():
            assert f(x).shape == (2, 64) and t(x, f(x)).shape == (locations, 2, 2)
            assert Critic(shape, 10, units=8, whole=True).eval()(x, f(x)[:, :10]).shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"shape is \(1, 4, 4\), expected sides of at least 8 pixels"):
        InfoMaxEncoder((1, 4, 4))


def test_shortcut_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    for inputs, units in ((3, 7), (7, 3)):
        weight = ResidualUnits(inputs, units).shortcut.weight.detach()
        same = min(inputs, units)
        assert torch.equal(weight[:same, :same].diagonal(), torch.ones(same))
        assert (weight - torch.eye(units, inputs)).abs().max() <= 0.01


def test_critic_scores_pairs() -> None:
    """Entry (i, j) at location l is the inner product of image i's vector there and code j's."""
    torch.manual_seed(0)
    t, x, z = Critic((1, 8, 8), 5, widths=(4,), units=6).eval(), torch.rand(3, 1, 8, 8), torch.randn(3, 5)
    with torch.no_grad():
        scores, b = t(x, z), t.code(z)
        rows = t.features(x)
        for i, j, place in ((0, 2, 5), (2, 1, 15)):
            a = t.image(rows[i, :, place // 4, place % 4][None])[0]
            assert scores[place, i, j].item() == pytest.approx(float(a @ b[j]), rel=1e-4, abs=1e-5)


def test_copies_are_independent_critics() -> None:
    torch.manual_seed(0)
    x, z = torch.randn(2, 6, 3, 2).unbind(0)
    many, one = VectorCritic(2, 2, units=4, width=8, copies=3), VectorCritic(2, 2, units=4, width=8)
    with torch.no_grad():
        scores = many(x, z)
        for k in range(3):
            one.load_state_dict({key: value[k : k + 1] for key, value in many.state_dict().items()})
            assert torch.allclose(one(x[:, k], z[:, k])[0], scores[k], atol=1e-6)
    grads = torch.autograd.grad(many(x, z)[1].sum(), list(many.parameters()))
    assert all(not g[0].any() and not g[2].any() for g in grads) and any(g[1].any() for g in grads)


# --- methods --------------------------------------------------------------------------------------------------------


def networks(dim: int = 4, whole: bool = False) -> tuple[InfoMaxEncoder, Critic]:
    torch.manual_seed(0)
    return (
        InfoMaxEncoder((1, 8, 8), dim, widths=(4, 8), hidden=16),
        Critic((1, 8, 8), dim, widths=(4,), units=8, whole=whole),
    )


X, IDS = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(12)
PGD_3 = PGD(3, random_start=False, keep="best")


def test_worst_case_is_worse_and_leaves_everything_alone() -> None:
    f, t = networks()
    fit(InfoMax(f, t, "nce"), X, torch.zeros(12, dtype=torch.int64), epochs=20, batch_size=12, lr=1e-2)
    before = {k: v.clone() for k, v in (f.state_dict() | {f"t.{k}": v for k, v in t.state_dict().items()}).items()}
    grads = [p.grad for p in f.parameters()]
    f.train()
    for detached in (True, False):
        adversary = Adversary(PGD_3, Linf(0.1))
        x_adv = information_attack(f, t, X, adversary, estimator="nce", detached=detached, ids=IDS, seed=0)
        assert (x_adv - X).abs().max() <= 0.1 + 1e-6 and not x_adv.requires_grad
        f.eval(), t.eval()
        with torch.no_grad():
            assert information(t(x_adv, f(x_adv)), "nce") < information(t(X, f(X)), "nce")
        f.train()
    after = f.state_dict() | {f"t.{k}": v for k, v in t.state_dict().items()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [p.grad for p in f.parameters()] == grads
    assert f.training


def test_detached_gradient_goes_through_the_code_alone() -> None:
    f, t = networks()
    f.eval(), t.eval()
    x = X.clone().requires_grad_()
    (through_code,) = torch.autograd.grad(information(t(X, f(x)), "dv"), x)
    seen = []

    def one_step(objective, x_, threat, *given, ids, seed):
        x_ = x_.clone().requires_grad_()
        seen.append(torch.autograd.grad(objective(x_).mean(), x_)[0])
        assert objective.batch
        return x_.detach()

    information_attack(f, t, X, Adversary(one_step, Linf(0.1)), ids=IDS, seed=0)
    assert torch.allclose(seen[0], -through_code, atol=1e-7)
    information_attack(f, t, X, Adversary(one_step, Linf(0.1)), detached=False, ids=IDS, seed=0)
    assert not torch.allclose(seen[1], -through_code, atol=1e-5)


def test_the_attack_refuses_early_leaving() -> None:
    f, t = networks()
    with pytest.raises(ValueError, match="couples it"):
        information_attack(f, t, X, Adversary(PGD(2, leave_early=True), Linf(0.1)), ids=IDS, seed=0)


def test_methods_give_the_estimate() -> None:
    f, t = networks()
    plain, worst = InfoMax(f, t), WorstCaseInfoMax(f, t, PGD(2, random_start=False), Linf(0.0))
    terms = plain(X, None, IDS, 0)
    assert set(terms) == {"minus_information"}
    with torch.no_grad():
        assert terms["minus_information"].item() == pytest.approx(-donsker_varadhan(t(X, f(X))).mean().item())
    assert worst(X, None, IDS, 0)["minus_information"].item() == pytest.approx(
        terms["minus_information"].item(), abs=1e-5
    )
    sum(plain(X, None, IDS, 0).values()).backward()
    assert all(p.grad is not None for p in plain.parameters())
    with pytest.raises(ValueError, match="estimator is 'mine'"):
        InfoMax(f, t, "mine")


def test_augmentation_comes_before_the_attack() -> None:
    f, t = networks()
    dark = WorstCaseInfoMax(f, t, PGD_3, Linf(0.0), augment=lambda x, ids, seed: 0.5 * x)
    plain = InfoMax(f, t)
    found = dark(X, None, IDS, 0)["minus_information"].item()
    assert found == pytest.approx(plain(0.5 * X, None, IDS, 0)["minus_information"].item(), abs=1e-5)


# --- estimates ------------------------------------------------------------------------------------------------------


def test_mine_on_gaussians() -> None:
    torch.manual_seed(0)
    x, z = correlated_gaussians(6000, 2, 1.0, seed=0)
    held = correlated_gaussians(2000, 2, 1.0, seed=1)
    found = estimate_information(VectorCritic(2, 2), x, z, held, epochs=8, batch_size=256, lr=2e-3)
    assert found == pytest.approx(1.0, abs=0.1)
    nothing = estimate_information(
        VectorCritic(2, 2), x, z.flip(0), (held[0], held[1].flip(0)), epochs=2, batch_size=256, lr=2e-3
    )
    assert nothing == pytest.approx(0.0, abs=0.05)


def test_read_off_leaves_a_ragged_batch_out() -> None:
    t = VectorCritic(2, 2)
    x, z = torch.randn(2, 7, 2).unbind(0)
    assert read_off(t, x, z, batch_size=3) == pytest.approx(
        sum(information(t(x[i : i + 3], z[i : i + 3])).item() for i in (0, 3)) / 2, abs=1e-6
    )


def test_vulnerability() -> None:
    """An encoder of mean brightness is less vulnerable than one that magnifies a single pixel."""

    class Linear(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) @ self.weight.T

    g = torch.Generator().manual_seed(0)
    level = torch.rand(200, 1, 1, 1, generator=g)
    x = (0.9 * level + 0.1 * torch.rand(200, 1, 8, 8, generator=g)).clamp(0, 1)
    found = {}
    for name, weight in (("mean", torch.ones(1, 64) / 64), ("noise", 4 * torch.eye(64)[:1] - 4 * torch.eye(64)[1:2])):
        f = Linear(weight)
        before = f.weight.detach().clone()
        found[name] = representation_vulnerability(
            f,
            lambda: Critic((1, 8, 8), 1, widths=(4,), units=8, whole=True),
            x[:150],
            x[150:],
            PGD(3, random_start=False, keep="best"),
            Linf(0.1),
            estimator="nce",
            epochs=6,
            batch_size=50,
            lr=5e-3,
        )
        assert torch.equal(f.weight, before) and f.weight.requires_grad
    assert found["mean"].normal > found["noise"].normal and found["mean"].worst > found["noise"].worst
    assert found["mean"].value == found["mean"].normal - found["mean"].worst


def test_the_second_critic_is_read_off_on_attacked_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both critics are read off on held-out pairs of an image and its own code: clean ones, then attacked ones."""
    f, _ = networks()
    read, real = [], worst_case_mi.read_off

    def watched(critic: nn.Module, x: torch.Tensor, z: torch.Tensor, *rest: object) -> float:
        read.append((x.clone(), z.clone()))
        return real(critic, x, z, *rest)

    monkeypatch.setattr(worst_case_mi, "read_off", watched)
    representation_vulnerability(
        f, lambda: networks()[1], X, X, PGD(3, random_start=False), Linf(0.1), estimator="nce", epochs=1, batch_size=6
    )
    (clean, _), (found, _) = read
    assert torch.equal(clean, X)
    change = (found - X).abs().flatten(1).amax(1)
    assert (change > 0.05).all() and (change <= 0.1 + 1e-6).all()
    for x, z in read:
        torch.testing.assert_close(z, f.eval()(x))


def test_neurons() -> None:
    f, _ = networks()
    f.eval()
    with torch.no_grad():
        maps = f.features(X)
        assert torch.equal(Neuron(f.features, 3, (1, 0))(X), maps[:, 3, 1, 0, None])
        assert torch.allclose(Neuron(f.features, 3)(X)[:, 0], maps[:, 3].mean((1, 2)))
    values = feature_vulnerability(
        f.features, [0, 3], lambda: Critic((1, 8, 8), 1, widths=(4,), units=4, whole=True), X, X,
        PGD(1, random_start=False), Linf(0.1), epochs=1, batch_size=6, estimator="nce",
    )  # fmt: skip
    assert len(values) == 2


def test_critic_alone_learns() -> None:
    f, t = networks()
    before = [p.detach().clone() for p in f.parameters()]
    z = f.eval()(X).detach()
    history = fit(CriticOf(t, z, "nce"), X, torch.zeros(12, dtype=torch.int64), epochs=12, batch_size=12, lr=1e-2)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(before, f.parameters(), strict=True))
    method = WorstCaseCriticOf(f, t, PGD(1, random_start=False), Linf(0.1), "nce").train()
    assert not f.training and t.training
    sum(method(X, None, IDS, 0).values()).backward()
    assert all(p.grad is None for p in f.parameters())


def test_early_stopping_keeps_the_best_epoch() -> None:
    f, _ = networks()
    y = (X.flatten(1)[:, 0] > 0.5).long()
    head = InfoMaxHead(4, 2, hidden=8)
    history = train_head_stopped(f, head, X, y, (X, y), PGD(2, random_start=False), Linf(0.05), epochs=5, lr=3e-2)
    judged = [row["robust"] for row in history]
    again = robust_accuracy(Classifier(f, head), X, y, PGD(2, random_start=False), Linf(0.05)).value
    assert again == max(judged) and history[judged.index(max(judged))]["kept"] == 1.0
    rare = train_head_stopped(f, head, X, y, (X, y), PGD(2), Linf(0.05), epochs=5, every=3)
    assert ["robust" in row for row in rare] == [False, False, True, False, True]
