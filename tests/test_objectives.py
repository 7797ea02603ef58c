"""Objectives for classifiers: closed forms against plain loops, invariances, few classes, gradients, bad labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import APGD, Linf, scores
from robrep.gaussians import Gaussian
from robrep.heads import Classifier
from robrep.objectives import (
    LOSSES,
    classifier_objective,
    cross_entropy,
    dlr,
    likely_targets,
    margin,
    predict,
    targeted_dlr,
    targeted_margin,
)

CLASSES = pytest.mark.parametrize("classes", [2, 3, 4, 10])


def case(classes: int, n: int = 60, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, and targets that are no labels."""
    g = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=g)
    target = (y + torch.randint(1, classes, (n,), generator=g)) % classes
    return logits.to(dtype), y, target


def by_hand(name: str, z: list[float], y: int, t: int) -> float:
    other = max(v for k, v in enumerate(z) if k != y)
    top = sorted(z, reverse=True)
    if name == "cross_entropy":
        return math.log(sum(math.exp(v - z[y]) for v in z))
    if name == "margin":
        return other - z[y]
    if name == "targeted_margin":
        return z[t] - z[y]
    if name == "dlr":
        return (other - z[y]) / (top[0] - top[2] if len(z) > 2 else 1)
    last = {2: 1.0, 3: top[0] - top[-1]}.get(len(z))
    return (z[t] - z[y]) / (top[0] - (top[2] + top[3]) / 2 if last is None else last)


@CLASSES
@pytest.mark.parametrize("name", LOSSES)
def test_closed_forms(name: str, classes: int) -> None:
    logits, y, target = case(classes)
    given = (y, target) if name.startswith("targeted") else (y,)
    expected = [by_hand(name, z, i, t) for z, i, t in zip(logits.tolist(), y.tolist(), target.tolist(), strict=True)]
    got = LOSSES[name](logits, *given)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    for narrow in (torch.float32, torch.bfloat16):  # in float32, whatever came
        small = LOSSES[name](logits.to(narrow), *given)
        assert small.dtype == torch.float32
        torch.testing.assert_close(
            small, LOSSES[name](logits.to(narrow).double(), *given).float(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_agrees_with_the_reference(classes: int) -> None:
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="pip install pyautoattack")
    logits, y, target = case(classes)
    theirs = base.APGDAttack_targeted(None, eps=0.1)
    torch.testing.assert_close(dlr(logits, y), theirs.dlr_loss(logits, y))
    if classes > 3:
        theirs.y_target = target
        torch.testing.assert_close(targeted_dlr(logits, y, target), theirs.dlr_loss_targeted(logits, y))


@CLASSES
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name: str, classes: int) -> None:
    logits, y, target = case(classes, n=8)
    given = (y, target) if name.startswith("targeted") else (y,)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, *given), logits.requires_grad_())
    (g,) = torch.autograd.grad(LOSSES[name](logits, *given).sum(), logits)
    assert (g.abs().sum(1) > 0).all(), "no gradient"


@CLASSES
def test_above_zero_exactly_where_the_label_loses(classes: int) -> None:
    logits, y, target = case(classes, n=500)
    wrong = logits.argmax(1) != y
    assert 0 < wrong.sum() < 500
    assert torch.equal(margin(logits, y) > 0, wrong) and torch.equal(dlr(logits, y) > 0, wrong)
    for score in (targeted_margin(logits, y, target), targeted_dlr(logits, y, target)):
        assert torch.equal(score > 0, logits.gather(1, target[:, None]).squeeze(1) > logits.gather(1, y[:, None])[:, 0])
        assert wrong[score > 0].all()


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_dlr_does_not_see_scale_and_shift(classes: int) -> None:
    logits, y, target = case(classes)
    for other in (1e4 * logits, 1e-3 * logits, logits + 50, 7 * logits - 2):
        torch.testing.assert_close(dlr(other, y), dlr(logits, y), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            targeted_dlr(other, y, target), targeted_dlr(logits, y, target), rtol=1e-6, atol=1e-6
        )
    # where the label wins, the gap to the second is at most the gap to the third
    assert (dlr(logits, y) >= -1 - 1e-9).all()
    # the order of the classes does not matter
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    torch.testing.assert_close(dlr(logits[:, order], place[y]), dlr(logits, y))
    torch.testing.assert_close(targeted_dlr(logits[:, order], place[y], place[target]), targeted_dlr(logits, y, target))


def test_equal_logits_are_no_accident() -> None:
    flat, y = torch.zeros(3, 5), torch.tensor([0, 2, 4])
    for name, loss in LOSSES.items():
        score = loss(flat, y, (y + 1) % 5) if name.startswith("targeted") else loss(flat, y)
        torch.testing.assert_close(score, torch.full((3,), math.log(5) if name == "cross_entropy" else 0.0))


