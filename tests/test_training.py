"""Training: it learns, it is reproducible to the bit, and it survives being killed."""

from __future__ import annotations

import copy
import errno
import io
import json
import logging
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robrep import checkpoints, progress, training
from robrep.attacks import PGD, Linf
from robrep.book.reproduce import first_steps
from robrep.encoders import ConvDecoder, ConvEncoder, MLPHead
from robrep.losses import cross_entropy
from robrep.methods import TRADES, Supervised, VAEUrkle
from robrep.progress import Progress
from robrep.random import fold, permutation
from robrep.training import fit, learning_rate, make_fabric

X = (255 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
Y = (X[:, 0, :4].float().mean((1, 2)) > X[:, 0, 4:].float().mean((1, 2))).long()  # the brighter half
USUAL: dict[str, Any] = dict(epochs=3, batch_size=8, lr=0.01, seed=1, save_every=0)


class Dropped(nn.Module):
    """A small classifier that draws from the global random state, as dropout does."""

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
        return {"cross_entropy": self.beta * cross_entropy(self.net(x), y).mean()}


def seeded(build: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def dropped(beta: float = 1.0, seed: int = 0) -> Dropped:
    return seeded(lambda: Dropped(beta), seed)


def urkle(**settings: Any) -> VAEUrkle:
    def build() -> VAEUrkle:
        encoder, decoder = ConvEncoder(1, 4, widths=(4, 4, 4), groups=2), ConvDecoder((1, 8, 8), 4, widths=(4, 4, 4))
        return VAEUrkle(encoder, decoder, PGD(2), Linf(0.1), **settings)

    return seeded(build)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def flat(state: Any) -> list[Any]:
    """The leaves of nested dicts and lists, tensors as nested lists."""
    if isinstance(state, dict):
        return [leaf for k, v in sorted(state.items(), key=str) for leaf in [k, *flat(v)]]
    if isinstance(state, (list, tuple)):
        return [leaf for v in state for leaf in flat(v)]
    return [state.tolist()] if isinstance(state, Tensor) else [state]


# --- learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [dropped, lambda: urkle(beta_robust=0.01)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_loss_falls(build: Any, optimizer: Any) -> None:
    method = build()
    lr = {"adamw": 0.01, "sgd": 0.003 if isinstance(method, VAEUrkle) else 0.05}[optimizer]
    epochs = 10 if isinstance(method, VAEUrkle) else 60
    history = fit(method, X, Y, **USUAL | {"epochs": epochs, "lr": lr, "optimizer": optimizer})
    assert len(history) == epochs
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    terms = {"cross_entropy"} if isinstance(method, Dropped) else {"reconstruction", "urkle"}
    for row in history:
        assert set(row) == terms | {"loss", "lr", "seconds"}
        assert row["loss"] == pytest.approx(sum(row[t] for t in terms), rel=1e-5)
        assert row["seconds"] > 0
    assert not method.training


def test_by_hand() -> None:
    """SGD over the documented order, with the documented rates: the same weights."""
    method, model = seeded(lambda: nn.Linear(64, 2)), seeded(lambda: nn.Linear(64, 2))

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = method

        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
            assert torch.equal(y, Y[ids]) and torch.equal(x, X[ids].float() / 255)
            seen.append((ids.tolist(), int(seed)))
            return {"a": cross_entropy(self.net(x.flatten(1)), y).mean(), "b": self.net.weight.square().sum()}

    seen: list[tuple[list[int], int]] = []
    fit(Linear(), X, Y, epochs=2, batch_size=12, lr=0.1, optimizer="sgd", weight_decay=0.01, seed=5, warmup_epochs=0.5)
    updater = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    expected = []
    for epoch in range(2):
        epoch_seed = fold(5, "epoch", epoch)
        for i, ids in enumerate(permutation(epoch_seed, 40)[:36].split(12)):
            expected.append((ids.tolist(), epoch_seed))
            step = 3 * epoch + i
            rate = (step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2
            updater.param_groups[0]["lr"] = 0.1 * rate
            loss = nn.functional.cross_entropy(model(X[ids].flatten(1) / 255), Y[ids]) + model.weight.square().sum()
            updater.zero_grad()
            loss.backward()
            updater.step()
    assert seen == expected
    for a, b in zip(method.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_every_example_is_met_once_an_epoch() -> None:
    seen: list[int] = []

    class Watch(Dropped):
        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
            assert self.training and len(x) == len(y) == len(ids)
            seen.extend(ids.tolist())
            return super().forward(x, y, ids, seed)

    fit(Watch(), X, Y, **USUAL)
    epochs = [seen[i : i + 40] for i in (0, 40, 80)]
    assert all(sorted(e) == list(range(40)) for e in epochs) and epochs[0] != epochs[1] != epochs[2]
    seen.clear()
    fit(Watch(), X, Y, **USUAL | {"batch_size": 12})
    assert len(seen) == 3 * 36, "a last batch that is not full is dropped"
    seen.clear()
    fit(Watch(), X[:5], Y[:5], **USUAL | {"batch_size": 1000})
    assert len(seen) == 15, "the only batch is not dropped"


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_learning_rate(warmup: int) -> None:
    steps = 20
    cosine = [learning_rate(s, steps, warmup, "cosine") for s in range(steps + 1)]
    for s in range(warmup):
        assert cosine[s] == pytest.approx((s + 1) / warmup)
        assert learning_rate(s, steps, warmup, "constant") == learning_rate(s, steps, warmup, "halfway") == cosine[s]
    for s in range(warmup, steps + 1):
        assert cosine[s] == pytest.approx(math.cos(math.pi / 2 * (s - warmup) / (steps - warmup)) ** 2, abs=1e-12)
        assert learning_rate(s, steps, warmup, "constant") == 1
        assert learning_rate(s, steps, warmup, "halfway") == (1 if s < 10 else 0.1)
    assert cosine[warmup] == 1 and cosine[-1] == pytest.approx(0, abs=1e-15)
    assert all(a >= b for a, b in zip(cosine[warmup:], cosine[warmup + 1 :], strict=False))
    assert learning_rate(0, 1, 1, "cosine") == 1 and learning_rate(3, 3, 3, "cosine") == 1


def test_history_has_the_rate() -> None:
    history = fit(dropped(), X, Y, **USUAL | {"warmup_epochs": 1})
    rates = [0.01 * learning_rate(s, 15, 5, "cosine") for s in (4, 9, 14)]
    assert [row["lr"] for row in history] == pytest.approx(rates)
    history = fit(dropped(), X, Y, **USUAL | {"schedule": "constant"})
    assert [row["lr"] for row in history] == [0.01] * 3


def test_after_epoch_and_after_step() -> None:
    method, steps = dropped(), []
    before, net = copy.deepcopy(method.net), method.net
    method.after_step = lambda step, of: steps.append((int(step), of, same(net, before)))
    history = fit(method, X, Y, **USUAL, after_epoch=lambda done: {"accuracy": done / 10})
    assert [row["accuracy"] for row in history] == [0.1, 0.2, 0.3]
    assert steps == [(s, 15, False) for s in range(15)], "called after the step"


def test_first_steps() -> None:
    """The steps of the whole training, schedule included, and then no more."""
    whole, rates = dropped(), []
    with first_steps(100) as seen:
        fit(whole, X, Y, epochs=1, batch_size=8, lr=0.01, seed=1, warmup_epochs=1, schedule="constant")
    assert len(seen.losses) == seen.total == 5, "a training with fewer steps ends by itself"
    method, after = dropped(), []
    method.after_step = lambda step, steps: rates.append((int(step), steps))
    with first_steps(2) as begun:
        fit(method, X, Y, epochs=1, batch_size=8, lr=0.01, seed=1, warmup_epochs=1, schedule="constant")
        after.append("not reached")
    assert begun.losses == seen.losses[:2] and begun.total == 5 and rates == [(0, 5), (1, 5)] and not after
    assert begun.hours == min(begun.seconds) * 5 / 3600 > 0
    fit(dropped(), X, Y, epochs=1, batch_size=8)  # outside of the block nothing stops
    with first_steps(1) as none:
        pass
    for cost in ("fastest", "hours"):
        with pytest.raises(ValueError, match="no step was made"):
            getattr(none, cost)
    with pytest.raises(ValueError, match="count"), first_steps(0):
        pass


def test_after_epoch_may_put_the_method_in_evaluation_mode() -> None:
    def evaluate(done: int) -> dict[str, float]:
        method.eval()
        return {}

    method = dropped()
    fit(method, X, Y, **USUAL, after_epoch=evaluate)
    plain = dropped()
    fit(plain, X, Y, **USUAL)
    assert same(method, plain)


# --- reproducibility ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [dropped, urkle])
def test_seed(build: Any) -> None:
    runs = []
    for seed, state in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(state)
        method = build()
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        history = fit(method, X, Y, **USUAL | {"seed": seed})
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
        runs.append((method, [row["loss"] for row in history]))
    assert same(runs[0][0], runs[1][0]) and runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0]) and runs[0][1] != runs[2][1]


def test_the_method_is_left_as_a_plain_module() -> None:
    method = urkle()
    fit(method, X, Y, **USUAL | {"epochs": 1})
    assert not [m for m in method.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(method)))
    assert same(copied, method) and "forward" not in vars(method)
    terms = copied(X.float() / 255, Y, torch.arange(40), 0)
    assert set(terms) == {"reconstruction", "urkle"}


class Rows:
    """Images that are decoded as they are asked for."""

    fingerprint = "rows-1"

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: Tensor) -> Tensor:
        return X[index]


