"""CRoPD's loss and methods: slow formulas, known values, gradients where they must flow and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robrep.attacks import FGSM, PGD, Linf
from robrep.augmentations import digit_augmentation
from robrep.book.cropd import MaskedPretraining, VariationalReconstruction, new_diffusion_vae, new_vit_mae, with_lora
from robrep.contrastive import adversarial_contrast
from robrep.encoders import LatentCode, MaskedAutoEncoder, Projector
from robrep.foundation import Chain, FrozenFoundation
from robrep.heads import train_head
from robrep.methods import (
    AdversarialReconstruction,
    AdversarialTraining,
    CRoPD,
    MixedHead,
    Reconstruction,
    Supervised,
    pixel_error,
)
from robrep.random import fold, noise
from robrep.training import fit

ROOT = Path(__file__).resolve().parent.parent
QUICK = settings(deadline=None, max_examples=30, database=None, derandomize=True)
THREAT, Y, IDS, SEED = Linf(0.1), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([3, 1, 8, 10, 0]), 11


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def parts() -> tuple[MaskedAutoEncoder, Projector]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedAutoEncoder(8, 1, width=24, depth=1, decoder_depth=1, pool=4)
        return model.double(), Projector(model.dim, 16, 8).double()


def make(name: str, attack: Any = None, **others: Any) -> Any:
    autoencoder, projector = parts()
    if name == "Vanilla":
        return Reconstruction(autoencoder, **others)
    kind = {"CRoPD": CRoPD, "ARAE": AdversarialReconstruction}[name]
    return kind(autoencoder, projector, attack or FGSM(), THREAT, **others)


# --- the loss -----------------------------------------------------------------------------------------------------


def slow(clean: Tensor, adversarial: Tensor, tau: float) -> Tensor:
    def sim(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v) / (u.norm() * v.norm())

    values = []
    for i in range(len(clean)):
        others = [v[j] for v in (clean, adversarial) for j in range(len(clean)) if j != i]
        total = sum(torch.exp(sim(clean[i], v) / tau) for v in others)
        values.append(-torch.log(torch.exp(sim(adversarial[i], clean[i]) / tau) / total))
    return torch.stack(values)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_adversarial_contrast_is_the_equation(n: int, tau: float) -> None:
    clean, adversarial = draw(n, 4), draw(n, 4, seed=2)
    torch.testing.assert_close(adversarial_contrast(clean, adversarial, tau), slow(clean, adversarial, tau))


@pytest.mark.parametrize(("tau", "value"), [(0.1, -5.87), (0.5, 2.13)])
def test_known_values(tau: float, value: float) -> None:
    """Aligned positives and orthogonal negatives, batch 32: -1 / tau + ln 62. The positive is not in the sum."""
    vectors = torch.eye(32, dtype=torch.float64)
    loss = adversarial_contrast(vectors, 3 * vectors, tau)
    torch.testing.assert_close(loss, torch.full_like(loss, value), rtol=0, atol=5e-3)


def test_gradients() -> None:
    clean, adversarial = draw(4, 3).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: adversarial_contrast(a, b, 0.5), (clean, adversarial))


@QUICK
@given(order=st.permutations(range(5)), scale=st.floats(0.1, 10))
def test_images_have_no_order_and_lengths_do_not_count(order: list[int], scale: float) -> None:
    clean, adversarial = draw(5, 4), draw(5, 4, seed=2)
    loss = adversarial_contrast(clean, adversarial)
    torch.testing.assert_close(adversarial_contrast(clean[order], adversarial[order]), loss[order])
    torch.testing.assert_close(adversarial_contrast(scale * clean, adversarial / scale), loss)


def test_the_anchor_is_the_clean_vector() -> None:
    clean, adversarial = draw(5, 4), draw(5, 4, seed=2)
    assert not torch.allclose(adversarial_contrast(clean, adversarial), adversarial_contrast(adversarial, clean))
    moved = adversarial.clone()
    moved[0] = clean[0]  # a better positive of image 0, another negative of the others
    before, after = adversarial_contrast(clean, adversarial), adversarial_contrast(clean, moved)
    cosine = torch.cosine_similarity(adversarial[0], clean[0], dim=0)
    torch.testing.assert_close(before[0] - after[0], (1 - cosine) / 0.5)


def test_the_loss_stays_wide_and_refuses_what_does_not_fit() -> None:
    a, b = draw(4, 8).float(), draw(4, 8, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adversarial_contrast(a.bfloat16(), b.bfloat16()).dtype == torch.float32
        torch.testing.assert_close(adversarial_contrast(a, b), slow(a.double(), b.double(), 0.5).float())
    with pytest.raises(ValueError, match=r"shapes \(4, 8\) and \(3, 8\), expected one shape"):
        adversarial_contrast(a, b[:3])
    with pytest.raises(ValueError, match="clean has 1 image, expected at least two"):
        adversarial_contrast(a[:1], b[:1])
    with pytest.raises(ValueError, match="temperature is 0, expected a number above 0"):
        adversarial_contrast(a, b, 0)


DISTRIBUTED = textwrap.dedent("""
    import os, sys
    import torch, torch.distributed as dist
    from robrep.contrastive import adversarial_contrast
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    clean, adversarial = (t.requires_grad_() for t in torch.load(os.path.join(sys.argv[1], "all.pt")))
    loss = adversarial_contrast(clean[rank * 3 : rank * 3 + 3], adversarial[rank * 3 : rank * 3 + 3])
    grads = torch.autograd.grad(loss.sum(), [clean, adversarial])
    torch.save([loss.detach(), *grads], os.path.join(sys.argv[1], f"{rank}.pt"))
    dist.barrier()  # a process that leaves while the other still talks to it aborts it
    dist.destroy_process_group()
