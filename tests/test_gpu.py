"""What a GPU computes is what a CPU computes, and a captured step is the step: needs a CUDA device.

``ROBREP_DEVICE_CHECK=cpu python -m pytest tests/test_gpu.py`` runs the same bodies on a machine without one. "The
device" is then the CPU with other convolutions (without oneDNN), whose rounding differs too, and a captured step calls
what it captured.

Tolerances: float32 sums in another order differ by about 1e-6 of their size; TF32 is off here. The sign of a gradient
that is almost zero may differ, so that an attacked pixel goes the other way: what follows an attack is compared more
loosely. Captured against launched is compared bit for bit wherever two launched runs agree bit for bit.
"""

from __future__ import annotations

import copy
import gc
import math
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import BALL, METHODS, images
from torch import Tensor, nn

from robrep import data, steps
from robrep.attacks import APGD, FGSM, L2, PGD, Linf, Square, attack_mode
from robrep.encoders import ConvEncoder, MLPHead, PreActResNet, ResNetEncoder
from robrep.evaluation import accuracy, evaluate
from robrep.heads import Classifier, train_head
from robrep.losses import cross_entropy
from robrep.methods import AdversarialTraining, Supervised
from robrep.objectives import classifier_objective
from robrep.optimizers import make_optimizer
from robrep.random import fold, noise, permutation, uniform
from robrep.steps import WARM_UP, TrainingStep
from robrep.suites import suite
from robrep.training import History, fit

CHECK = os.environ.get("ROBREP_DEVICE_CHECK") == "cpu"
DEVICE = "cpu" if CHECK else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CHECK and not torch.cuda.is_available(), reason="no CUDA device here"),
]