def test_images_as_bytes_as_floats_or_as_anything_indexable() -> None:
    methods = [dropped() for _ in range(3)]
    for method, x in zip(methods, (X, X.float() / 255, Rows()), strict=True):
        fit(method, x, Y, **USUAL)
    assert same(methods[0], methods[1]) and same(methods[0], methods[2])


def test_inputs_need_not_be_images() -> None:
    class OnCodes(Dropped):
        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
            assert x.shape == (8, 2, 3) and x.dtype == torch.float32
            return super().forward(x.flatten(1).repeat(1, 11)[:, :64], y, ids, seed)

    fit(OnCodes(), torch.randn(40, 2, 3), Y, **USUAL)


def test_frozen_parameters_are_left_alone() -> None:
    for decay in (0.0, 0.5):
        method = urkle()
        method.encoder.features.requires_grad_(False)
        before = copy.deepcopy(method)
        fit(method, X, Y, **USUAL | {"weight_decay": decay})
        assert same(method.encoder.features, before.encoder.features)
        assert not any(p.requires_grad for p in method.encoder.features.parameters())
        assert not same(method.encoder.code, before.encoder.code) and not same(method.decoder, before.decoder)
    with pytest.raises(ValueError, match="method has no parameter that requires a gradient"):
        fit(dropped().requires_grad_(False), X, Y, **USUAL)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs is 0, expected at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs is 1.5, expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size is 0, expected at least 1"),
        ({"batch_size": True}, TypeError, "batch_size is True"),
        ({"lr": -1.0}, ValueError, "lr is -1.0, expected a finite number of at least 0"),
        ({"lr": math.nan}, ValueError, "lr is nan"),
        ({"lr": "1"}, TypeError, "lr is '1'"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay is -0.1"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs is -1"),
        ({"optimizer": "adam"}, ValueError, r"optimizer is 'adam', expected one of 'adamw', .*\(did you mean"),
        ({"schedule": "linear"}, ValueError, "schedule is 'linear', expected one of 'cosine', 'constant'"),
        ({"precision": "bf16"}, ValueError, "precision is 'bf16', expected one of 'auto', '32-true'"),
        ({"precision": "64-true"}, ValueError, "precision is '64-true'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    method = dropped()
    before = copy.deepcopy(method)
    with pytest.raises(error, match=message):
        fit(method, X, Y, **USUAL | settings)
    assert same(method, before)


def test_bad_data() -> None:
    with pytest.raises(ValueError, match=r"y has shape \(0,\), expected a vector of at least one class index"):
        fit(dropped(), X[:0], Y[:0], **USUAL)
    with pytest.raises(ValueError, match="y has 39 labels, expected 40, one for each image"):
        fit(dropped(), X, Y[1:], **USUAL)
    with pytest.raises(ValueError, match=r"x has values from .* to 25., expected finite values in \[0, 1\]"):
        fit(urkle(), X.float(), Y, **USUAL)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite(bad: float, tmp_path: Path) -> None:
    class Explodes(Dropped):
        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
            self.calls = getattr(self, "calls", 0) + 1
            return {"ce": super().forward(x, y, ids, seed)["cross_entropy"] * (bad if self.calls == 8 else 1)}

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 2; terms: \{'loss'"):
        fit(Explodes(), X, Y, **USUAL, cache=tmp_path)
    state = kept(tmp_path)
    assert len(state["history"]) == 1 and all(v.isfinite().all() for v in state["method"].values())


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda: urkle(beta_robust=0.1, beta_vae=0.1),
        lambda: seeded(
            lambda: TRADES(
                ConvEncoder(1, 8, gaussian=False, widths=(4, 4, 4), groups=2),
                MLPHead(8, 2),
                PGD(2, restarts=2, keep="best"),
                Linf(0.1),
            )
        ),
    ],
)
def test_mixed_precision(build: Any) -> None:
    method, reference = build(), build()
    before = copy.deepcopy(method.state_dict())
    half = fit(method, X, Y, **USUAL, precision="bf16-mixed")
    full = fit(reference, X, Y, **USUAL)
    assert all(v.isfinite().all() for v in method.state_dict().values())
    assert {v.dtype for k, v in method.state_dict().items() if v.is_floating_point()} == {torch.float32}
    assert not same(method, reference), "nothing was computed in half precision"
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.2)
    for name, p in method.named_parameters():
        if not name.startswith(("head.0.bias", "head.3.bias")):
            assert not torch.equal(p, before[name]), f"{name} did not learn"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_loss_scaling_may_skip_the_first_steps(optimizer: Any) -> None:
    """As in float16 on an older GPU: the scale starts too high, and comes down until the gradients are finite."""
    for seed in range(5):
        method = urkle(beta_robust=0.1)
        settings = USUAL | {"epochs": 8, "optimizer": optimizer, "lr": 1e-4, "seed": seed}
        history = fit(method, X, Y, **settings, precision="16-mixed")
        assert all(v.isfinite().all() for v in method.state_dict().values())
        assert history.how == "step by step: the loss scaling of 16-mixed decides on the host"


