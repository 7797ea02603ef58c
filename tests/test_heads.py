"""Heads: the encoder is left alone, and predictions average probabilities over samples of the code."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep import heads
from robrep.attacks import L2, PGD, Linf
from robrep.encoders import ConvEncoder, MLPHead
from robrep.gaussians import Gaussian
from robrep.heads import Classifier, device_of, encode, gradients_disabled, train_head
from robrep.random import fold, noise, permutation

X = (255 * torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
X[:, :, :4] = (X[:, :, :4].float() * (0.3 + 0.7 * (torch.arange(60) % 2)).view(-1, 1, 1, 1)).to(torch.uint8)
Y = torch.arange(60) % 2  # the upper half is dark in class 0


class Normed(nn.Module):
    """An encoder with batch norm and dropout, so that mode and statistics matter."""

    def __init__(self, gaussian: bool = True) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 16)
        )

    def forward(self, x: Tensor) -> Gaussian | Tensor:
        code = self.net(x)
        return Gaussian(code[:, :8], nn.functional.softplus(code[:, 8:]) + 0.01) if self.gaussian else code[:, :8]


def build(kind: Any, *arguments: Any, seed: int = 0, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(*arguments, **settings)


def snapshot(module: nn.Module) -> list[Any]:
    state = [(k, v.clone()) for k, v in module.state_dict().items()]
    modes = [m.training for m in module.modules()]
    return [state, modes, [p.requires_grad for p in module.parameters()], [p.grad is None for p in module.parameters()]]


def assert_untouched(before: list[Any], module: nn.Module) -> None:
    after = snapshot(module)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before[0], after[0], strict=True)), "weights or statistics"
    assert before[1] == after[1], "modes"
    assert before[2:] == after[2:], "gradients"


# --- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 60, 1000])
def test_encode(gaussian: bool, batch_size: int) -> None:
    encoder = build(Normed, gaussian).double()
    encoder.train()
    encoder.net[3].eval()
    before, x = snapshot(encoder), X.double() / 255
    codes = encode(encoder, x, batch_size)
    assert_untouched(before, encoder)
    expected = copy.deepcopy(encoder).eval()(x)
    assert isinstance(codes, Gaussian) == gaussian
    for a, b in zip(codes if gaussian else [codes], expected if gaussian else [expected], strict=True):
        assert a.shape == (60, 8) and not a.requires_grad
        torch.testing.assert_close(a, b)


def test_encode_takes_bytes_and_anything_indexable() -> None:
    class Rows:
        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: Tensor) -> Tensor:
            return X[index]

    encoder = build(Normed)
    for a, b, c in zip(encode(encoder, X), encode(encoder, X.float() / 255), encode(encoder, Rows()), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_device_of() -> None:
    assert device_of(nn.ReLU()).type == "cpu"
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"


# --- predictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 20])
def test_probabilities_are_averaged_and_not_logits(samples: int) -> None:
    encoder, head = build(Normed).double().eval(), build(nn.Linear, 8, 3).double()
    head.weight.data.mul_(5)
    x, ids = X[:6].double() / 255, torch.tensor([4, 0, 9, 33, 2, 1])
    got = Classifier(encoder, head, samples)(x, ids=ids, seed=3)
    p, e = encoder(x), noise(3, ids, (samples, 8))
    probabilities, logits = torch.zeros(6, 3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    for i in range(6):
        for s in range(samples):
            out = head(p.mean[i] + p.scale[i] * e[i, s])
            probabilities[i] += out.softmax(0) / samples
            logits[i] += out / samples
    torch.testing.assert_close(got.exp(), probabilities)
    torch.testing.assert_close(got.exp().sum(1), torch.ones(6, dtype=torch.float64))
    if samples > 1:
        assert not torch.allclose(got.exp(), logits.softmax(1), atol=1e-3)


def test_an_image_meets_the_same_noise_in_every_batch() -> None:
    model = build(lambda: Classifier(Normed(), MLPHead(8, 3), 5)).double().eval()
    x = X.double() / 255
    whole = model(x, seed=2)
    torch.testing.assert_close(whole, model(x, ids=torch.arange(60), seed=2))
    for part in permutation(0, 60).split(13):
        torch.testing.assert_close(model(x[part], ids=part, seed=2), whole[part])
    assert not torch.allclose(model(x, seed=3), whole)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_converge() -> None:
    """The average over more samples scatters less, and around the same value."""
    encoder, head = build(Normed).eval(), build(nn.Linear, 8, 3)
    x = X[:20].float() / 255
    few, many = (
        torch.stack([Classifier(encoder, head, s)(x, seed=k).exp() for k in range(12)]).detach() for s in (2, 50)
    )
    assert 2.5 < few.std(0).mean() / many.std(0).mean() < 10  # about sqrt(25) = 5
    torch.testing.assert_close(few.mean(0), many.mean(0), atol=0.12, rtol=0)


def test_mean_code_and_deterministic_encoders() -> None:
    encoder, head = build(Normed).eval(), build(MLPHead, 8, 3).eval()
    x = X.float() / 255
    model = Classifier(encoder, head, 20)
    torch.testing.assert_close(model.mean_code(x), head(encoder(x).mean))
    assert model.mean_code.encoder is encoder and model.mean_code.head is head and model.samples == 20
    torch.testing.assert_close(Classifier(encoder, head, samples=0)(x, seed=5), head(encoder(x).mean))
    plain = build(Normed, False).eval()
    torch.testing.assert_close(Classifier(plain, head, 20)(x, seed=5), head(plain(x)))


def test_number_of_samples_is_checked() -> None:
    for samples, error in ((-1, ValueError), (1.5, TypeError), ("3", TypeError), (True, TypeError)):
        with pytest.raises(error, match="samples is "):
            Classifier(Normed(), MLPHead(8, 3), samples)  # type: ignore[arg-type]


def test_sure_predictions_have_no_infinities() -> None:
    head = nn.Linear(8, 2, bias=False)
    nn.init.constant_(head.weight, 0.0)
    head.weight.data[0] = 1e4
    log_p = Classifier(build(Normed).eval(), head, 4)(X.float() / 255)
    assert log_p.isfinite().all() and (log_p <= 1e-6).all()


# --- training -----------------------------------------------------------------------------------------------------


KINDS = pytest.mark.parametrize("gaussian", [True, False])
ADVERSARIAL = pytest.mark.parametrize("adversarial", [True, False])
USUAL: dict[str, Any] = dict(epochs=4, batch_size=20, lr=0.02, seed=3)


def how(adversarial: bool) -> dict[str, Any]:
    return {"attack": PGD(2), "threat": Linf(0.05)} if adversarial else {}


@KINDS
@ADVERSARIAL
@pytest.mark.parametrize("training", [True, False])
def test_the_encoder_is_left_alone(gaussian: bool, adversarial: bool, training: bool) -> None:
    encoder, head = build(Normed, gaussian), build(MLPHead, 8, 2)
    encoder.train(training)
    encoder.net[3].eval()
    encoder.net[0].bias.requires_grad_(False)
    before, before_head = snapshot(encoder), copy.deepcopy(head)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    history = train_head(encoder, head, X, Y, **USUAL, **how(adversarial))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(history) == 4 and set(history[0]) == {"cross_entropy", "loss", "lr", "seconds"}
    assert history[-1]["loss"] < history[0]["loss"]
    for (name, p), q in zip(head.named_parameters(), before_head.parameters(), strict=True):
        if name not in ("0.bias", "3.bias"):  # in front of a batch norm
            assert not torch.equal(p, q), name
    assert head[1].num_batches_tracked == 4 * 3 and not torch.equal(head[1].running_mean, before_head[1].running_mean)
    assert not head.training
    assert_untouched(before, encoder)


@ADVERSARIAL
def test_the_encoder_is_restored_after_a_failure(adversarial: bool) -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    encoder = build(Normed)
    before = snapshot(encoder)
    with pytest.raises(ZeroDivisionError):
        train_head(encoder, Fails(8, 2), X, Y, **USUAL, **how(adversarial))
    assert_untouched(before, encoder)


def test_a_clean_head_learns_from_fresh_samples_of_the_codes() -> None:
    """One step by hand: z from (seed, id), cross-entropy, SGD's first AdamW step has the length of the rate."""
    encoder, head = build(Normed), build(nn.Linear, 8, 2)
    reference, p = copy.deepcopy(head), encode(encoder, X)
    train_head(encoder, head, X, Y, epochs=2, batch_size=60, lr=0.02, seed=3)
    updater = torch.optim.AdamW(reference.parameters(), lr=0.02, weight_decay=0.0)
    for epoch in range(2):
        seed = fold(3, "epoch", epoch)
        order = permutation(seed, 60)
        z = p.mean[order] + p.scale[order] * noise(fold(seed, "z"), order, (8,))
        updater.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * epoch / 2)) / 2
        updater.zero_grad()
        nn.functional.cross_entropy(reference(z), Y[order]).backward()
        updater.step()
    for a, b in zip(head.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_clean_head_sees_the_images_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encoder = build(Normed)
    encoder.register_forward_hook(lambda m, inputs, _: calls.append(len(inputs[0])))
    train_head(encoder, build(MLPHead, 8, 2), X, Y, **USUAL)
    assert sum(calls) == 60


@KINDS
def test_an_adversarial_head_is_trained_on_adversarial_images(gaussian: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, head, seen = build(Normed, gaussian), build(MLPHead, 8, 2), []
    encoder.train()

    class Attack:
        def __call__(self, objective: Any, x: Tensor, threat: Any, *given: Any, ids: Tensor, seed: int) -> Tensor:
            assert not encoder.training and not head.training, "attacked in training mode"
            assert not any(p.requires_grad for p in encoder.parameters())
            assert torch.equal(x, X[ids].float() / 255) and torch.equal(given[0], Y[ids])
            x_adv = PGD(2)(objective, x, threat, *given, ids=ids, seed=seed)
            assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
            seen.append(x_adv)
            return x_adv

    def watch(module: nn.Module, inputs: Any, _: Any) -> None:
        if head.training:
            assert torch.equal(inputs[0], seen[-1]), "the step is not taken at x'"

    encoder.register_forward_hook(watch)
    train_head(encoder, head, X, Y, **USUAL, attack=Attack(), threat=L2(0.3))
    assert len(seen) == 12


def test_an_adversarial_head_is_the_more_robust_one() -> None:
    def loss(head: nn.Module) -> float:
        model = Classifier(encoder, head).eval()
        x = X.float() / 255
        x_adv = PGD(10)(lambda v, y: nn.functional.cross_entropy(model(v), y, reduction="none"), x, Linf(0.15), Y)
        return nn.functional.cross_entropy(model(x_adv), Y).item()

    encoder = build(ConvEncoder, 1, 8, gaussian=False, widths=(8, 8, 8)).eval()
    clean, robust = build(nn.Linear, 8, 2), build(nn.Linear, 8, 2)
    settings: dict[str, Any] = dict(epochs=30, batch_size=20, lr=0.1)
    train_head(encoder, clean, X, Y, **settings)
    train_head(encoder, robust, X, Y, **settings, attack=PGD(5), threat=Linf(0.15))
    assert loss(robust) < loss(clean) - 0.05


@KINDS
@ADVERSARIAL
def test_the_same_seed_gives_the_same_head(gaussian: bool, adversarial: bool) -> None:
    def run(seed: int) -> list[Tensor]:
        encoder, head = build(Normed, gaussian), build(MLPHead, 8, 2)
        train_head(encoder, head, X, Y, **USUAL | {"seed": seed}, **how(adversarial))
        return list(head.parameters())

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@ADVERSARIAL
def test_cache(adversarial: bool, tmp_path: Path) -> None:
    """A head is found again only for the same encoder, images and labels."""

    def run(encoder: nn.Module, y: Tensor = Y) -> tuple[nn.Module, int]:
        head = build(MLPHead, 8, 2)
        steps = []
        head.register_forward_hook(lambda *_: steps.append(1))
        train_head(encoder, head, X, y, **USUAL, **how(adversarial), cache=tmp_path)
        return head, len(steps)

    first, steps = run(build(Normed))
    again, none = run(build(Normed))
    assert steps > 0 and none == 0
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert run(build(Normed, seed=1))[1] > 0
    assert run(build(Normed), 1 - Y)[1] > 0


@ADVERSARIAL
def test_half_precision(adversarial: bool) -> None:
    head = build(MLPHead, 8, 2)
    history = train_head(build(Normed), head, X, Y, **USUAL, **how(adversarial), precision="bf16-mixed")
    assert all(math.isfinite(row["loss"]) for row in history)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attack": PGD(2)}, ValueError, "threat is None, expected attack and threat together"),
        ({"threat": Linf(0.1)}, ValueError, "attack is None, expected attack and threat together"),
        ({"y": Y[:-1]}, ValueError, "y has 59 labels, expected 60, one for each image"),
        ({"y": Y - 1}, ValueError, "y has labels from -1"),
        ({"y": Y.float()}, TypeError, "y has dtype torch.float32"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, r"y has shape \(0,\)"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"x": X.float(), "attack": PGD(2), "threat": Linf(0.1)}, ValueError, r"expected finite values in \[0, 1\]"),
    ],
)
def test_bad_input(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    encoder = build(Normed)
    before, settings = snapshot(encoder), USUAL | settings
    x, y = settings.pop("x", X), settings.pop("y", Y)
    with pytest.raises(error, match=message):
        train_head(encoder, build(MLPHead, 8, 2), x, y, **settings)
    assert_untouched(before, encoder)


def test_frozen_restores_each_parameter() -> None:
    net = build(Normed)
    net.net[0].bias.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    with pytest.raises(ZeroDivisionError), gradients_disabled(net):
        assert not any(p.requires_grad for p in net.parameters())
        raise ZeroDivisionError
    assert [p.requires_grad for p in net.parameters()] == before
    assert heads.gradients_disabled is gradients_disabled