Y = torch.arange(24) % 10
SETTINGS: dict[str, Any] = dict(epochs=2, batch_size=8, lr=1e-4, optimizer="sgd", warmup_epochs=0.5, seed=3)
SHARE = 2.0**-20  # of the normal numbers may differ, by one unit in the last place


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No TF32 and deterministic convolutions; without a GPU, the stand-in for a capture."""
    b: Any = torch.backends
    units = [(b.cuda.matmul, "fp32_precision", "ieee"), (b.cudnn.conv, "fp32_precision", "ieee")]
    if not hasattr(b.cuda.matmul, "fp32_precision"):  # torch before 2.9
        units = [(b.cuda.matmul, "allow_tf32", False), (b.cudnn, "allow_tf32", False)]
    before = [getattr(unit, name) for unit, name, _ in units]
    for unit, name, value in units:
        setattr(unit, name, value)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    if CHECK:
        monkeypatch.setitem(steps.CAPTURE, "cpu", lambda body: body)
    yield
    for (unit, name, _), value in zip(units, before, strict=True):
        setattr(unit, name, value)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def there() -> Any:
    """Where "the device" computes."""
    return torch.backends.mkldnn.flags(enabled=False) if CHECK else nullcontext()


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return METHODS[name][0]()


def trained(name: str, accelerator: str = DEVICE, **settings: Any) -> tuple[nn.Module, History]:
    method = built(name)
    with there() if accelerator == DEVICE else nullcontext():
        return method, fit(method, images(24, METHODS[name][1]), Y, **SETTINGS | settings, accelerator=accelerator)


def state(module: nn.Module) -> list[Tensor]:
    return [v.cpu() for v in module.state_dict().values()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(state(a), state(b), strict=True))


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """Length of the difference, over the length of ``b``."""
    pairs = [(u.double().cpu(), v.double().cpu()) for u, v in zip(a, b, strict=True)]
    difference, length = (math.sqrt(sum(t.square().sum().item() for t in ts)) for ts in (
        [u - v for u, v in pairs], [v for _, v in pairs]))  # fmt: skip
    return difference / length if length else difference


def losses(history: History) -> list[float]:
    return [row["loss"] for row in history]


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -5, 2**62, -(2**63), 2**63 - 1])
def test_uniform_numbers_and_permutations_are_the_same_bits(seed: int) -> None:
    ids = torch.tensor([*range(200), -1, 2**62, -(2**63)])
    for given in (seed, torch.tensor(seed, device=DEVICE)):
        for shape in ((3, 32, 32), (5,), ()):
            assert torch.equal(uniform(given, ids.to(DEVICE), shape).cpu(), uniform(seed, ids, shape))
        for n in (1, 1000, 100_003):
            assert torch.equal(permutation(given, n, DEVICE).cpu(), permutation(seed, n))
    folded = fold(torch.tensor(seed, device=DEVICE), "part", 3)
    assert folded.device.type == DEVICE and folded.item() == fold(seed, "part", 3)


def test_normal_numbers_agree_to_a_last_place_in_a_million() -> None:
    ids, shape = torch.arange(2048), (3, 32, 32)  # six million of them
    here, found = noise(7, ids, shape), noise(7, ids.to(DEVICE), shape).cpu()
    differ = here != found
    assert differ.double().mean() <= SHARE
    infinity = torch.tensor(math.inf)
    assert (found[differ] <= torch.nextafter(here[differ], infinity)).all()
    assert (found[differ] >= torch.nextafter(here[differ], -infinity)).all()


# --- gradients and steps ----------------------------------------------------------------------------------------------


def first_gradients(name: str, device: str) -> tuple[dict[str, float], list[Tensor], bool]:
    method, x = built(name).to(device).train(), images(24, METHODS[name][1]).to(device)
    ids, y = torch.arange(24, device=device), Y.to(device)
    attacks = [v for m in method.modules() for v in vars(m).values() if isinstance(v, PGD | APGD | FGSM)]
    with there() if device == DEVICE else nullcontext():
        terms = method(data.floats(x), y, ids, torch.tensor(5, device=device))
        torch.stack(list(terms.values())).sum().backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return {k: v.item() for k, v in terms.items()}, gradients, bool(attacks)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_agree(name: str) -> None:
    """Loss terms to 1e-4 and gradients to 1e-3 of their length; after an attack to 2 % and 10 %."""
    here, gradients, attacked = first_gradients(name, "cpu")
    found, on_device, _ = first_gradients(name, DEVICE)
    assert found.keys() == here.keys() and len(gradients) == len(on_device) > 0
    assert {g.device.type for g in on_device} == {DEVICE}
    for term, value in here.items():
        assert found[term] == pytest.approx(value, rel=0.02 if attacked else 1e-4, abs=1e-3 if attacked else 1e-5), term
    assert apart(on_device, gradients) < (0.1 if attacked else 1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_training_agrees(name: str) -> None:
    """Six steps of SGD: losses to 2 %, weights to 2 % of their length; and the step on the device is captured."""
    (method, history), (plain, expected) = trained(name), trained(name, "cpu", capture=False)
    assert history.how == f"captured after {WARM_UP} steps", history.how
    assert losses(history) == pytest.approx(losses(expected), rel=0.02, abs=2e-3)
    assert apart(state(method), state(plain)) < 0.02
    assert apart(state(plain), state(built(name))) > 0, "nothing was trained"


def agree(name: str, captured: tuple[nn.Module, History], launched: tuple[nn.Module, History], **settings: Any) -> None:
    """Bit for bit if launching again gives the same bits; else (sums by atomic additions) to 1e-4."""
    if same(captured[0], launched[0]) and losses(captured[1]) == losses(launched[1]):
        return
    assert apart(state(captured[0]), state(launched[0])) < 1e-4
    assert losses(captured[1]) == pytest.approx(losses(launched[1]), rel=1e-4)
    again = (trained(name, **settings, capture=False)[0] for _ in range(8))
    assert not all(same(launched[0], other) for other in again), "captured differs from launched, which never differs"


@pytest.mark.parametrize("name", METHODS)
def test_a_captured_step_is_the_step(name: str) -> None:
    captured, launched = trained(name), trained(name, capture=False)
    assert captured[1].how == f"captured after {WARM_UP} steps", captured[1].how
    assert launched[1].how == "step by step: capture is False"
    agree(name, captured, launched)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars", "lars-all"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_optimizer_captured(optimizer: Any, precision: Any) -> None:
    if precision == "bf16-mixed" and DEVICE == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    # in bf16 this training diverges, captured or not and on any device, where a vector takes plain steps of 0.01
    rate = {"sgd": 1e-4, "lars": 1e-3}.get(optimizer, 0.01)
    settings = {"optimizer": optimizer, "precision": precision, "lr": rate}
    captured, launched = (trained("simclr_urkle", **settings, capture=c) for c in (True, False))
    assert captured[1].how == f"captured after {WARM_UP} steps", captured[1].how
    agree("simclr_urkle", captured, launched, **settings)
    assert len({row["loss"] for row in captured[1]}) == len({row["lr"] for row in captured[1]}) == 2


@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait(name: str) -> None:
    """A launched step after the first, with torch's own alarm for host waits."""
    method = built(name).to(DEVICE).train()
    weights, rate = [p for p in method.parameters() if p.requires_grad], torch.tensor(0.0, device=DEVICE)
    step = TrainingStep(
        method, method, make_optimizer("sgd", weights, rate), Y.to(DEVICE), x=images(24, METHODS[name][1]).to(DEVICE),
        batch_size=8, steps=10, refusal="launched here",
    )  # fmt: skip
    ids = torch.arange(8, device=DEVICE)
    step(ids, None, seed=0, number=0, rate=1e-4)
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(ids, None, seed=1, number=1, rate=1e-4)
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(step.loss.item())