def test_best_precision() -> None:
    assert training.best_precision(torch.device("cpu")) in ("bf16-mixed", "32-true")
    method = dropped()
    fit(method, X, Y, **USUAL | {"precision": "auto"})
    assert all(v.isfinite().all() for v in method.state_dict().values())


# --- checkpoints --------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Raised to end a run in the middle."""


def kept(folder: Path) -> dict[str, Any]:
    """What the one file of a cache holds."""
    (path,) = folder.iterdir()
    return torch.load(path, weights_only=True)


def stop_after(epochs: int) -> Any:
    def after_epoch(done: int) -> dict[str, float]:
        if done > epochs:
            raise Stop
        return {}

    return after_epoch


def cut_short(method: nn.Module, cache: Path, after: int = 1, **settings: Any) -> Path:
    """The one file that a training leaves which ends after so many epochs."""
    with pytest.raises(Stop):
        fit(method, X, Y, **USUAL | settings, cache=cache, after_epoch=stop_after(after))
    assert len(kept(cache)["history"]) == after
    return next(cache.iterdir())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("build", [dropped, urkle])
@pytest.mark.parametrize("epochs", [1, 2])
def test_resume_is_exact(build: Any, optimizer: Any, epochs: int, tmp_path: Path) -> None:
    precision = "bf16-mixed" if epochs == 2 else "32-true"
    settings = USUAL | {"optimizer": optimizer, "warmup_epochs": 0.5, "precision": precision, "lr": 1e-3}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    cut_short(build(), cut, epochs, **settings)
    resumed, reference = build(), build()
    torch.manual_seed(99)
    history = fit(resumed, X, Y, **settings, cache=cut)
    expected = fit(reference, X, Y, **settings, cache=whole)
    assert same(resumed, reference)
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in h] for h in (history, expected)]
    assert strip[0] == strip[1]
    one, other = kept(cut), kept(whole)
    assert flat(one["optimizer"]) == flat(other["optimizer"])
    without = build()
    fit(without, X, Y, **settings)
    assert same(without, reference), "writing checkpoints changed the run"


