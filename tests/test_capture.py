"""A captured training step: replayed, it makes the very steps that the plain loop makes.

A tape stands in for the CUDA graph: it notes every operation and the memory it works on, and repeats them without
Python. What a graph would bake in (a number read on the host, a branch, an address that changes) is baked in here too.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import METHODS, Watched, images, tape
from torch import Tensor, nn

from robrep import steps
from robrep.losses import cross_entropy
from robrep.steps import WARM_UP, TrainingStep
from robrep.training import History, fit

Y = torch.arange(24) % 10
SETTINGS: dict[str, Any] = dict(epochs=2, batch_size=8, lr=0.01, warmup_epochs=0.5, weight_decay=0.01, seed=3)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[TrainingStep]:
    """Training on the CPU captures its steps on a tape; the steps that did."""
    made: list[TrainingStep] = []

    def capture(self: TrainingStep) -> None:
        made.append(self)
        method = self.forward
        monkeypatch.setitem(steps.CAPTURE, "cpu", lambda body: tape(body, lambda: [
            *method.parameters(), *method.buffers(), *self.sums.values(), self.loss,
            *(t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)),
        ]))  # fmt: skip
        real(self)

    real = TrainingStep._capture
    monkeypatch.setitem(steps.CAPTURE, "cpu", lambda body: body)
    monkeypatch.setattr(TrainingStep, "_capture", capture)
    return made


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return METHODS[name][0]()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def rows(history: History) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def both(name: str, captured: list[TrainingStep], **settings: Any) -> tuple[nn.Module, History, nn.Module, History]:
    """The same training captured and step by step."""
    x, settings = images(24, METHODS[name][1]), SETTINGS | settings
    method, plain = built(name), built(name)
    with Watched():
        history = fit(method, x, Y, **settings)
        assert len(captured) == 1
        expected = fit(plain, x, Y, **settings, capture=False)
    assert len(captured) == 1
    return method, history, plain, expected


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same_captured(name: str, captured: list[TrainingStep]) -> None:
    method, history, plain, expected = both(name, captured)
    assert history.how == f"captured after {WARM_UP} steps", history.how
    assert expected.how == "step by step: capture is False"
    assert rows(history) == rows(expected)
    assert same(method, plain) and not same(method, built(name))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars", "lars-all"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_optimizer_and_precision(optimizer: Any, precision: Any, captured: list[TrainingStep]) -> None:
    chosen = {"optimizer": optimizer, "precision": precision, "lr": 1e-4 if optimizer == "sgd" else 0.01}
    method, history, plain, expected = both("simclr_urkle", captured, **chosen)
    assert history.how.startswith("captured") and rows(history) == rows(expected) and same(method, plain)
    assert len({row["loss"] for row in history}) == len({row["lr"] for row in history}) == 2


@pytest.mark.parametrize("name", ["vae_urkle", "byorl"])
@pytest.mark.parametrize("capture_again", [True, False])
def test_killed_and_resumed(name: str, capture_again: bool, captured: list[TrainingStep], tmp_path: Path) -> None:
    x = images(24, METHODS[name][1])
    settings = SETTINGS | {"epochs": 4, "save_every": 0}
    whole = built(name)
    expected = fit(whole, x, Y, **settings)

    def stop(done: int) -> dict[str, float]:
        if done == 3:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fit(built(name), x, Y, **settings, cache=tmp_path, after_epoch=stop)
    resumed = built(name)
    history = fit(resumed, x, Y, **settings, cache=tmp_path, capture=capture_again)
    assert len(captured) == 2 + capture_again
    assert rows(history) == rows(expected) and same(resumed, whole)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.calls = nn.Linear(64, 10), 0

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"ce": self.scale(seed) * cross_entropy(self.net(x.flatten(1)), y).mean()}

    def scale(self, seed: Tensor) -> Any:
        return 1.0


class Reads(Linear):
    def scale(self, seed: Tensor) -> Any:
        return 1.0 + int(seed) % 3


class SaysSo(Reads):
    capturable = False


class Counts(Linear):
    def scale(self, seed: Tensor) -> Any:
        return 1.0 / self.calls  # a number of Python's, that a graph bakes in


def test_a_method_that_cannot_be_captured_goes_on_step_by_step(captured: list[TrainingStep]) -> None:
    for kind, why, tried in ((Reads, "the capture failed", 1), (SaysSo, "SaysSo says that it cannot be captured", 0)):
        captured.clear()
        method, plain = kind(), kind()
        history = fit(method, images(24, 1), Y, **SETTINGS)
        expected = fit(plain, images(24, 1), Y, **SETTINGS, capture=False)
        assert history.how.startswith(f"step by step: {why}") and "\n" not in history.how
        assert len(captured) == tried and same(method, plain) and rows(history) == rows(expected)


def test_the_tape_bakes_in_what_a_graph_would(captured: list[TrainingStep]) -> None:
    """So the tests above can fail."""
    method, plain = Counts(), Counts()
    fit(method, images(24, 1), Y, **SETTINGS)
    fit(plain, images(24, 1), Y, **SETTINGS, capture=False)
    assert captured and method.calls == WARM_UP + 1 and plain.calls == 6
    assert not same(method, plain)


def test_a_training_of_few_steps_says_so(captured: list[TrainingStep]) -> None:
    how = fit(Linear(), images(24, 1), Y, **SETTINGS | {"epochs": 1}).how
    assert how == "step by step: a capture comes after 3 steps, and there were 3" and not captured


def test_why_not() -> None:
    x = images(24, 1)
    assert fit(Linear(), x, Y, **SETTINGS).how == "step by step: a device of type cpu has no graphs"
    assert fit(Linear(), x, Y, **SETTINGS, capture=False).how == "step by step: capture is False"
    how = fit(Linear(), x, Y, **SETTINGS | {"precision": "16-mixed"}).how
    assert how == "step by step: the loss scaling of 16-mixed decides on the host"


def test_inputs_that_are_read_batch_by_batch(captured: list[TrainingStep]) -> None:
    x = images(24, 1)

    class Rows:
        fingerprint = "rows"

        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: Tensor) -> Tensor:
            return x[index]

    methods = [Linear() for _ in range(3)]
    fit(methods[0], x, Y, **SETTINGS)
    state = torch.get_rng_state()
    assert fit(methods[1], Rows(), Y, **SETTINGS).how.startswith("captured")
    fit(methods[2], Rows(), Y, **SETTINGS, workers=2)
    assert torch.equal(state, torch.get_rng_state()), "the loader drew from the global state"
    assert same(methods[0], methods[1]) and same(methods[0], methods[2])


def test_a_compiled_encoder_is_trained() -> None:
    """torch.compile of a part stays possible (here with a compiler that needs no C++)."""
    plain, compiled = built("vae_urkle"), built("vae_urkle")
    whole = copy.deepcopy(compiled)
    compiled.encoder = torch.compile(compiled.encoder, backend="aot_eager")
    a, b = (fit(m, images(24, 1), Y, **SETTINGS) for m in (plain, compiled))
    assert not same(plain, whole)
    for u, v in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(u, v, rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in a] == pytest.approx([row["loss"] for row in b], rel=1e-5)