""")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    clean, adversarial = draw(6, 4), draw(6, 4, seed=2)
    torch.save([clean, adversarial], tmp_path / "all.pt")
    (tmp_path / "run.py").write_text(DISTRIBUTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "run.py"), str(tmp_path)], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    clean.requires_grad_(), adversarial.requires_grad_()
    loss = adversarial_contrast(clean, adversarial)
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]), loss.detach())
    for k, expected in enumerate(torch.autograd.grad(loss.sum(), [clean, adversarial])):
        torch.testing.assert_close(sum(r[1 + k] for r in ranks), expected)


# --- the methods --------------------------------------------------------------------------------------------------


def project(method: Any, x: Tensor) -> Tensor:
    return method.projector(LatentCode(method.autoencoder)(x))


def test_vanilla() -> None:
    method, x = make("Vanilla"), images()
    terms = method(x, Y, IDS, SEED)
    assert list(terms) == ["reconstruction"]
    torch.testing.assert_close(terms["reconstruction"], nn.functional.mse_loss(method.autoencoder(x), x))
    assert pixel_error(x, 0 * x).shape == (5,)


@pytest.mark.parametrize("attack", [FGSM(), PGD(2)], ids=str)
def test_cropd(attack: Any) -> None:
    method, x = make("CRoPD", attack, weight=3.0, temperature=0.2), images()
    terms = method(x, Y, IDS, SEED)
    x_adv = method.worst(x, IDS, SEED)
    assert (x_adv - x).abs().amax() <= 0.1 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    torch.testing.assert_close(terms["reconstruction"], nn.functional.mse_loss(method.autoencoder(x), x))
    expected = slow(project(method, x), project(method, x_adv), 0.2)
    torch.testing.assert_close(terms["contrast"], 3 * expected.mean())


@torch.no_grad()
def test_the_adversary_climbs() -> None:
    """Ten steps find a larger loss than where they began."""
    x, start = images(), THREAT.start(images(), IDS, fold(fold(SEED, "adversary"), "start", 0))
    method = make("CRoPD", PGD(10))
    p = project(method, x)
    at = {name: adversarial_contrast(p, project(method, v)).mean() for name, v in
          {"start": start, "end": method.worst(x, IDS, SEED)}.items()}  # fmt: skip
    assert at["end"] > at["start"]


def test_the_adversary_is_an_attack_on_the_loss() -> None:
    """Written out: one step from the random start, along the sign of the gradient of the summed losses."""
    method, x = make("CRoPD", temperature=0.3), images()
    start = THREAT.start(x, IDS, fold(fold(SEED, "adversary"), "start", 0)).requires_grad_()
    loss = slow(project(method, x).detach(), project(method, start), 0.3).sum()
    step = start.detach() + 1.25 * 0.1 * torch.autograd.grad(loss, start)[0].sign()
    expected = torch.min(torch.max(step, x - 0.1), x + 0.1).clamp(0, 1)
    torch.testing.assert_close(method.worst(x, IDS, SEED), expected)


def test_without_a_random_start_the_printed_recipe_has_no_direction() -> None:
    """The similarity of x' and x is largest at x: its gradient there is rounding, and FGSM makes full steps of it."""
    method, x = make("CRoPD"), images().requires_grad_()
    p = project(method, x.detach()).detach()
    at_x = torch.autograd.grad(torch.cosine_similarity(project(method, x), p).sum(), x)[0]
    moved = THREAT.start(x.detach(), IDS, 0).requires_grad_()
    at_start = torch.autograd.grad(torch.cosine_similarity(project(method, moved), p).sum(), moved)[0]
    assert at_x.abs().max() < 1e-9 * at_start.abs().max()


