"""Batches that fit the memory, precision of passes, processes: verdicts depend on none of them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robrep.attacks import FGSM, PGD, Linf
from robrep.evaluation import accuracy, adversarial_images, against_radius, evaluate, robust_accuracy
from robrep.passes import (
    NEW,
    Batches,
    images_of,
    out_of_memory,
    true_float32,
)

X = torch.rand(50, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


class Rowwise(nn.Module):
    """Three classes, computed without matrix products, so that an image's result is the same in any batch.

    Args:
        room: more images than this do not fit into the memory.
    """

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.w, self.room = nn.Parameter(torch.randn(3, 36, generator=torch.Generator().manual_seed(2))), room
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return ((x.flatten(1) - 0.5).unsqueeze(1) * self.w).sum(2)


Y = Rowwise()(X).argmax(1)
Y[::10] = (Y[::10] + 1) % 3


class Network(nn.Module):
    """With a matrix product, which autocast sees; notes the dtype that it computed in, and whether for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        self.seen: list[tuple[torch.dtype, bool]] = []
        self.flags: list[list[str]] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        self.seen.append((z.dtype, torch.is_grad_enabled()))
        self.flags.append(flags())
        return z


def flags() -> list[str]:
    b: Any = torch.backends
    legacy = "ieee" if torch.get_float32_matmul_precision() == "highest" and not b.cudnn.allow_tf32 else "faster"
    units = [b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul] if NEW else []
    return [legacy, *(u.fp32_precision for u in units)]


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 3, 8, 49])
@pytest.mark.parametrize("batch_size", [None, 20])
def test_where_memory_runs_out_batches_are_halved(room: int, batch_size: int | None) -> None:
    model = Rowwise(room)
    whole = evaluate(Rowwise(), X, Y, [PGD(5), FGSM()], Linf(0.02))
    small = evaluate(model, X, Y, [PGD(5), FGSM()], Linf(0.02), batch_size=batch_size)
    assert torch.equal(whole.robust.correct, small.robust.correct) and torch.equal(
        whole.clean.correct, small.clean.correct
    )
    assert whole.x_adv is not None and small.x_adv is not None and torch.equal(whole.x_adv, small.x_adv)
    assert 0 < whole.robust.value < whole.clean.value
    too_large = [size for size in model.sizes if size > room]
    assert len(too_large) <= 6, "it is not forgotten that memory ran out"


