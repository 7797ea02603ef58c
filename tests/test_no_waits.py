"""A training step never waits for its device, and never mixes two: proved without a GPU.

On torch's meta device every operation runs and no number exists, so reading one raises, and so does an operation on
tensors of two devices. That is what a GPU asks of a step, on any machine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import BALL, METHODS, HostWaits, images
from torch import Tensor, nn

from robrep.attacks import APGD, FGSM, L2, PGD, Linf, Square
from robrep.augmentations import Augment, digit_augmentation, simclr_augmentation
from robrep.checks import check_images, check_labels, looking
from robrep.heads import _HeadOnCodes
from robrep.losses import cross_entropy
from robrep.methods import Supervised
from robrep.objectives import LOSSES, classifier_objective
from robrep.optimizers import make_optimizer
from robrep.random import noise, permutation, uniform
from robrep.steps import TrainingStep
from robrep.training import fit

META = torch.device("meta")


def meta_step(method: nn.Module, x: Tensor) -> None:
    """Two whole steps of a method whose modules are on the meta device."""
    trained = [p for p in method.parameters() if p.requires_grad]
    y = torch.empty(len(x), dtype=torch.int64, device=META)
    step = TrainingStep(
        method.train(), method, make_optimizer("sgd", trained, 0.1), y, batch_size=len(x) // 2, steps=10, x=x
    )
    for number in range(2):
        ids = permutation(number, len(x), META)[: len(x) // 2]
        with HostWaits():
            step(ids, None, seed=number, number=number, rate=0.1)
    assert step.sums and all(v.is_meta for v in step.sums.values())
    assert any(p.grad is not None and p.grad.is_meta for p in trained)


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    build, channels = METHODS[name]
    with META:
        method = build()
    meta_step(method, images(24, channels, "meta"))


def test_a_head_on_codes() -> None:
    for shape in ((24, 4), (24, 2, 4)):
        with META:
            head = _HeadOnCodes(nn.Linear(4, 10))
        meta_step(head, torch.empty(*shape, device=META))


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), Linf(torch.full((6,), 0.1, device=META))], ids=str)
@pytest.mark.parametrize(
    "attack",
    [
        PGD(3), PGD(3, random_start=False), PGD(3, restarts=2, keep="best"),
        PGD(3, step_size=0.1), FGSM(), APGD(9), APGD(5, restarts=2),
        Square(12, leave_early=False),
    ],
    ids=str,
)  # fmt: skip
def test_every_attack_without_early_leaving(attack: Any, threat: Any) -> None:
    with META:
        model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.empty(6, 1, 8, 8)
        y, seed = torch.empty(6, dtype=torch.int64), torch.empty((), dtype=torch.int64)
    for loss in LOSSES:
        given = (y, y) if loss.startswith("targeted") else (y,)
        with HostWaits():
            x_adv = attack(classifier_objective(model, loss), x, threat, *given, seed=seed)
        assert x_adv.is_meta and x_adv.shape == x.shape


@pytest.mark.parametrize(
    "augment", [simclr_augmentation(), digit_augmentation(), Augment(jitter=None, rotate=5)], ids=str
)
def test_augmentations(augment: Augment) -> None:
    with HostWaits():
        x = augment(torch.empty(6, 3, 8, 8, device=META), torch.arange(6, device=META), 3)
    assert x.is_meta and x.shape == (6, 3, 8, 8)


def test_random_numbers() -> None:
    seed, ids = torch.empty((), dtype=torch.int64, device=META), torch.arange(6, device=META)
    with HostWaits():
        assert noise(seed, ids, (3,)).is_meta and uniform(seed, ids, (3,)).is_meta
        assert permutation(seed, 4, META).is_meta


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.shift = nn.Linear(64, 10), torch.zeros(64, device="cpu")

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        return {"ce": cross_entropy(self.net(x.flatten(1) + self.shift), y).mean()}


class Reads(Mixes):
    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        loss = cross_entropy(self.net(x.flatten(1)), y).mean()
        return {"ce": loss if loss.item() < 9 else 0 * loss}


class Masks(Mixes):
    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        return {"ce": self.net(x.flatten(1))[y > 3].sum()}


class Copies(Mixes):
    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        return {"ce": (self.net(x.flatten(1)) * x.new_tensor([2.0])).sum()}


@pytest.mark.parametrize("method", [Mixes, Reads, Masks, Copies])
def test_a_method_that_would_wait_is_found(method: Any) -> None:
    """The tests above can fail."""
    with META:
        bad = method()
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError), match="device|wait|meta|Meta"):
        meta_step(bad, images(24, 1, "meta"))


# --- arguments are checked once ---------------------------------------------------------------------------------------


def test_values_are_looked_at_on_the_cpu_or_when_asked() -> None:
    bad, labels = torch.full((2, 1, 2, 2), 3.0), torch.tensor([0, 7])
    with pytest.raises(ValueError, match="x has values from 3 to 3"):
        check_images(bad)
    with looking(False):
        assert check_images(bad) is bad and check_labels(labels, 2, 5) is labels
        with pytest.raises(TypeError, match="dtype"), looking(True):
            check_images(bad.long())
        with pytest.raises(ValueError, match="labels from 0 to 7"), looking(True):
            check_labels(labels, 2, 5)
    with pytest.raises(ValueError, match="y has labels from 0 to 7"):
        check_labels(labels, 2, 5)
    assert check_images(bad.to(META)).is_meta
    with looking(True):
        assert check_images(bad.to(META)).is_meta, "there is nothing to look at"


def test_a_training_looks_at_values_in_its_first_step_alone() -> None:
    """Counted on the CPU: reads of a value by the host, in each step of a method with an attack."""
    reads: list[int] = []

    class Counting(HostWaits):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == "_local_scalar_dense":
                reads[-1] += 1
            return func(*args, **(kwargs or {}))

    build, channels = METHODS["at, l2"]
    method = build()
    forward = method.forward

    def counted(*arguments: Any) -> Any:
        reads.append(0)
        with Counting():
            return forward(*arguments)

    method.forward = counted
    fit(method, images(24, channels), torch.zeros(24, dtype=torch.int64), epochs=2, batch_size=8)
    assert reads[0] > 0 and reads[1:] == [0] * 5


@pytest.mark.parametrize("attack", [PGD(2), PGD(2, keep="best"), APGD(4)], ids=str)
def test_an_infinite_gradient_is_seen_without_waiting(attack: Any) -> None:
    """Where nobody may look, the image becomes NaN, so that the loss, looked at once an epoch, names it."""
    x = torch.full((3, 1, 2, 2), 0.5)

    def objective(x_: Tensor) -> Tensor:
        return (x_ - 0.5).flatten(1).sum(1) * torch.tensor([1.0, torch.inf, 1.0])

    with pytest.raises(FloatingPointError, match="the objective's gradient is not finite"):
        attack(objective, x, BALL)
    with looking(False):
        x_adv = attack(objective, x, BALL)
    assert x_adv[1].isnan().all() and x_adv[[0, 2]].isfinite().all()
    torch.testing.assert_close(x_adv[[0, 2]], torch.full((2, 1, 2, 2), 0.6))


def test_an_infinite_gradient_ends_a_training_with_its_name() -> None:
    class Explodes(Supervised):
        calls = 0

        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            scale = torch.inf if self.calls == 4 else 1.0
            x_adv = PGD(2)(
                lambda x_, y_: scale * cross_entropy(self.classifier(x_), y_), x, BALL, y, ids=ids, seed=seed
            )
            return {"adversarial": cross_entropy(self.classifier(x_adv), y).mean()}

    method = Explodes(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 2; terms: .*'adversarial': nan"):
        fit(method, images(24, 1), torch.zeros(24, dtype=torch.int64), epochs=3, batch_size=8)