def test_the_contrast_couples_its_batch() -> None:
    method, x = make("CRoPD"), images()
    assert not torch.equal(method.worst(x[:3], IDS[:3], SEED), method.worst(x, IDS, SEED)[:3])
    with pytest.raises(ValueError, match="leave_early is True, expected False"):
        make("CRoPD", PGD(2, leave_early=True))(x, Y, IDS, SEED)


def test_cropd_without_weight_is_vanilla() -> None:
    method, plain, x = make("CRoPD", weight=0.0), make("Vanilla"), images()
    terms, expected = method(x, Y, IDS, SEED), plain(x, Y, IDS, SEED)
    assert terms["contrast"] == 0 and torch.equal(terms["reconstruction"], expected["reconstruction"])
    sum(terms.values()).backward()
    expected["reconstruction"].backward()
    for a, b in zip(method.autoencoder.parameters(), plain.autoencoder.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_contrast_does_not_see_the_decoder() -> None:
    method = make("CRoPD")
    method(images(), Y, IDS, SEED)["contrast"].backward()
    trained = {name.split(".")[0] for name, p in method.autoencoder.named_parameters() if p.grad is not None}
    assert trained == {"cls_token", "embed", "encoder", "norm", "position"}
    assert all(p.grad is not None for p in method.projector.parameters())


def test_arae() -> None:
    method, x = make("ARAE", gamma=0.3), images()
    terms, x_adv = method(x, Y, IDS, SEED), method.worst(x, IDS, SEED)
    assert (x_adv - x).abs().amax() <= 0.1 + 1e-6 and not torch.equal(x_adv, x)
    torch.testing.assert_close(terms["reconstruction"], nn.functional.mse_loss(method.autoencoder(x_adv), x))
    distance = nn.functional.mse_loss(project(method, x_adv), project(method, x))
    torch.testing.assert_close(terms["latent"], 0.3 * distance)
    start = THREAT.start(x, IDS, fold(fold(SEED, "adversary"), "start", 0))
    assert distance > nn.functional.mse_loss(project(method, start), project(method, x))
    rows = torch.cat([method.worst(x[i : i + 1], IDS[i : i + 1], SEED) for i in range(5)])
    torch.testing.assert_close(rows, x_adv)  # nothing couples this batch


@pytest.mark.parametrize("name", ["Vanilla", "CRoPD", "ARAE"])
def test_terms_gradients_and_repeats(name: str) -> None:
    torch.manual_seed(1)
    state, method, x = torch.get_rng_state(), make(name), images()
    terms = method(x, Y, IDS, SEED)
    sum(terms.values()).backward()
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), parameter
    again = make(name)(x, (Y + 1) % 3, IDS, SEED)
    assert all(torch.equal(terms[k], again[k]) for k in terms)
    if name != "Vanilla":
        other = make(name)(x, Y, IDS, SEED + 1)
        assert any(not torch.equal(terms[k], other[k]) for k in terms)


def test_augmented_views_are_what_is_reconstructed_and_attacked() -> None:
    augment, x = digit_augmentation(colours=False), images().float()
    view = augment(x, IDS, fold(SEED, "view"))
    assert not torch.equal(view, x)
    for name in ("Vanilla", "CRoPD", "ARAE"):
        terms = make(name, augment=augment).float()(x, Y, IDS, SEED)
        expected = make(name, augment=lambda *_: view).float()(x, Y, IDS, SEED)  # noqa: B023
        assert all(torch.equal(terms[k], expected[k]) for k in terms)


def test_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="weight is -1, expected a finite number"):
        make("CRoPD", weight=-1)
    with pytest.raises(ValueError, match="gamma is -1, expected a finite number"):
        make("ARAE", gamma=-1)


def test_the_encoder_alone_is_adversarially_trained() -> None:
    autoencoder, _ = parts()
    method = AdversarialTraining(LatentCode(autoencoder), nn.Linear(autoencoder.dim, 3).double(), PGD(2), THREAT)
    method(images(), Y, IDS, SEED)["cross_entropy"].backward()
    assert autoencoder.embed.weight.grad is not None and autoencoder.head.weight.grad is None


