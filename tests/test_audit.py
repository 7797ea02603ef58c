"""The audit catches failures planted on purpose, passes honest models, and leaves no trace on any of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep import data
from robrep.attacks import APGD, FGSM, L2, PGD, Linf
from robrep.audit import QUESTIONS, Audit, Finding, audit
from robrep.audit.report import Limits
from robrep.book import results
from robrep.book.figures import audit_figure
from robrep.book.smoothing import Smoothed
from robrep.encoders import ConvDecoder, ConvEncoder, MLPHead
from robrep.evaluation import Rate, accuracy, robust_accuracy
from robrep.heads import Classifier, train_head
from robrep.methods import AdversarialTraining, Supervised, VAEUrkle
from robrep.training import fit

DIGITS = data.load("digits")
X, Y = DIGITS.images("test")[:60], DIGITS.y_test[:60]
THREAT = Linf(0.15)


class Changed(nn.Module):
    """A model with something done to it."""

    def __init__(self, model: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model, x)


class BatchStatistics(nn.Module):
    """Normalises by the batch, also at test time, and updates its running statistics every time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.norm = model, nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        return self.model(0.35 * x + 0.3)


class Straight(torch.autograd.Function):
    """Rounding with a backward pass that points somewhere else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(3)


def jitter(model: nn.Module, x: Tensor) -> Tensor:
    """A random shift and noise, from the global random state."""
    by = (int(torch.randint(-1, 2, (1,))), int(torch.randint(-1, 2, (1,))))
    return model(torch.roll(x + 0.1 * torch.randn_like(x), by, (2, 3)))


def one_hot(model: nn.Module, x: Tensor) -> Tensor:
    """A sigmoid so steep that outputs are 0 or 1."""
    logits = model(x)
    return torch.sigmoid(300 * (logits - logits.topk(2).values.mean(1, keepdim=True).detach()))


def round_code(model: nn.Module, x: Tensor) -> Tensor:
    return model.head((2 * model.encoder(x)).round() / 2)


def encoder(gaussian: bool) -> ConvEncoder:
    return ConvEncoder(1, 16, gaussian=gaussian, widths=(16, 32, 32), strides=(1, 2, 2), groups=0)


@pytest.fixture(scope="module")
def standard() -> nn.Module:
    """A model that is not robust at all: whatever robustness a change of it shows is not real."""
    torch.manual_seed(0)
    f, h = encoder(False), nn.Linear(16, 10)
    fit(Supervised(f, h), DIGITS.x_train, DIGITS.y_train, epochs=4, batch_size=32, lr=1e-2)
    return Classifier(f, h).eval()


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    torch.manual_seed(0)
    f, h = encoder(False), nn.Linear(16, 10)
    method = AdversarialTraining(f, h, PGD(3), THREAT)
    fit(method, DIGITS.x_train, DIGITS.y_train, epochs=4, batch_size=32, lr=5e-3)
    return nn.Sequential(f, h).eval()


@pytest.fixture(scope="module")
def sampling() -> nn.Module:
    torch.manual_seed(0)
    f, h, decoder = encoder(True), MLPHead(16, 10), ConvDecoder((1, 8, 8), 16, widths=(32, 16, 16))
    method = VAEUrkle(f, decoder, PGD(2), THREAT, beta_robust=0.3)
    fit(method, DIGITS.x_train, DIGITS.y_train, epochs=12, batch_size=32, lr=8e-3)
    train_head(f, h, DIGITS.x_train, DIGITS.y_train, epochs=30, batch_size=64)
    return Classifier(f, h).eval()


PLANTED: dict[str, tuple[Callable[[nn.Module], nn.Module], dict[str, str]]] = {
    "saturated logits": (
        lambda m: Changed(m, lambda model, x: 1e4 * model(x)),
        {"zero-gradient": "broken", "loss": "broken", "radius": "broken"},
    ),
    "saturated sigmoid": (
        lambda m: Changed(m, one_hot),
        {"zero-gradient": "broken", "radius": "broken"},
    ),
    "rounded input": (
        lambda m: Changed(m, lambda model, x: model((8 * x).round() / 8)),
        {"zero-gradient": "broken", "landscape": "broken", "black-box": "broken", "radius": "broken"},
    ),
    "rounded activations": (
        lambda m: Changed(m, round_code),
        {"zero-gradient": "broken", "landscape": "broken", "black-box": "broken", "radius": "broken"},
    ),
    "random transformation": (lambda m: Changed(m, jitter), {"repeat": "suspicious", "landscape": "broken"}),
    "detached graph": (lambda m: Changed(m, lambda model, x: model(x.detach())), {"graph": "broken"}),
    "no gradient at all": (
        lambda m: Changed(m, lambda model, x: torch.from_numpy(model(x).detach().numpy())),
        {"graph": "broken"},
    ),
    "batch statistics": (BatchStatistics, {"batch": "broken"}),
    "wrong backward pass": (
        lambda m: Changed(m, lambda model, x: model(Straight.apply(x))),
        {"slope": "broken", "landscape": "broken", "black-box": "broken"},
    ),
    "half a gradient": (
        lambda m: Changed(m, lambda model, x: 0.2 * model(x) + 0.8 * model(x.detach())),
        {"slope": "broken"},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_failures(name: str, standard: nn.Module) -> None:
    change, expected = PLANTED[name]
    found = audit(change(standard).eval(), X, Y, THREAT)
    assert not found.passed
    assert {check: found[check].verdict for check in expected} == expected, str(found)
    for check in expected:
        finding = found[check]
        assert finding.advice and finding.numbers and re.search(r"\d|The error was", finding.text)
        assert finding.advice in str(found) and finding.question in found._repr_html_()
    assert "Not passed" in str(found)
    assert audit_figure(found).layout.meta["alt"].startswith("An audit of PGD-20 in the l-inf ball of radius 0.15, not")


def test_detached_graph_still_meets_the_black_box(standard: nn.Module) -> None:
    found = audit(Changed(standard, lambda model, x: model(x.detach())), X, Y, THREAT)
    assert found["black-box"].verdict == "broken" and found.worst.value < 0.6 and found.robust is found.clean
    assert set(found.left_out) >= {"zero-gradient", "landscape", "radius"} and found.landscape is None
    assert "There is no gradient." in str(found) and not found.curve["x"]
    with pytest.raises(KeyError, match="'radius' was not checked"):
        found["radius"]


# --- honest models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(robust: nn.Module) -> Audit:
    return audit(robust, X, Y, THREAT, progress="audit")


def test_passes_an_adversarially_trained_network(honest: Audit, robust: nn.Module) -> None:
    assert honest.passed, str(honest)
    assert {f.check for f in honest.findings} == set(QUESTIONS) - {"finite", "noise", "average"}
    assert all(f.verdict == "fine" and not f.advice for f in honest.findings) and not honest.left_out
    assert honest.clean.value == accuracy(robust, X, Y).value > 0.9
    assert honest.clean.value > honest.robust.value > 0.3
    values = [rate.value for rate in honest.stages.values()]
    assert values == sorted(values, reverse=True) and honest.worst.value == values[-1]
    assert abs(honest.robust.value - robust_accuracy(robust, X, Y, PGD(20), THREAT).value) <= 0.05
    x, y = honest.curve["x"], honest.curve["y"]
    assert x == sorted(x) and x[0] == 0 and x[-1] == 1 and 0.15 in x
    assert y[0] == honest.clean.value and y[x.index(0.15)] == honest.robust.value and y[-1] <= 0.05
    assert honest.landscape is not None and honest.landscape.values.shape == (21, 21)
    middle = honest.landscape.values[10]
    assert middle[-1] > middle[10] > middle[0]  # uphill along the gradient
    assert "Passed: 11 checks" in str(honest)


def test_passes_a_network_that_samples(sampling: nn.Module) -> None:
    found = audit(sampling, X, Y, THREAT)
    assert found.passed, str(found)
    assert {f.check for f in found.findings} == set(QUESTIONS) - {"finite"}
    assert 0 < found["noise"].numbers["kept"] <= 1.2 and found["noise"].numbers["spread"] > 0


@pytest.mark.parametrize("row", ["at", "vae_urkle"])
def test_passes_the_recorded_networks(row: str) -> None:
    run = results.load_run("vae_urkle", results.run_name("demo", "digits", row, 0))
    s = run.settings
    f = ConvEncoder(
        1, s["dim"], gaussian=row == "vae_urkle", widths=s["widths"], strides=s["strides"], groups=s["groups"]
    )
    h = MLPHead(s["dim"], 10)
    results.load_weights(run, encoder=f, head=h)
    found = audit(Classifier(f, h).eval(), DIGITS.images("test")[:100], DIGITS.y_test[:100], THREAT)
    assert found.passed, str(found)
    assert ("noise" in {x.check for x in found.findings}) == (row == "vae_urkle")
    assert found.robust.value > 0.6


def test_other_threats_and_attacks(robust: nn.Module) -> None:
    found = audit(robust, X, Y, L2(0.6), attack=APGD(20))
    assert found.passed, str(found)
    assert found.curve["x"][-1] == pytest.approx(8.0) and found.radius == pytest.approx(0.6)
    weak = audit(robust, X, Y, THREAT, attack=FGSM())
    assert "20 steps" in weak.stages and weak.attack == "FGSM, random start"
    short = audit(robust, X, Y, Linf(torch.full((60,), 0.15)), attack=PGD(1, 0.01))
    assert short["steps"].verdict == "broken" and "20 steps" in short["steps"].text
    assert short.radius == pytest.approx(0.15)


def test_smoothed_model(standard: nn.Module) -> None:
    """A model that draws noise by seed and has no mean code."""
    found = audit(Smoothed(standard, 0.1, 5).eval(), X[:20], Y[:20], THREAT)
    assert found["repeat"].verdict == found["batch"].verdict == "fine"
    assert found["average"].numbers.keys() == {"average"} and "5 samples" in found["noise"].text


def test_two_classes(robust: nn.Module) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = x[:, 0, :, :4].mean((1, 2)) - x[:, 0, :, 4:].mean((1, 2))
            return 5 * torch.stack([score, -score], 1)

    y = Two()(X).argmax(1)
    found = audit(Two(), X, y, Linf(0.02))
    assert found.passed, str(found)
    assert found["zero-gradient"].numbers.keys() == {"cross_entropy", "margin"}


# --- no trace, and the same twice ------------------------------------------------------------------------------------


def test_leaves_no_trace(standard: nn.Module) -> None:
    model = BatchStatistics(Changed(standard, jitter)).train()
    model.norm.eval()
    model.norm.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [(p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    found = audit(model, X[:16], Y[:16], THREAT)
    assert found["repeat"].numbers["changed"] == found["repeat"].numbers["draws"] == 1
    assert "changes its buffers" in found["repeat"].text
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for p, (needed, grad, value) in zip(model.parameters(), grads, strict=True):
        assert p.requires_grad == needed and p.grad is grad and (grad is None or torch.equal(grad, value))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())


def test_restores_after_an_exception(standard: nn.Module) -> None:
    calls = []

    def stops(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(torch.rand(1))
        if len(calls) > 3:
            raise KeyError("stop")
        return model(x)

    model, before = Changed(standard, stops).train(), torch.get_rng_state()
    with pytest.raises(KeyError, match="stop"):
        audit(model, X, Y, THREAT)
    assert model.training and torch.equal(before, torch.get_rng_state())


def test_repeats_itself(robust: nn.Module, honest: Audit) -> None:
    again = audit(robust, X, Y, THREAT)
    assert [f.numbers for f in again.findings] == [f.numbers for f in honest.findings]
    assert str(again) == str(honest)
    other = audit(robust, X, Y, THREAT, seed=1)
    assert [f.numbers for f in other.findings] != [f.numbers for f in honest.findings] and other.passed


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input(robust: nn.Module) -> None:
    with pytest.raises(ValueError, match="expected a radius above 0"):
        audit(robust, X, Y, Linf(0.0))
    with pytest.raises(TypeError, match="threat is a float"):
        audit(robust, X, Y, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="y has 3 labels"):
        audit(robust, X, Y[:3], THREAT)
    with pytest.raises(TypeError, match="x has dtype torch.int64"):
        audit(robust, X.long(), Y, THREAT)
    with pytest.raises(ValueError, match="labels from"):
        audit(robust, X, Y + 5, THREAT)
    wrong = (robust(X).argmax(1) + 1) % 10
    with pytest.raises(ValueError, match="none of 60 images right"):
        audit(robust, X, wrong, THREAT)
    with pytest.raises(ValueError, match=r"model gives shape \(60, 10, 1\), expected logits: .* of shape \(60, C\)"):
        audit(Changed(robust, lambda m, x: m(x)[..., None]), X, Y, THREAT)


def test_outputs_and_gradients_that_are_no_numbers(robust: nn.Module) -> None:
    found = audit(Changed(robust, lambda m, x: m(x) * (torch.nan if len(x) > 1 else 1.0)), X, Y, THREAT)
    assert [f.check for f in found.findings] == ["finite"] and found["finite"].verdict == "broken"
    assert "60 of 60 images" in found["finite"].text and audit_figure(found).layout.meta["alt"]
    root = audit(Changed(robust, lambda m, x: m(x) + (x - x).sqrt().flatten(1).sum(1, keepdim=True)), X, Y, THREAT)
    assert root["finite"].verdict == "broken" and "gradient" in root["finite"].text


def test_report() -> None:
    fine = Finding("graph", "fine", "It does.", advice="unneeded")
    assert not fine.advice and str(fine).startswith("✓ fine")
    with pytest.raises(ValueError, match="check is 'graphs'.*did you mean 'graph'"):
        Finding("graphs", "fine", "")
    with pytest.raises(ValueError, match="verdict is 'good'"):
        Finding("graph", "good", "")  # type: ignore[arg-type]
    rate = Rate(torch.tensor([True, False]))
    bad = Finding("steps", "suspicious", "a < b", advice="look & see")
    found = Audit([fine, bad], {"batch": "Why."}, rate, {"PGD": rate}, {}, None, "PGD", "ball", 0.1)
    assert not found.passed and "0 broken and 1 suspicious of 2" in str(found) and found["graph"] is fine
    assert str(found).splitlines()[2].startswith("? suspicious")
    assert "a &lt; b" in found._repr_html_() and "look &amp; see" in found._repr_html_() and "Why." in str(found)
    assert "color" not in found._repr_html_()
    limits = Limits(0.1, 0.2)
    assert [limits.verdict(v) for v in (0.1, 0.15, 0.3)] == ["fine", "suspicious", "broken"]


def test_figure(honest: Audit) -> None:
    fig = audit_figure(honest)
    text = fig.to_json()
    go.Figure(json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON")))
    assert len(text) < 60_000 and {t.type for t in fig.data} <= {"scatter", "bar", "heatmap", "contour"}
    assert fig.layout.paper_bgcolor is None and fig.layout.plot_bgcolor is None and fig.layout.font.color is None
    assert fig.layout.height and fig.layout.autosize and fig.layout.width is None and "\n" not in fig.layout.meta["alt"]
    assert f"PGD-20 {100 * honest.robust.value:.1f} %" in fig.layout.meta["alt"]
    assert list(fig.data[1].y) == ["no attack", *honest.stages]
    alone = audit_figure(Audit([], {}, honest.clean, {}, {"x": [], "y": []}, None, "PGD", "ball", 0.1))
    assert len(alone.data) == 1