@pytest.mark.parametrize("name", ["vae_urkle", "byorl", "at"])
@pytest.mark.parametrize("capture_again", [True, False])
def test_killed_and_resumed(name: str, capture_again: bool, tmp_path: Path) -> None:
    settings = {"epochs": 4, "optimizer": "adamw", "save_every": 0}
    whole = trained(name, **settings)

    def stop(done: int) -> dict[str, float]:
        if done == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        trained(name, **settings, cache=tmp_path, after_epoch=stop)
    resumed = trained(name, **settings, cache=tmp_path, capture=capture_again)
    assert resumed[1].how.startswith("captured" if capture_again else "step by step")
    agree(name, resumed, whole, **settings)


# --- precision and layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "at, l2", "simclr"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision(name: str, optimizer: Any, precision: Any) -> None:
    """fp16 with a scaler, as on a T4, goes step by step; bf16 is captured.

    Untrained, losses are those of float32 to 5 %. With a learning rate, the weights move and the loss stays finite: a
    scaler skips its first steps, in which a gradient of 2**16 times its size overflows.
    """
    if precision == "bf16-mixed" and DEVICE == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    still = {"lr": 0.0, "optimizer": optimizer}
    (_, expected), (method, history) = trained(name, **still), trained(name, **still, precision=precision)
    how = f"captured after {WARM_UP} steps"
    if precision == "16-mixed":
        how = "step by step: the loss scaling of 16-mixed decides on the host"
    assert history.how == how
    assert losses(history) == pytest.approx(losses(expected), rel=0.05)
    settings = {"lr": 1e-3 if optimizer == "adamw" else 1e-4, "optimizer": optimizer, "epochs": 12}
    moved, history = trained(name, **settings, precision=precision)
    assert all(math.isfinite(loss) for loss in losses(history)) and apart(state(moved), state(method)) > 0