def test_a_finished_run_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = dropped(), dropped()
    history = fit(first, X, Y, **USUAL, cache=tmp_path)
    monkeypatch.setattr(training.TrainingStep, "__call__", None)
    assert fit(again, X, Y, **USUAL, cache=tmp_path) == history
    assert same(first, again) and not again.training


SCRIPT = textwrap.dedent("""
    import os, signal, sys
    import torch
    sys.path.insert(0, sys.argv[1])
    import test_training as t
    from pathlib import Path

    folder, when = Path(sys.argv[2]), sys.argv[3]
    settings = t.USUAL | {"epochs": 4, "lr": 1e-3}
    t.checkpoints.code_hash = lambda: "the same"  # whoever edits the library meanwhile
    method, save, written = t.dropped(), torch.save, []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def half(state, path):
        written.append(path)
        save(state, path)
        if len(written) == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    if when == "step":
        def dying(step, *args, call=t.training.TrainingStep.__call__, **given):
            call(step, *args, **given)
            if given["number"] == 12:
                die()
        t.training.TrainingStep.__call__ = dying
    elif when == "write":
        torch.save = half
    t.fit(method, t.X, t.Y, **settings, cache=folder / "run")
    whole = t.dropped()
    t.fit(whole, t.X, t.Y, **settings, cache=folder / "whole")
    one, other = (t.kept(folder / name) for name in ("run", "whole"))
    assert t.same(method, whole)
    assert t.flat(one["method"]) == t.flat(other["method"])
    assert t.flat(one["optimizer"]) == t.flat(other["optimizer"])
    print("same", len(one["history"]))
""")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_and_resumed(tmp_path: Path) -> None:
    """Real processes: one killed in the middle of epoch 3, the next while it writes its second checkpoint, then one
    that may finish; its weights and optimizer are those of a run that nobody disturbed."""
    for when, epochs in (("step", 2), ("write", 3), ("never", 4)):
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path), when]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if when == "never" else -signal.SIGKILL), done.stderr
        (path,) = (tmp_path / "run").glob("[!.]*.pt")
        assert len(torch.load(path, weights_only=True)["history"]) == epochs
        for unfinished in (tmp_path / "run").glob(".*"):
            unfinished.unlink()
    assert done.stdout.strip() == "same 4"


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def broken(kind: str, whole: bytes, folder: Path) -> bytes:
    buffer = io.BytesIO()
    if kind == "empty":
        return b""
    if kind == "garbage":
        return random.Random(0).randbytes(len(whole))
    if kind == "text":
        return b"not a checkpoint\n" * 50
    if kind.startswith("cut"):
        return whole[: int(float(kind[4:]) * len(whole))]
    if kind == "one byte":  # in a weight, where nothing but a checksum tells
        weights = torch.load(io.BytesIO(whole), weights_only=True)["method"]["encoder.features.0.weight"]
        at = whole.index(weights.numpy().tobytes())
        return whole[: at + 2] + bytes([whole[at + 2] ^ 0x55]) + whole[at + 3 :]
    if kind == "evil":
        torch.save({"settings": {}, "history": [], "method": Evil(folder / "owned")}, buffer)
    elif kind == "evil pickle":
        return pickle.dumps(Evil(folder / "owned"))
    else:
        things: dict[str, Any] = {
            "tensor": torch.zeros(3),
            "list": [1, 2],
            "none": None,
            "state dict": urkle().state_dict(),
            "no weights": {"settings": {}, "history": []},
        }
        torch.save(things[kind], buffer)
    return buffer.getvalue()