@pytest.mark.parametrize("name", ["Vanilla", "CRoPD", "ARAE"])
def test_training_lowers_the_loss(name: str) -> None:
    method, x = make(name).float(), images(32).float()
    history = fit(method, x, torch.zeros(32, dtype=torch.int64), epochs=5, batch_size=16, lr=3e-3)
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers is not installed (the extra 'vae')")
def test_the_variational_auto_encoder_is_its_equation() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = new_diffusion_vae(1, (8, 8)).double()
    method, x = VariationalReconstruction(autoencoder, weight=0.5), images()
    terms = method(x, Y, IDS, SEED)
    p = autoencoder.posterior(x)
    z = p.mean + p.scale * noise(fold(SEED, "z"), IDS, p.mean.shape[1:])
    torch.testing.assert_close(terms["reconstruction"], nn.functional.mse_loss(autoencoder.decode(z), x))
    prior = autoencoder.model.encode(2 * x - 1).latent_dist.kl().mean() / 64  # diffusers' own
    torch.testing.assert_close(terms["prior"], 0.5 * prior)
    assert torch.equal(method(x, Y, IDS, SEED)["reconstruction"], terms["reconstruction"])
    assert not torch.equal(method(x, Y, IDS, SEED + 1)["reconstruction"], terms["reconstruction"])
    sum(terms.values()).backward()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in autoencoder.parameters())
    with pytest.raises(ValueError, match="weight is -1, expected a finite number"):
        VariationalReconstruction(autoencoder, weight=-1)


# --- a small foundation model, and heads behind a pre-processor ---------------------------------------------------


def small_mae() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return new_vit_mae(8, 1, patch=2, width=12, depth=1, decoder_width=12)


def test_masked_pretraining() -> None:
    method, x = MaskedPretraining(small_mae()), images(32).float()
    ids = torch.arange(32)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = method(x, ids, ids, SEED)["masked"]
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(method(x, ids, ids, SEED)["masked"], first)
    assert not torch.equal(method(x, ids, ids, SEED + 1)["masked"], first)
    rows = [method(x[i : i + 1], ids[:1], ids[i : i + 1], SEED)["masked"] for i in range(32)]
    torch.testing.assert_close(first, torch.stack(rows).mean())
    foundation = method.foundation("mean")
    code = foundation(x)
    history = fit(method, x, ids, epochs=5, batch_size=16, lr=3e-3)
    assert history[-1]["loss"] < history[0]["loss"]
    assert torch.equal(foundation(x), code) and method.model.config.mask_ratio == 0.75
    assert not torch.equal(method.foundation("mean")(x), code)


def test_a_mixed_head_trains_the_head_alone() -> None:
    autoencoder, _ = parts()
    encoder = FrozenFoundation(autoencoder.float(), MaskedPretraining(small_mae()).foundation())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(12, 3)
    method, x = MixedHead(Chain(encoder, head), PGD(2), THREAT).train(), images().float()
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    terms = method(x, Y, IDS, SEED)
    logits = method.classifier(x)
    torch.testing.assert_close(terms["clean"], 0.5 * nn.functional.cross_entropy(logits, Y))
    assert terms["adversarial"] > terms["clean"]
    weights = head.weight.detach().clone()
    fit(method, x, Y, epochs=2, batch_size=5, lr=1e-2)
    assert not torch.equal(head.weight, weights) and not encoder.training
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())
    train_head(encoder, head, x, Y, epochs=1)  # a clean head: codes computed once
    train_head(encoder, head, x, Y, epochs=1, attack=PGD(1), threat=THREAT)
    assert all(torch.equal(t, before[name]) for name, t in encoder.state_dict().items())


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed (the extra 'lora')")
def test_adapters_in_a_chain_are_trained_with_the_head_and_nothing_else_is() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = FrozenFoundation(None, with_lora(MaskedPretraining(small_mae()).foundation("mean"), 2))
        chain = Chain(encoder, nn.Linear(12, 3))
    for name, parameter in chain.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("head."))
    before = {name: t.clone() for name, t in chain.state_dict().items()}
    for method in (Supervised(chain.encoder, chain.head), MixedHead(chain, PGD(1), THREAT)):
        fit(method, images().float(), Y, epochs=2, batch_size=5, lr=1e-2)
    moved = {name for name, t in chain.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")} and len(moved) == 6