def test_memory_that_runs_out_with_one_image(tmp_path: Path) -> None:
    class Later(Rowwise):
        calls, limit = 0, 20

        def forward(self, x: Tensor) -> Tensor:
            self.calls += torch.is_grad_enabled()
            if self.calls > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

        fingerprint = "the same, however often it was called"

    model = Later().train()
    with pytest.raises(
        torch.OutOfMemoryError, match="memory of cpu runs out at a batch size of 1, expected room for one image"
    ):
        evaluate(model, X, Y, PGD(5), Linf(0.02), batch_size=8, cache=tmp_path)
    assert model.training
    kept = len(list(tmp_path.rglob("*.npz")))
    assert kept == 4, "what was attacked is lost"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_that_really_runs_out(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")

    class Greedy(Rowwise):
        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            torch.empty(1 << (50 if len(x) > self.room else 4), dtype=torch.uint8, device=x.device)
            return super().forward(x) if len(x) <= self.room else x

    model = Greedy(7).to(device)
    found = evaluate(model, X, Y, PGD(5), Linf(0.02), batch_size=40)
    assert abs(found.robust.value - robust_accuracy(Rowwise(), X, Y, PGD(5), Linf(0.02)).value) <= 0.02
    assert max(model.sizes) == 40 and sorted(model.sizes)[-5] <= 10


def test_batches() -> None:
    tried: list[list[int]] = []

    def work(ids: Tensor) -> int:
        tried.append(ids.tolist())
        if len(ids) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")
        return len(ids)

    batches = Batches(CPU, 7)
    done = list(batches.run(torch.arange(10), work))
    assert [ids.tolist() for ids, _ in done] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]] and [k for _, k in done] == [
        3,
        3,
        3,
        1,
    ]
    assert tried[0] == list(range(7)) and len(tried) == 5 and batches.size == 3
    assert Batches(CPU, None).size == 500 and Batches(torch.device("cuda"), None).size == 2048

    def fails(ids: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(batches.run(torch.arange(10), fails))
    assert out_of_memory(RuntimeError("MPS backend out of memory")) and not out_of_memory(RuntimeError("graph is cut"))


def test_images_are_wide_and_contiguous() -> None:
    ids = torch.tensor([3, 1])
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert images_of(X.to(dtype), ids).dtype == expected
    last = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert images_of(last, ids).is_contiguous() and torch.equal(images_of(last, ids), last[ids])


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        self.count += function.name() in names or function.name().startswith("aten::equal")
        return function(*args, **(kwargs or {}))


def test_the_host_waits_once_a_batch_and_not_once_a_step() -> None:
    def waits(steps: int, batch_size: int) -> int:
        model = Rowwise()

        def loss(x_: Tensor, y_: Tensor) -> Tensor:  # nothing but the evaluation looks at labels
            return nn.functional.cross_entropy(model(x_), y_, reduction="none")

        def attack(objective: Any, *arguments: Any, **keywords: Any) -> Tensor:
            return PGD(steps)(loss, *arguments, **keywords)

        with Waits() as mode:
            evaluate(model, X, Y, attack, Linf(0.02), batch_size=batch_size)
        return mode.count

    assert waits(2, 25) == waits(20, 25) < waits(2, 5) <= 10 * waits(2, 25)


# --- precision ----------------------------------------------------------------------------------------------------


def test_the_verdict_is_in_true_float32_whatever_the_attack_and_the_caller_compute_in() -> None:
    y, before = Network()(X).argmax(1), flags()
    alone = evaluate(Network(), X, y, PGD(5), Linf(0.05))
    for precision in ("32-true", "bf16-mixed"):
        model = Network()
        with torch.autocast("cpu", torch.bfloat16):
            found = evaluate(model, X, y, PGD(5), Linf(0.05), precision=precision)  # type: ignore[arg-type]
            assert accuracy(model, X, y).value == 1
        verdicts = {dtype for dtype, for_gradient in model.seen if not for_gradient}
        attacks = {dtype for dtype, for_gradient in model.seen if for_gradient}
        assert verdicts == {torch.float32}
        assert attacks == {torch.bfloat16 if precision == "bf16-mixed" else torch.float32}
        assert abs(found.robust.value - alone.robust.value) <= 0.06
        if precision == "32-true":
            assert torch.equal(found.robust.correct, alone.robust.correct)
        judged = [f for f, (_, for_gradient) in zip(model.flags, model.seen, strict=True) if not for_gradient]
        assert judged and all(set(f) == {"ieee"} for f in judged)
        assert flags() == before


def test_global_precision_comes_back() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        before = flags()
        with pytest.raises(ZeroDivisionError), true_float32(CPU):
            assert flags() != before
            raise ZeroDivisionError
        assert flags() == before and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_precision_is_an_option_everywhere() -> None:
    y = Network()(X).argmax(1)
    calls: dict[str, Any] = {
        "robust": lambda model, p: robust_accuracy(model, X, y, PGD(3), Linf(0.05), precision=p),
        "radius": lambda model, p: against_radius(model, X, y, PGD(3), Linf, [0, 0.05], precision=p),
        "images": lambda model, p: adversarial_images(model, X, y, PGD(3), Linf(0.05), precision=p),
        "evaluate": lambda model, p: evaluate(model, X, y, PGD(3), Linf(0.05), precision=p),
    }
    for name, call in calls.items():
        model = Network()
        call(model, "bf16-mixed")
        assert (torch.bfloat16, True) in model.seen and (torch.bfloat16, False) not in model.seen, name
        with pytest.raises(ValueError, match="precision is 'bf16', expected one of"):
            call(Network(), "bf16")


# --- what is kept -------------------------------------------------------------------------------------------------


def test_images_are_kept_where_they_are_asked_for() -> None:
    with_images, without = (
        evaluate(Rowwise(), X, Y, [PGD(5), FGSM()], Linf(0.02), keep=keep) for keep in (True, False)
    )
    assert with_images.x_adv is not None and without.x_adv is None
    assert torch.equal(with_images.robust.correct, without.robust.correct)
    assert [s.broken for s in with_images.stages] == [s.broken for s in without.stages]


# --- processes ----------------------------------------------------------------------------------------------------


def test_processes_share_the_images(tmp_path: Path) -> None:
    """Two processes under torchrun find what one finds; and refuse to mix what does not belong together."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, os, sys
            sys.path.insert(0, sys.argv[1])
            import torch
            from test_evaluate import Noisy, Rowwise, SUITE, X, Y
            from robrep.attacks import Linf, PGD
            from robrep.evaluation import Rate, against_radius, evaluate
            rank, seen = int(os.environ.get("RANK", 0)), []

            class Watched(PGD):
                def __call__(self, objective, x, *rest, **keywords):
                    seen.extend(keywords["ids"].tolist())
                    return super().__call__(objective, x, *rest, **keywords)

            def told(found):
                stages = [vars(s) | {"robust": s.robust.to_dict(), "seconds": 0} for s in found.stages]
                sums = [found.clean.to_dict(), found.robust.to_dict(), found.threat, found.unconfirmed]
                return [stages, sums, found.robust.correct.tolist(), found.x_adv.tolist()]

            out = {
                "rowwise": told(evaluate(Rowwise(), X, Y, SUITE, Linf(0.02), batch_size=6, cache=sys.argv[3])),
                "noisy": told(evaluate(Noisy(), X, Y, SUITE, Linf(0.02))),
                "after": told(evaluate(Rowwise(), X, Y, PGD(2), Linf(0.02), after=Rate(torch.arange(50) < 1))),
                "radius": against_radius(Rowwise(), X, Y, PGD(3), Linf, [0, 0.01, 0.03]),
            }
            evaluate(Rowwise(), X, Y, Watched(2), Linf(0.02))
            if "RANK" in os.environ:
                alone = evaluate(Rowwise(1 + rank), X, Y, PGD(2), Linf(0.02), spread=False)
                assert alone.stages[0].attacked == 45
                for model, attack in ((Rowwise(1 + rank), PGD(2)), (Rowwise(), PGD(2, step_size=0.01 + rank))):
                    try:
                        evaluate(model, X, Y, attack, Linf(0.02))
                    except ValueError as error:
                        out["errors"] = [*out.get("errors", []), str(error)]
            out["seen"] = seen
            open(f"{sys.argv[2]}-{rank}.json", "w").write(json.dumps(out))
            """
        )
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run(
            [*start, str(script), str(Path(__file__).parent), str(tmp_path / name), str(tmp_path / f"cache-{name}")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one-0", "two-0", "two-1"))
    for part in (first, second):
        told = part.pop("errors")
        assert len(told) == 2 and all(
            "processes evaluate different models, images or attacks" in error for error in told
        )
    shares = [part.pop("seen") for part in (one, first, second)]
    assert (
        shares[1] and shares[2] and not set(shares[1]) & set(shares[2]) and sorted(shares[1] + shares[2]) == shares[0]
    )
    assert first == second == one


def test_seeds() -> None:
    import numpy as np

    with pytest.raises(TypeError, match="seed is 1.5, expected an integer"):
        accuracy(Rowwise(), X, Y, seed=1.5)  # type: ignore[arg-type]
    one, other = (evaluate(Rowwise(), X, Y, PGD(2), Linf(0.02), seed=seed) for seed in (np.int64(3), 3))
    assert one.x_adv is not None and other.x_adv is not None and torch.equal(one.x_adv, other.x_adv)