def test_likely_targets() -> None:
    logits, y, _ = case(5)
    ranked = likely_targets(logits, y, 3)
    assert ranked.shape == (60, 3) and ranked.dtype == torch.int64
    for z, label, row in zip(logits.tolist(), y.tolist(), ranked.tolist(), strict=True):
        assert row == sorted((k for k in range(5) if k != label), key=lambda k: -z[k])[:3]
    assert likely_targets(logits, y, 9).shape == (60, 4)
    assert torch.equal(likely_targets(logits[:, :2], y % 2, 9).squeeze(1), 1 - y % 2)
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        likely_targets(logits, y, 0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.tensor([0, 3]), ValueError, r"y has labels from 0 to 3, expected labels in 0 ... 2"),
        (torch.tensor([-1, 0]), ValueError, "y has labels from -1 to 0"),
        (torch.tensor([0.0, 1.0]), TypeError, "y has dtype torch.float32, expected torch.int64"),
        (torch.tensor([0]), ValueError, "y has 1 labels, expected 2"),
        (torch.tensor([[0], [1]]), ValueError, r"y has shape \(2, 1\)"),
        ([0, 1], TypeError, "y is a list"),
    ],
)
def test_bad_labels(name: str, y: Any, error: type[Exception], message: str) -> None:
    target = (torch.tensor([1, 2]),) if name.startswith("targeted") else ()
    if isinstance(y, list):
        with pytest.raises((TypeError, AttributeError)):
            LOSSES[name](torch.zeros(2, 3), y, *target)
        return
    with pytest.raises(error, match=message):
        LOSSES[name](torch.zeros(2, 3), y, *target)


@pytest.mark.parametrize("loss", [targeted_margin, targeted_dlr])
def test_bad_targets(loss: Any) -> None:
    y = torch.tensor([0, 1])
    for target, error, message in (
        (torch.tensor([1, 1]), ValueError, "target is the label of 1 images, expected another class"),
        (torch.tensor([1, 3]), ValueError, "target has labels from 1 to 3, expected labels in 0 ... 2"),
        (torch.tensor([1.0, 2.0]), TypeError, "target has dtype torch.float32"),
        (torch.tensor([1]), ValueError, "target has 1 labels, expected 2"),
    ):
        with pytest.raises(error, match=message):
            loss(torch.zeros(2, 3), y, target)


@pytest.mark.parametrize("loss", [margin, dlr])
def test_one_class(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(2, 1\), expected at least 2 classes"):
        loss(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))


# --- of a model ---------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def forward(self, x: Tensor) -> Gaussian:
        return Gaussian(4 * x.flatten(1)[:, :3], 0.5 + x.flatten(1)[:, 3:6])


X = torch.rand(12, 1, 3, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def test_a_deterministic_model_says_who_is_wrong() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    for name, loss in LOSSES.items():
        target = ((Y + 1) % 3,) if name.startswith("targeted") else ()
        score, wrong = classifier_objective(model, name)(X, Y, *target)
        torch.testing.assert_close(score, loss(model(X), Y, *target))
        assert torch.equal(wrong, model(X).argmax(1) != Y) and not wrong.requires_grad
    score, _ = classifier_objective(model, lambda z, y: z.gather(1, y[:, None])[:, 0])(X, Y)
    torch.testing.assert_close(score, model(X)[torch.arange(12), Y])
    with pytest.raises(ValueError, match="loss is 'cross-entropy', expected one of .*did you mean 'cross_entropy'"):
        classifier_objective(model, "cross-entropy")


def test_a_model_that_samples_is_averaged_with_fresh_noise() -> None:
    model, ids = Classifier(Encoder(), nn.Identity(), samples=5), torch.arange(12) + 3
    objective = classifier_objective(model, "margin")
    for seed in (0, 1):
        expected = margin(model(X, ids=ids, seed=seed), Y)
        torch.testing.assert_close(scores(objective, X, (Y,), ids, seed)[0], expected)
    assert not torch.equal(objective(X, Y, ids=ids, seed=0), objective(X, Y, ids=ids, seed=1))
    targeted = classifier_objective(model, "targeted_dlr")
    assert targeted(X, Y, (Y + 1) % 3, ids=ids, seed=0).shape == (12,)
    mean = classifier_objective(model.mean_code)
    assert isinstance(mean(X, Y), tuple)
    torch.testing.assert_close(mean(X, Y)[0], cross_entropy(4 * X.flatten(1)[:, :3], Y))
    # it is not done by one draw: nobody leaves
    found = APGD(3, leave_early=True)(objective, X, Linf(0.3), Y, ids=ids)
    assert torch.equal(found, APGD(3)(objective, X, Linf(0.3), Y, ids=ids))


def test_predict() -> None:
    model, ids = Classifier(Encoder(), nn.Identity(), samples=5), torch.arange(12) + 3
    assert torch.equal(predict(model, X, ids=ids, seed=2), model(X, ids=ids, seed=2))
    assert torch.equal(predict(model.mean_code, X, ids=ids, seed=2), 4 * X.flatten(1)[:, :3])
    assert torch.equal(predict(nn.Flatten(), X, seed=2), X.flatten(1))