@pytest.mark.parametrize(
    "make", [lambda: ResNetEncoder(18, width=8, gaussian=False), lambda: PreActResNet((1, 1), base=8)]
)
def test_residual_networks_run_channels_last(make: Callable[[], nn.Module]) -> None:
    """Also on the device, before and after a training; with the values of the usual layout to 1e-4."""
    torch.manual_seed(0)
    encoder, x = make(), torch.rand(6, 3, 16, 16)
    usual = make()
    usual.load_state_dict(encoder.state_dict())
    weights = [p for p in encoder.to(DEVICE).parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    with torch.no_grad():
        expected = usual.eval()(x)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(encoder.eval()(given.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-4)
    seen: list[bool] = []
    convolution = next(m for m in reversed(list(encoder.modules())) if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(
        lambda m, given, y: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    head = nn.Linear(encoder.dim, 10)  # type: ignore[arg-type]
    fit(Supervised(encoder, head), images(24, 3), Y, **SETTINGS, accelerator=DEVICE)
    assert all(seen) and seen and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


# --- attacks and verdicts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked() -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier that is somewhat robust, trained on the CPU, and 100 test images."""
    digits = data.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, c = ConvEncoder(1, 16, gaussian=False, widths=(8, 16, 16), groups=0), MLPHead(16, 10)
    method = AdversarialTraining(f, c, PGD(2), BALL)
    fit(method, digits.x_train, digits.y_train, epochs=5, batch_size=32, lr=0.015, warmup_epochs=0.5, accelerator="cpu")
    model, x, y = Classifier(f, c).eval(), digits.images("test", slice(100)), digits.labels("test", slice(100))
    assert accuracy(model, x, y).value > 0.5
    return model, x, y


ATTACKS = [PGD(10), PGD(10, leave_early=True), PGD(10, restarts=2, keep="best"), APGD(20), APGD(20, leave_early=True),
           Square(100), Square(100, leave_early=False)]  # fmt: skip


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{type(a).__name__}, {a}")
def test_attacks_agree(attack: Any, threat: Any, attacked: tuple[nn.Module, Tensor, Tensor]) -> None:
    """x' stays in the ball; the mean loss agrees to 2 %; at most 3 of 100 images are judged otherwise."""
    model, x, y = attacked
    moved = copy.deepcopy(model).to(DEVICE)
    with attack_mode(model, moved):
        here = attack(classifier_objective(model), x, threat, y, seed=1)
        with there():
            found = attack(classifier_objective(moved), x.to(DEVICE), threat, y.to(DEVICE), seed=1)
        assert found.device.type == DEVICE and found.dtype == x.dtype
        found = found.cpu()
        size = (found - x).flatten(1)
        length = size.abs().amax(1) if isinstance(threat, Linf) else size.norm(dim=1)
        assert (length <= threat.eps + 1e-6).all() and found.min() >= 0 and found.max() <= 1
        with torch.no_grad():
            loss, expected = (cross_entropy(model(v), y).mean().item() for v in (found, here))
            assert loss == pytest.approx(expected, rel=0.02)
            assert (model(found).argmax(1) != model(here).argmax(1)).sum() <= 3
    if isinstance(attack, PGD) and attack.restarts == 1 and not getattr(attack, "leave_early", False):
        assert ((found - here).abs() > 1e-4).float().mean() < 0.05, "few pixels have a gradient of almost zero"


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_verdicts_of_a_suite_agree(threat: Any, attacked: tuple[nn.Module, Tensor, Tensor]) -> None:
    """AutoAttack, shortened: no clean verdict differs, and at most 3 of 100 under attack."""
    model, x, y = attacked
    attacks = suite("autoattack", max_steps=5, max_queries=50)
    here = evaluate(model, x, y, attacks, threat)
    with there():
        found = evaluate(copy.deepcopy(model).to(DEVICE), x, y, attacks, threat)
        again = evaluate(copy.deepcopy(model).to(DEVICE), x, y, attacks, threat, batch_size=17)
    assert torch.equal(found.clean.correct.cpu(), here.clean.correct) and 0 < here.robust.value < here.clean.value
    assert (found.robust.correct.cpu() != here.robust.correct).sum() <= 3
    assert (found.robust.correct != again.robust.correct).sum() <= 3
    assert [s.name for s in found.stages] == [s.name for s in here.stages]


class Hungry(nn.Module):
    """A classifier that needs 64 MiB for each image, or says on a CPU that it has them not."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room, self.refused = model, room, 0

    def forward(self, x: Tensor) -> Tensor:
        try:
            if x.device.type == "cpu" and len(x) > self.room:
                raise torch.OutOfMemoryError("out of memory")
            wanted = x.new_empty(len(x) if x.device.type == "cuda" else 0, 2**24)
        except RuntimeError:
            self.refused += 1
            raise
        del wanted
        return self.model(x)


def test_memory_that_runs_out_does_not_change_a_verdict(attacked: tuple[nn.Module, Tensor, Tensor]) -> None:
    pytest.importorskip("robrep.passes", reason="evaluate does not choose its batches yet")
    model, x, y = attacked
    expected = evaluate(model.to(DEVICE), x, y, PGD(5), BALL, batch_size=10)
    hungry = Hungry(model, 40)
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        share = (torch.cuda.memory_reserved() + 40 * 2**26) / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
    try:
        sizes = [evaluate(hungry, x, y, PGD(5), BALL, batch_size=size) for size in (None, 100)]
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
        model.cpu()
    assert hungry.refused
    for found in sizes:
        assert torch.equal(found.robust.correct, expected.robust.correct)


# --- the rest of the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_a_folder(workers: int, tmp_path: Path) -> None:
    """Decoded by workers into pinned memory, they train as the same images in a tensor do."""
    from PIL import Image

    pixels = images(24, 3).permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(pixels):
        for split in ("train", "val"):
            folder = tmp_path / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{i}.png")
    folder_images = data.image_folder(tmp_path, 8, val=4)
    x, y = folder_images.x_train, folder_images.y_train
    assert isinstance(x, data.FolderImages) and len(x) == 20
    runs = []
    for inputs in (x, x[torch.arange(20)]):
        method = built("simclr")
        with there():
            runs.append((method, fit(method, inputs, y, **SETTINGS, accelerator=DEVICE, workers=workers)))
    assert all(history.how == f"captured after {WARM_UP} steps" for _, history in runs)
    with there():
        again = built("simclr")
        fit(again, x, y, **SETTINGS, accelerator=DEVICE, workers=workers)
    if same(again, runs[0][0]):
        assert same(runs[0][0], runs[1][0]) and losses(runs[0][1]) == losses(runs[1][1])
    else:
        assert apart(state(runs[0][0]), state(runs[1][0])) < 1e-4


def test_a_head_learns_where_its_encoder_is(attacked: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Three epochs on frozen codes: weights to 1 % of their length, and the head is where the encoder is."""
    model, x, y = attacked
    heads = []
    for device in ("cpu", DEVICE):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = MLPHead(16, 10)
        train_head(copy.deepcopy(model.encoder).to(device), head.to(device), x, y, epochs=3, batch_size=20, lr=0.01)
        assert {p.device.type for p in head.parameters()} == {device}
        heads.append(state(head))
    assert apart(heads[1], heads[0]) < 0.01


def test_training_on_the_device_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state(), torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.zeros(1)
    trained("simclr")
    after = torch.get_rng_state(), torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.zeros(1)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
