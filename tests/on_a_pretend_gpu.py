"""Every chapter and the library run on a GPU without mixing devices: proved on a pretend one, in any machine's CI."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import BALL, METHODS, images
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robrep import evaluation, heads
from robrep.attacks import APGD, PGD, Square
from robrep.audit import audit
from robrep.book import figures, worst_case_mi
from robrep.book.early_stopping import train_head_stopped
from robrep.book.figures.base import array
from robrep.encoders import ConvEncoder, Critic, MLPHead
from robrep.heads import Classifier, device_of, encode
from robrep.training import fit

try:
    from pretend_gpu import GPU, NAME, Held, Hidden, run_notebook, visible
except ImportError as error:
    pytest.skip(f"this torch has no backends in Python ({error})", allow_module_level=True)

MIXED = "Expected all tensors to be on the same device"


@pytest.fixture
def gpu() -> Any:
    """A pretend GPU, on which ``fit`` trains."""
    with visible():
        yield GPU


# --- the pretend GPU refuses what a GPU refuses -----------------------------------------------------------------------


def test_tensors_go_there_and_back(gpu: torch.device) -> None:
    x = torch.arange(6.0).view(2, 3)
    there = x.to(gpu)
    assert there.device == gpu and there.device.type == NAME and not there.is_meta and not there.is_cpu
    assert torch.equal(there.cpu(), x) and torch.equal(there.to("cpu", torch.float64), x.double())
    assert there.tolist() == x.tolist() and there.sum().item() == 15 and bool((there == there.clone()).all())
    for made in (
        torch.tensor([1, 2], device=gpu), torch.zeros(2, 2, device=gpu), torch.arange(3, device=gpu), there.new_ones(2),
        torch.rand(2, device=gpu), torch.empty_like(there), there.T, there[0], there[:, 1:], torch.eye(2, device=gpu),
        torch.full((2,), 3.0, device=gpu), torch.linspace(0, 1, 3, device=gpu), torch.randperm(3, device=gpu),
        torch.as_tensor([1.0], device=gpu),
    ):  # fmt: skip
        assert made.device == gpu and isinstance(made, Held)
    there[0] = 7
    there[1, 1:].copy_(torch.tensor([8.0, 9.0]))
    assert there.tolist() == [[7, 7, 7], [3, 8, 9]] and x.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copy.deepcopy(there).device == gpu


def test_gradients_are_the_cpus(gpu: torch.device) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    x = torch.rand(5, 1, 8, 8)
    found = []
    for on in ("cpu", gpu):
        model, inputs = copy.deepcopy(net).to(on), x.to(on, copy=True).requires_grad_()
        model(inputs).square().sum().backward()
        found.append([inputs.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        assert all(t is not None and t.device.type == torch.device(on).type for t in found[-1])
    assert all(torch.equal(a, b.cpu()) for a, b in zip(*found, strict=True))


def test_a_head_of_the_cpu_on_codes_of_the_gpu_is_refused(gpu: torch.device) -> None:
    codes, head = torch.rand(5, 4, device=gpu), nn.Linear(4, 3)
    with pytest.raises(RuntimeError, match=MIXED):
        head(codes)
    assert head.to(gpu)(codes).shape == (5, 3) and isinstance(head.weight, nn.Parameter)


def test_other_mixtures(gpu: torch.device) -> None:
    a, b, i = torch.rand(4, device=gpu), torch.rand(4), torch.tensor([2, 0])
    for mixed in (
        lambda: a + b, lambda: b * a, lambda: torch.cat([a, b]), lambda: torch.stack([a[0], b[0]]), lambda: a @ b,
        lambda: torch.where(b > 0, a, a), lambda: b.add_(a), lambda: a.sum() + b, lambda: b[i.to(gpu)],
        lambda: a.gather(0, i), lambda: a.index_select(0, i), lambda: nn.functional.embedding(i, a[:, None]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=MIXED):
            mixed()


def test_what_a_gpu_takes_from_the_cpu(gpu: torch.device) -> None:
    """Numbers, and indices of what lies on the GPU."""
    a, i = torch.arange(4.0, device=gpu), torch.tensor([2, 0])
    assert a[i].tolist() == [2, 0] and a[i].device == gpu and a[torch.arange(4) > 2].tolist() == [3]
    a[i] = 5.0
    assert (a + torch.tensor(1.0)).tolist() == [6, 2, 6, 4]


def test_numpy_cannot_read_it(gpu: torch.device) -> None:
    import numpy as np

    a = torch.rand(4, device=gpu)
    for read in (a.numpy, lambda: np.asarray(a), lambda: np.array([a[0], a[1]]), lambda: torch.from_numpy(a.numpy())):
        with pytest.raises(TypeError, match="can't convert pretend:0 device type tensor to numpy"):
            read()
    assert a.cpu().numpy().shape == (4,)


def test_generators_of_the_cpu_are_refused(gpu: torch.device) -> None:
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(4, device=gpu, generator=torch.Generator())


# --- the library ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_on_the_cpu(gpu: torch.device, name: str) -> None:
    build, channels = METHODS[name]
    torch.manual_seed(0)
    methods = [build()]
    methods.append(copy.deepcopy(methods[0]))
    x, y = images(24, channels), torch.arange(24) % 10
    settings = dict(epochs=1, batch_size=12, optimizer="sgd", lr=0.01)
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's own attention rounds differently
        told = [fit(m, x, y, accelerator=a, **settings) for m, a in zip(methods, ("cpu", "auto"), strict=True)]
    assert device_of(methods[0]).type == "cpu" and device_of(methods[1]) == gpu
    assert all(p.device == gpu for p in methods[1].state_dict().values())
    assert told[1].how == f"step by step: a device of type {NAME} has no graphs"
    for mine, its in zip(methods[0].state_dict().values(), methods[1].state_dict().values(), strict=True):
        torch.testing.assert_close(its.cpu(), mine)
    for key in told[0][0].keys() - {"seconds"}:
        assert told[0][0][key] == pytest.approx(told[1][0][key], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_optimizers_and_checkpoints(gpu: torch.device, optimizer: Any, tmp_path: Path) -> None:
    build, channels = METHODS["supervised"]
    x, y = images(24, channels), torch.arange(24) % 10
    torch.manual_seed(0)
    whole, parts = (first := build()), copy.deepcopy(first)
    settings: dict[str, Any] = dict(epochs=3, batch_size=12, optimizer=optimizer, save_every=0)
    fit(whole, x, y, **settings)

    def stop(epoch: int) -> dict[str, float]:
        if epoch == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fit(copy.deepcopy(parts), x, y, cache=tmp_path, after_epoch=stop, **settings)
    fit(parts, x, y, cache=tmp_path, **settings)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert b.device == gpu and torch.equal(a.cpu(), b.cpu())


@pytest.fixture
def trained(gpu: torch.device) -> Any:
    """An encoder and a head that were trained on the GPU, and data on the CPU, as chapters have them."""
    torch.manual_seed(0)
    encoder, head = ConvEncoder(1, 4, gaussian=True, widths=(4, 4, 4), groups=2), MLPHead(4, 10)
    x, y = images(40, 1), torch.arange(40) % 10
    heads.train_head(encoder.to(gpu), head, x, y, epochs=1, batch_size=20)
    assert device_of(head) == gpu
    return encoder, head, x, y


def test_heads(trained: Any) -> None:
    encoder, head, x, y = trained
    assert encode(encoder, x).mean.device == GPU
    heads.train_head(encoder, head, x, y, epochs=1, batch_size=20, attack=PGD(2), threat=BALL)
    for labelled in (torch.tensor([1, 3]), torch.tensor([1, 3], device=GPU)):
        labels = heads.pseudo_labels(Classifier(encoder, head), x, y, labelled)
        assert labels.device.type == "cpu" and labels[labelled.cpu()].tolist() == [1, 3]


@pytest.mark.parametrize("attack", [None, PGD(2)], ids=str)
def test_a_head_goes_where_the_encoder_is(gpu: torch.device, attack: Any) -> None:
    """An encoder that was loaded, or never trained, is on the CPU, and is not moved."""
    x, y = images(40, 1), torch.arange(40) % 10
    for on in (torch.device("cpu"), gpu):
        encoder, head = ConvEncoder(1, 4, gaussian=False, widths=(4, 4, 4), groups=2).to(on), MLPHead(4, 10)
        heads.train_head(encoder, head, x, y, epochs=1, batch_size=20, attack=attack, threat=attack and BALL)
        assert device_of(encoder) == device_of(head) == on
        assert evaluation.accuracy(Classifier(encoder, head), x, y).n == 40
        head = MLPHead(4, 10)
        train_head_stopped(encoder, head, x, y, (x, y), PGD(2), BALL, epochs=2, batch_size=20, attack=attack)
        assert device_of(encoder) == device_of(head) == on


@pytest.mark.parametrize("attack", [PGD(3), APGD(4), Square(6), [PGD(2), APGD(3)]], ids=str)
def test_evaluation(trained: Any, attack: Any) -> None:
    encoder, head, x, y = trained
    model = Classifier(encoder, head, samples=2)
    if not isinstance(attack, list):
        assert evaluation.robust_accuracy(model, x, y, attack, BALL, batch_size=20).n == 40
    found = evaluation.evaluate(model, x, y, attack, BALL, batch_size=20)
    assert found.x_adv.device.type == "cpu" and found.robust.correct.device.type == "cpu"


def test_an_audit(gpu: torch.device) -> None:
    x, model = images(8, 1) / 255, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(GPU)
    with torch.no_grad():
        y = model(x.to(GPU)).argmax(1).cpu()
    assert str(audit(model, x, y, BALL))


def test_vulnerability(trained: Any) -> None:
    encoder, _, x, _ = trained
    z = encode(encoder, x).mean
    critic = Critic((1, 8, 8), 4).to(GPU)
    assert isinstance(worst_case_mi.read_off(critic, x, z, batch_size=20), float)


def test_figures_take_tensors_of_the_gpu(gpu: torch.device) -> None:
    x = torch.rand(3, 1, 8, 8, device=gpu)
    assert figures.image_grid({"clean": x}, {"clean": ["a", "b", "c"]}).layout.meta["alt"]
    assert array(x).shape == (3, 1, 8, 8) and array([[x[0]], [x[1]]]).shape == (2, 1, 1, 8, 8)
    assert array([x.mean(), 1.0]).tolist() == pytest.approx([x.mean().item(), 1.0])


# --- the chapters -----------------------------------------------------------------------------------------------------


BAD = {
    "a head of the CPU": ("nn.Linear(encoder.dim, 10)(encode(encoder, x))", RuntimeError, MIXED),
    "an image of the CPU": ("encoder(x)", RuntimeError, MIXED),
    "numpy": ("encode(encoder, x).numpy()", TypeError, "can't convert pretend:0"),
    "IPython": ("from IPython.display import Code", ModuleNotFoundError, "No module named 'IPython'"),
}
CELLS = (
    "import torch\nfrom torch import nn\nfrom robrep.encoders import ConvEncoder, MLPHead\n"
    "from robrep.heads import encode\nfrom robrep.methods import Supervised\nfrom robrep.training import fit",
    "SCALE = 'demo'",
    "assert SCALE == 'smoke'\nencoder = ConvEncoder(1, 4, gaussian=False, widths=(4, 4, 4), groups=2)\n"
    "method, x, y = Supervised(encoder, MLPHead(4, 10)), torch.rand(8, 1, 8, 8), torch.arange(8)\n"
    "fit(method, x, y, epochs=1, batch_size=8)",
)


@pytest.mark.parametrize("name", ["none", *BAD])
def test_a_chapter_that_would_fail_on_a_gpu_fails(
    name: str, gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``test_pretend_gpu.test_chapter`` runs one."""
    for module in [m for m in sys.modules if m.partition(".")[0] == "IPython"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Hidden("IPython"), *sys.meta_path])
    line, kind, said = BAD.get(name, ("assert encode(encoder, x).cpu().numpy().shape == (8, 4)", None, ""))
    mocked = {"nbmake": {"mock": {"SCALE": "smoke"}}}
    cells = [
        {"cell_type": "code", "metadata": mocked if cell.startswith("SCALE") else {}, "source": [cell]}
        for cell in (*CELLS, "if False:\n    %time\n" + line)
    ]
    path = tmp_path / "chapter.ipynb"
    path.write_text(json.dumps({"cells": cells}), "utf8")
    if kind is None:
        assert device_of(run_notebook(path)["encoder"]) == gpu
        return
    with pytest.raises(kind, match=said):
        run_notebook(path)
