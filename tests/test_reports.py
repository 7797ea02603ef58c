"""Situations from bug reports on other software, tried on this one: right, or one sentence that names what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import PGD, Linf
from robrep.audit import audit
from robrep.augmentations import digit_augmentation
from robrep.contrastive import nt_xent
from robrep.encoders import ConvEncoder, Projector
from robrep.evaluation import accuracy, adversarial_images, evaluate, robust_accuracy
from robrep.methods import SimCLR
from robrep.suites import suite
from robrep.training import fit

N = 24
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def linear(classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def labels(model: nn.Module) -> Tensor:
    """The model's own answers: it is right on every clean image."""
    with torch.no_grad():
        return model(X).argmax(1)


def worst_margin(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Of a linear classifier: whether some x' in the l-inf ball, without the box, has another class."""
    weight, logits = model[1].weight, model(x)
    gaps = logits.gather(1, y[:, None]) - logits
    reach = eps * (weight[y][:, None] - weight[None]).abs().sum(2)
    gaps[torch.arange(len(y)), y] = torch.inf
    return (gaps <= reach).any(1)


@pytest.mark.parametrize("classes", [2, 3, 4, 8])
def test_the_suite_knows_how_many_classes_there_are(classes: int) -> None:
    """github.com/fra31/auto-attack/issues/70, 76 and 110; Trusted-AI/adversarial-robustness-toolbox/issues/2399."""
    model = linear(classes)
    y, eps = labels(model), 0.02
    found = evaluate(model, X, y, suite("autoattack", max_steps=10, max_queries=50), Linf(eps))
    assert found.clean.value == 1 and len(found.stages) == 4
    exact = ~worst_margin(model, X, y, eps)
    inside = ((X - 0.5).abs() <= 0.5 - eps).all(3).all(2).all(1)  # where the box does not shrink the ball
    assert (exact <= found.robust.correct).all(), "nothing is broken that cannot be"
    assert found.robust.correct[inside].tolist() == exact[inside].tolist()
    assert found.robust.value < 1


def test_attacks_inside_no_grad() -> None:
    """github.com/Trusted-AI/adversarial-robustness-toolbox/issues/498; BorealisAI/advertorch/issues/79."""
    model = linear(3)
    y = labels(model)
    outside = robust_accuracy(model, X, y, PGD(3), Linf(0.05))
    with torch.no_grad():
        inside = robust_accuracy(model, X, y, PGD(3), Linf(0.05))
    assert torch.equal(inside.correct, outside.correct) and outside.value < 1


def test_images_that_were_normalised_are_refused() -> None:
    """github.com/Harry24k/adversarial-attacks-pytorch/issues/75; bethgelab/foolbox/issues/580."""
    model = linear(3)
    with pytest.raises(ValueError, match="x .*0.* 1"):
        evaluate(model, (X - 0.5) / 0.25, labels(model), PGD(2), Linf(0.05))


def test_radius_zero_is_clean_accuracy_whatever_mode_the_model_is_in() -> None:
    """github.com/Harry24k/adversarial-attacks-pytorch/issues/124; locuslab/fast_adversarial/issues/14."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    y = torch.arange(N) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, X, y, PGD(3), Linf(0.0))
    assert torch.equal(found.robust.correct, found.clean.correct) and model.training
    assert torch.equal(found.clean.correct, accuracy(model.eval(), X, y).correct)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_gradient_of_zero_is_not_taken_for_robustness() -> None:
    """github.com/Trusted-AI/adversarial-robustness-toolbox/issues/368."""

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((10 * x).round() / 10)

    model = Rounded()
    found = audit(model, X, labels(model), Linf(0.1))
    broken = {finding.check for finding in found.findings if finding.verdict == "broken"}
    assert not found.passed and "Its robust accuracy is not a valid estimate" in str(found)
    assert "Are the gradients other than zero?" in str(found).split("✗ broken")[1] and len(broken) >= 3


@pytest.mark.parametrize("n", [9, 8, 7])
def test_a_last_batch_of_one_image(n: int) -> None:
    """github.com/lightly-ai/lightly/issues/307; sthalles/SimCLR/issues/40."""
    encoder = ConvEncoder(1, 4, gaussian=False, widths=(4, 4, 4), strides=(1, 2, 1), groups=0)
    method = SimCLR(encoder, Projector(4, 8, 4), digit_augmentation(False))
    x = (255 * torch.nn.functional.interpolate(X[:n], (8, 8))).to(torch.uint8)
    history = fit(method, x, torch.zeros(n, dtype=torch.int64), epochs=2, batch_size=4, accelerator="cpu")
    assert all(torch.isfinite(torch.tensor(epoch["loss"])) for epoch in history)


def test_a_contrastive_loss_of_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="views has 1 image, expected at least two"):
        nt_xent((X[:1].flatten(1), X[:1].flatten(1)))


def test_a_rounding_error_outside_the_box() -> None:
    """github.com/Harry24k/adversarial-attacks-pytorch/issues/136: taken or refused by name, never wrong."""
    model = linear(3)
    x = X.clone()
    x[0, 0, 0, 0] = -2.98e-8
    try:
        found = adversarial_images(model, x, labels(model), PGD(2), Linf(0.05))
    except ValueError as error:
        assert "x" in str(error) and "0" in str(error)
    else:
        assert found.min() >= 0 and found.max() <= 1