KINDS = ["empty", "garbage", "text", "cut 0.99", "cut 0.5", "cut 0.01", "one byte", "evil", "evil pickle"]


@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.parametrize("kind", [*KINDS, "tensor", "list", "none", "state dict", "no weights"])
def test_broken_checkpoint(kind: str, tmp_path: Path) -> None:
    path = cut_short(urkle(), tmp_path / "cache")
    path.write_bytes(broken(kind, path.read_bytes(), tmp_path))
    method, whole = urkle(), urkle()
    with pytest.warns(UserWarning, match="(?s)is damaged .cut short or not a checkpoint: .* set aside"):
        fit(method, X, Y, **USUAL, cache=path.parent)
    assert not (tmp_path / "owned").exists(), "the checkpoint's own code was run"
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.damaged"]
    fit(whole, X, Y, **USUAL)
    assert same(method, whole)


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_as_torch_says_it(*_: Any) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598")


def half_written(state: Any, path: Path) -> None:
    path.write_bytes(b"PK half")
    full_disk()


@pytest.mark.parametrize("failure", [full_disk, full_disk_as_torch_says_it, half_written])
def test_full_disk(failure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, method = torch.save, dropped()

    def second_fails(state: Any, where: Any) -> None:
        (save if len(state["history"]) < 2 else failure)(state, where)

    monkeypatch.setattr(torch, "save", second_fails)
    with pytest.raises(OSError):
        fit(method, X, Y, **USUAL, cache=tmp_path)
    monkeypatch.undo()
    assert len(kept(tmp_path)["history"]) == 1
    resumed, whole = dropped(), dropped()
    fit(resumed, X, Y, **USUAL, cache=tmp_path)
    fit(whole, X, Y, **USUAL)
    assert same(resumed, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The system refuses to let the file grow: torch reports that in its own words."""
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import test_training as t\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: t.fit(t.dropped(), t.X, t.Y, **t.USUAL, cache=sys.argv[2])\n"
        "except OSError as error: print('refused:', error)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused:") and ".pt" in done.stdout, done.stdout + done.stderr
    assert not os.listdir(tmp_path)


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError):
        fit(dropped(), X, Y, **USUAL, cache=tmp_path / "a")
    assert not any(p.is_file() for p in tmp_path.rglob("*"))


# --- cache --------------------------------------------------------------------------------------------------------


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Dropped):
        calls = 0

        def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> dict[str, Tensor]:
            Counted.calls += 1
            return super().forward(x, y, ids, seed)

    def run(seed: int = 0, beta: float = 1.0, x: Any = X, y: Tensor = Y, **settings: Any) -> tuple[Any, Any, int]:
        method, Counted.calls = seeded(lambda: Counted(beta), seed), 0
        history = fit(method, x, y, **USUAL | settings, cache=tmp_path)
        return method, history, Counted.calls

    first, history, calls = run()
    assert calls == 15
    again, same_history, calls = run()
    assert calls == 0 and same_history == history and same(first, again)
    files = 1
    changes: list[dict[str, Any]] = [
        {"lr": 0.02}, {"seed": 3}, {"beta": 2.0}, {"x": 255 - X}, {"y": 1 - Y}, {"epochs": 2}, {"x": Rows()},
        {"precision": "bf16-mixed"}, {"batch_size": 10}, {"optimizer": "sgd"},
    ]  # fmt: skip
    for change in changes:
        assert run(**change)[2] > 0, change
        files += 1
        assert len(os.listdir(tmp_path)) == files
        assert run(**change)[2] == 0, change
    monkeypatch.setattr(checkpoints, "code_hash", lambda: "another")
    assert run()[2] == 15
    assert len(os.listdir(tmp_path)) == files + 1


def test_cache_resumes_what_was_cut_short(tmp_path: Path) -> None:
    epochs: list[int] = []

    def stop(done: int) -> dict[str, float]:
        epochs.append(done)
        if done == 3 and len(epochs) == 3:
            raise Stop
        return {}

    with pytest.raises(Stop):
        fit(dropped(), X, Y, **USUAL, cache=tmp_path, after_epoch=stop)
    method, whole = dropped(), dropped()
    fit(method, X, Y, **USUAL, cache=tmp_path, after_epoch=stop)
    assert epochs == [1, 2, 3, 3]
    fit(whole, X, Y, **USUAL)
    assert same(method, whole)


# --- several processes --------------------------------------------------------------------------------------------


DISTRIBUTED = textwrap.dedent("""
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import torch
    import test_training as t
    method = t.urkle(beta_robust=0.1)
    history = t.fit(method, t.X, t.Y, **t.USUAL, cache=os.path.join(sys.argv[2], "cache"))
    torch.save([method.state_dict(), list(history)], os.path.join(sys.argv[2], f"rank{os.environ['RANK']}.pt"))
    try:
        t.fit(t.urkle(), t.X, t.Y, **t.USUAL | {"batch_size": 7})
    except ValueError as error:
        print(error)
""")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same order of the data, the same noise for each image, the same global batch."""
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(script), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (first, history), (second, other_history) = (
        torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)
    )
    method = urkle(beta_robust=0.1)
    expected = fit(method, X, Y, **USUAL)
    for name, value in method.state_dict().items():
        assert torch.equal(first[name], second[name]), f"{name}: the processes drifted apart"
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)
    for row, other, one in zip(history, other_history, expected, strict=True):
        assert row["loss"] == other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert row["urkle"] == pytest.approx(one["urkle"], rel=1e-3)
    assert "batch_size is 7, expected a multiple of the 2 processes" in done.stdout
    assert len(kept(tmp_path / "cache")["history"]) == 3


# --- progress and imports -----------------------------------------------------------------------------------------


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "front_end", lambda: "batch")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("training", 5, "epoch") as bar:
        for seconds in (1, 5, 7, 1, 1):
            now[0] += seconds
            bar.update(1, "loss 0.1")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["training: epoch 3/5, 13 s, loss 0.1", "training: epoch 5/5, 15 s, loss 0.1"]
    with Progress("silent", 2, show=False) as bar:
        bar.update(2)
    captured = capsys.readouterr()
    assert not captured.err and not captured.out


def test_progress_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "front_end", lambda: "terminal")
    with Progress("training", 2, "epoch") as bar:
        bar.update(1, "loss 0.5")
        bar.update(1)
    assert "training" in capsys.readouterr().err
    assert bar.bar is not None and bar.bar.n == 2


def test_front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("google.colab", "ipykernel"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    for name in (*progress.SESSIONS, "ROBREP_BATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "started_by", lambda: "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.front_end() == "batch"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.front_end() == "terminal"
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert progress.front_end() == "terminal"  # a terminal inside Jupyter
    monkeypatch.setitem(sys.modules, "ipykernel", logging)
    assert progress.front_end() == "notebook"
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert progress.front_end() == "batch"  # papermill's kernel
    monkeypatch.setitem(sys.modules, "google.colab", logging)
    assert progress.front_end() == "notebook"


def test_fit_reports_its_epochs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fit(dropped(), X, Y, **USUAL, progress="VAE", cache=tmp_path)
    assert "VAE: epoch 3/3" in capsys.readouterr().err
    fit(dropped(), X, Y, **USUAL, progress="VAE", cache=tmp_path)
    assert "VAE: epoch 3/3" in capsys.readouterr().err, "a run that was loaded says so too"
    fit(dropped(), X, Y, **USUAL)
    captured = capsys.readouterr()
    assert not captured.err and not captured.out


def test_heavy_packages_wait_until_they_are_used() -> None:
    rooms = "checks, random, files, progress, gaussians, losses, attacks, encoders, methods, training"
    code = (
        "import sys, json, torch; before = set(sys.modules)\n"
        f"from robrep import {rooms}, heads, evaluation; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torchvision", "sklearn", "lightning_fabric", "plotly", "umap", "IPython", "tqdm", "scipy", "matplotlib"}
    assert not heavy & set(json.loads(done.stdout))


def test_fabric_outside_of_torchrun() -> None:
    fabric = make_fabric("cpu")
    assert fabric.world_size == 1 and fabric.device.type == "cpu"


def test_methods_with_batch_norm_keep_their_statistics() -> None:
    def build() -> Supervised:
        return Supervised(ConvEncoder(1, 8, gaussian=False, widths=(4, 4, 4), groups=2), MLPHead(8, 2))

    method = seeded(build)
    fit(method, X, Y, **USUAL)
    assert method.head[1].num_batches_tracked == 15


def test_float_images_and_labels_that_do_not_fit_are_refused() -> None:
    method = Supervised(nn.Flatten(), nn.Linear(64, 10))
    x, y = torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(ValueError, match="x has values from"):
        fit(method, 2 + x, y, epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="labels from 10 to 10, expected labels in 0 ... 9"):
        fit(method, x, y + 10, epochs=1, batch_size=4)
    with pytest.raises(TypeError, match="y has dtype torch.float32"):
        fit(method, x, y.float(), epochs=1, batch_size=4)


# --- what a run is known by -------------------------------------------------------------------------------------------


class Scaled(Dropped):
    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, y: Tensor, ids: Tensor, seed: Tensor) -> dict[str, Tensor]:
        value = self.scale["beta"] if isinstance(self.scale, dict) else self.scale
        value = value() if callable(value) else value[0] if isinstance(value, (list, tuple)) else value
        return {"ce": float(value) * cross_entropy(self.net(x), y).mean()}


def one() -> float:
    return 1.0


def nine() -> float:
    return 9.0


KINDS_OF_ATTRIBUTES = {
    "dict": ({"beta": 1.0}, {"beta": 9.0}), "list": ([1.0], [9.0]), "tuple": ((1.0,), (9.0,)),
    "numpy": (np.float32(1), np.float32(9)), "array": (np.array(1.0), np.array(9.0)),
    "tensor": (torch.tensor(1.0), torch.tensor(9.0)), "function": (one, nine),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_ATTRIBUTES)
def test_a_cache_knows_every_attribute(kind: str, tmp_path: Path) -> None:
    first, second = KINDS_OF_ATTRIBUTES[kind]
    losses = [
        fit(seeded(lambda v=value: Scaled(v)), X, Y, **USUAL, cache=tmp_path)[-1]["loss"]
        for value in (first, second, first)
    ]
    assert losses[1] > 2 * losses[0] and losses[2] == losses[0]
    assert len(os.listdir(tmp_path)) == 2


def test_a_cache_knows_the_code(tmp_path: Path) -> None:
    """As when a cell of a notebook is edited and run again: the same class name, another forward."""
    found = []
    for factor in (1.0, 9.0):
        code = f"""
class Edited(Dropped):
    def forward(self, x, y, ids, seed):
        return {{"ce": {factor} * super().forward(x, y, ids, seed)["cross_entropy"]}}
"""
        cell: dict[str, Any] = {"Dropped": Dropped, "__name__": "__main__"}
        exec(code, cell)
        found.append(fit(seeded(cell["Edited"]), X, Y, **USUAL, cache=tmp_path)[-1]["loss"])
    assert found[1] > 2 * found[0] and len(os.listdir(tmp_path)) == 2


def test_what_cannot_be_identified_is_not_kept(tmp_path: Path) -> None:
    method = dropped()
    method.log = (i for i in range(3))
    with pytest.warns(UserWarning, match="fit keeps nothing in the cache: method holds .*generator"):
        fit(method, X, Y, **USUAL, cache=tmp_path)
    assert not os.listdir(tmp_path)
