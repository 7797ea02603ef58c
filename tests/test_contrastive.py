"""Contrastive learning: NT-Xent against a slow formula, augmentations, methods, LARS, and two processes as one."""

from __future__ import annotations

import math
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
from torch.nn import functional as F

from robrep.attacks import PGD, Adversary, Linf, attack_mode
from robrep.augmentations import Augment, colour_jitter, crop_boxes, digit_augmentation, grey, simclr_augmentation
from robrep.contrastive import DENOMINATORS, effective_rank, nearest, nt_xent
from robrep.encoders import ConvEncoder, Projector, ResNetEncoder
from robrep.gaussians import Gaussian, kl
from robrep.methods import RoCL, SimCLR, SimCLRUrkle
from robrep.random import fold, noise
from robrep.training import fit, make_optimizer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int = 5, channels: int = 3, side: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


# --- NT-Xent ------------------------------------------------------------------------------------------------------


def slow_nt_xent(views: list[Tensor], tau: float, denominator: str) -> Tensor:
    """The equation with one loop a sum."""
    n, size = len(views), len(views[0])
    sim = lambda a, b: torch.dot(a, b) / (a.norm() * b.norm())  # noqa: E731
    values = []
    for i in range(size):
        total = 0.0
        for v in range(n):
            below = 0.0
            for j in range(size):
                for u in range(n):
                    out = (i, v) == (j, u) if denominator == "all_but_self" else i == j
                    below = below + (0.0 if out else torch.exp(sim(views[v][i], views[u][j]) / tau))
            for w in range(n):
                if w != v:
                    total = total - sim(views[v][i], views[w][i]) / tau + torch.log(below)
        values.append(total / (n * (n - 1)))
    return torch.stack(values)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_nt_xent_is_the_equation(n: int, denominator: Any) -> None:
    views = [random(5, 6, seed=v).requires_grad_() for v in range(n)]
    fast, slow = nt_xent(views, 0.3, denominator=denominator), slow_nt_xent(views, 0.3, denominator)
    torch.testing.assert_close(fast, slow)
    weight = random(5, seed=9)
    for a, b in zip(*(torch.autograd.grad((weight * r).sum(), views) for r in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b)


@given(st.integers(2, 5), st.integers(2, 9), st.floats(0.05, 5))
@settings(max_examples=30, deadline=None)
def test_equal_vectors_give_known_values(n: int, size: int, tau: float) -> None:
    views = [torch.ones(size, 4, dtype=torch.float64) * (v + 1) for v in range(n)]  # the length does not matter
    for denominator, known in (("all_but_self", n * size - 1), ("negatives_only", n * (size - 1))):
        value = nt_xent(views, tau, denominator=denominator)
        torch.testing.assert_close(value, torch.full((size,), math.log(known), dtype=torch.float64))


@given(st.permutations(range(4)), st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_neither_views_nor_images_have_an_order(order: list[int], rows: list[int]) -> None:
    views = [random(6, 3, seed=v) for v in range(4)]
    value = nt_xent(views)
    torch.testing.assert_close(nt_xent([views[v] for v in order]), value)
    torch.testing.assert_close(nt_xent([v[rows] for v in views]), value[rows])


def test_closer_positives_cost_less_and_the_print_says_the_opposite() -> None:
    base, away = random(16, 8), [random(16, 8, seed=s) for s in (1, 2)]
    tight, loose = ([base + share * a for a in away] for share in (0.05, 1.0))

    def printed(views: list[Tensor], tau: float = 0.5) -> Tensor:  # eq. 9 of the paper to the letter
        z = [F.normalize(v, dim=1) for v in views]
        n = len(z)
        total = torch.zeros((), dtype=torch.float64)
        for v in range(n):
            below = sum(torch.exp(z[v] @ z[u].T / tau).fill_diagonal_(0).sum(1) for u in range(n))
            total = total + sum((torch.exp((z[v] * z[w]).sum(1) / tau) / below).sum() for w in range(n) if w != v)
        return total

    assert nt_xent(tight).mean() < nt_xent(loose).mean()
    assert printed(tight) > printed(loose)


def test_nt_xent_stays_wide_and_refuses_what_does_not_fit() -> None:
    views = [random(4, 8, seed=v).float() for v in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(views), nt_xent(views)) and nt_xent(views).dtype == torch.float32
        torch.testing.assert_close(nt_xent(views), nt_xent([v.double() for v in views]).float(), rtol=1e-5, atol=1e-5)
    huge = nt_xent(views, 1e-3)
    assert huge.isfinite().all()
    for bad, match in (([views[0]], "at least two"), ([views[0], views[1][:2]], "one shape"),
                       ([v[:1] for v in views], "at least two"), ([v[0] for v in views], "one shape")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            nt_xent(bad)
    with pytest.raises(ValueError, match="denominator"):
        nt_xent(views, denominator="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature is 0"):
        nt_xent(views, 0)


def test_effective_rank_and_nearest() -> None:
    assert effective_rank(torch.ones(20, 7)) == 0.0
    assert effective_rank(random(1, 7).expand(20, 7)) == 0.0
    line = random(50, 1) @ random(1, 7, seed=1)
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    q = torch.linalg.qr(random(50, 8) - random(50, 8).mean(0))[0]
    q = torch.linalg.qr(q - q.mean(0))[0]
    assert effective_rank(q) == pytest.approx(8, abs=0.1) and effective_rank(3 * q + 5) == pytest.approx(8, abs=0.1)
    bank = random(30, 5)
    assert torch.equal(nearest(2 * bank[:6], bank)[:, 0], torch.arange(6))
    similar = F.cosine_similarity(bank[:, None], bank[None], dim=2)
    assert torch.equal(nearest(bank, bank, 30), similar.argsort(dim=1, descending=True))
    with pytest.raises(ValueError, match="k is 31"):
        nearest(bank, bank, 31)


# --- augmentations ------------------------------------------------------------------------------------------------

AUGMENTATIONS = {"natural": simclr_augmentation(), "digits": digit_augmentation(), "shape": digit_augmentation(False)}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_is_augmented_alone(name: str) -> None:
    augment, x, ids = AUGMENTATIONS[name], images(12), torch.tensor([5, 3, 9, 1, 0, 7, 70, 11, 8, 2, 33, 4])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    whole = augment(x, ids, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == x.shape and whole.dtype == x.dtype and whole.min() >= 0 and whole.max() <= 1
    for rows in (torch.tensor([4]), torch.tensor([7, 2, 5])):
        torch.testing.assert_close(augment(x[rows], ids[rows], 3), whole[rows], rtol=0, atol=1e-6)
    assert not torch.allclose(augment(x, ids, 4), whole, atol=0.01)
    assert not torch.allclose(augment(x[:1].expand(2, -1, -1, -1), ids[:2], 3)[0], whole[1], atol=0.01)


def test_crop_boxes_are_torchvisions() -> None:
    """Area, ratio and position have the distribution of torchvision's RandomResizedCrop, up to its whole pixels."""
    from torchvision.transforms import RandomResizedCrop

    u = torch.rand(4000, 22, generator=torch.Generator().manual_seed(0))
    half, centre = crop_boxes(u, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (half <= 1).all() and ((centre.abs() + half) <= 1 + 1e-6).all()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.empty(3, 1000, 1000)
        boxes = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    top, left, height, width = torch.tensor(boxes, dtype=torch.float64).T
    ours = [half[:, 0], half[:, 1], half.prod(1), centre[:, 0], centre[:, 1]]
    theirs = [
        width / 1000,
        height / 1000,
        width * height / 1e6,
        (2 * left + width) / 1000 - 1,
        (2 * top + height) / 1000 - 1,
    ]
    for a, b in zip(ours, theirs, strict=True):
        levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        torch.testing.assert_close(a.double().quantile(levels), b.quantile(levels), rtol=0, atol=0.05)


def test_a_warp_moves_what_it_should() -> None:
    x = images(64)
    ids = torch.arange(64)
    flipped = Augment(crop=None, jitter=None, grey_share=0)(x, ids, 0)
    same, turned = (torch.isclose(flipped, y, atol=1e-5).flatten(1).all(1) for y in (x, x.flip(3)))
    assert (same ^ turned).all() and 20 < turned.sum() < 44
    still = Augment(crop=None, flip=False, jitter=None, grey_share=0)(x, ids, 0)
    assert torch.equal(still, x)
    dot = torch.zeros(64, 1, 8, 8)
    dot[:, :, 3:5, 3:5] = 1
    moved = Augment(crop=None, flip=False, shift=0.125, jitter=None, grey_share=0)(dot, ids, 0)
    torch.testing.assert_close(moved.sum((1, 2, 3)), torch.full((64,), 4.0))  # shifted by a pixel, nothing lost
    spot = (moved * torch.arange(8.0)).sum((1, 2, 3)) / 4
    assert spot.min() > 2.49 and spot.max() < 4.51 and spot.max() - spot.min() > 1.5


def test_colours_are_torchvisions() -> None:
    """Factor by factor; hue to the rounding of the two conversions."""
    from torchvision.transforms import functional as T

    x, strengths = images(6), (0.4, 0.4, 0.4, 0.3)
    for k, one in enumerate((T.adjust_brightness, T.adjust_contrast, T.adjust_saturation, T.adjust_hue)):
        alone = tuple(s if j == k else 0.0 for j, s in enumerate(strengths))
        u = torch.rand(6, 4, generator=torch.Generator().manual_seed(k))
        ours = colour_jitter(x, u, alone)
        amounts = ((2 * u[:, k] - 1) * strengths[k] + (0 if k == 3 else 1)).tolist()
        theirs = torch.stack([one(image, amount) for image, amount in zip(x, amounts, strict=True)])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
    torch.testing.assert_close(grey(x), T.rgb_to_grayscale(x, 3), rtol=0, atol=2e-4)


def test_shares_of_jitter_and_grey() -> None:
    x, ids = images(1).expand(500, -1, -1, -1), torch.arange(500)
    turned = Augment(crop=None, flip=False, jitter=None)(x, ids, 0)
    share = (turned[:, 0] == turned[:, 1]).flatten(1).all(1).float().mean()
    assert 0.13 < share < 0.27
    jittered = Augment(crop=None, flip=False, grey_share=0)(x, ids, 0)
    assert 0.73 < ((jittered - x).abs().flatten(1).amax(1) > 1e-3).float().mean() < 0.87
    only_grey = Augment(crop=None, flip=False)(x[:, :1], ids, 0)
    assert torch.equal(only_grey, x[:, :1]), "one channel has no colours"


def test_augmentations_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="crop is"):
        Augment(crop=(0.5, 1.5))
    with pytest.raises(ValueError, match="rotate"):
        Augment(rotate=-1)
    with pytest.raises((TypeError, ValueError)):
        Augment()(255 * images(), torch.arange(5), 0)


# --- networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (50, 2048)])
def test_a_resnet_is_torchvisions(depth: int, features: int) -> None:
    """With torchvision's weights and without its early pooling, the same features."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = getattr(models, f"resnet{depth}")(weights=None)
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        ours, small = ResNetEncoder(depth, gaussian=False), ResNetEncoder(depth)
    theirs.fc = nn.Identity()
    values = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    ours, theirs, x = ours.double(), theirs.double(), images(2, 3, 32).double()  # layouts round differently
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)
        seen: list[Tensor] = []
        small.features[3].register_forward_hook(lambda m, i, o: seen.append(o))
        p = small.eval()(images(2, 3, 32))
    assert seen[0].shape[2:] == (32, 32), "the first stage keeps the size"
    assert isinstance(p, Gaussian) and p.mean.shape == p.scale.shape == (2, features) and p.scale.min() > 0
    assert small.code.out_features == 2 * features == 2 * small.dim


def test_a_narrow_resnet_and_its_precision() -> None:
    net = ResNetEncoder(18, width=8, dim=16)
    with torch.autocast("cpu", torch.bfloat16):
        p = net(images(4))
    assert p.mean.dtype == p.scale.dtype == torch.float32 and p.mean.shape == (4, 16)
    assert ResNetEncoder(18, width=8, gaussian=False).dim == 64
    with pytest.raises(ValueError, match="depth"):
        ResNetEncoder(20)
    assert [m.weight.shape for m in Projector(16, 32, 8) if isinstance(m, nn.Linear)] == [(32, 16), (8, 32)]


def test_recomputing_changes_memory_and_nothing_else() -> None:
    """Same code, gradients and running statistics, in training and in an attack; fewer tensors kept."""
    x, found = images(6, 3, 16), []
    for recompute in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = ResNetEncoder(18, width=8, dim=4, recompute=recompute)
        kept: list[int] = []

        def pack(t: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            p = net(x)
            loss = p.mean.square().sum() + p.scale.sum()
        loss.backward()
        with attack_mode(net):
            x_adv = PGD(2)(lambda x_, net=net: net(x_).mean.square().sum(1), x, Linf(0.1))
        grads = [q.grad for q in net.parameters()]
        buffers = [b.clone() for b in net.buffers()]
        found.append((p.mean.detach(), grads, buffers, x_adv, sum(kept)))
    one, two = found
    torch.testing.assert_close(one[:4], two[:4], rtol=0, atol=0)
    assert two[4] < one[4] / 3


# --- methods ------------------------------------------------------------------------------------------------------

IDS, SEED = torch.tensor([3, 1, 8, 10, 0]), 11
ATTACK, THREAT = PGD(3), Linf(0.1)


def make(name: str, gaussian: bool | None = None, **options: Any) -> SimCLR:
    gaussian = name == "SimCLRUrkle" if gaussian is None else gaussian
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        f, g = ConvEncoder(3, 8, gaussian=gaussian, widths=(4, 4, 4), groups=0), Projector(8, 16, 8)
        if name == "SimCLR":
            return SimCLR(f.double(), g.double(), digit_augmentation(), **options)
        kind = {"RoCL": RoCL, "SimCLRUrkle": SimCLRUrkle}[name]
        return kind(f.double(), g.double(), digit_augmentation(), ATTACK, THREAT, **options)


X = images().double()
Y = torch.zeros(5, dtype=torch.int64)


def test_simclr() -> None:
    method = make("SimCLR", temperature=0.2)
    views = [digit_augmentation()(X, 2 * IDS + k, fold(SEED, "views")) for k in range(2)]
    expected = slow_nt_xent([method.projector(method.encoder(v)) for v in views], 0.2, "all_but_self").mean()
    torch.testing.assert_close(method(X, Y, IDS, SEED), {"nt_xent": expected})
    assert not torch.allclose(views[0], views[1])


def test_rocl() -> None:
    method = make("RoCL", weight=0.25)
    x_1, x_2 = (digit_augmentation()(X, 2 * IDS + k, fold(SEED, "views")) for k in range(2))
    f = nn.Sequential(method.encoder, method.projector)
    g_2 = f(x_2).detach()
    x_adv = THREAT.start(x_1, IDS, fold(SEED, "start", 0))
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (slope,) = torch.autograd.grad(slow_nt_xent([f(x_adv), g_2], 0.5, "all_but_self").sum(), x_adv)
        x_adv = (x_adv + 2.5 / 3 * 0.1 * slope.sign()).clamp(x_1 - 0.1, x_1 + 0.1).clamp(0, 1).detach()
    terms = method(X, Y, IDS, SEED)
    g = [f(v) for v in (x_1, x_2, x_adv)]
    torch.testing.assert_close(terms["nt_xent"], slow_nt_xent(g, 0.5, "all_but_self").mean())
    torch.testing.assert_close(terms["adversarial"], 0.25 * slow_nt_xent(g[1:], 0.5, "all_but_self").mean())


def test_simclr_urkle() -> None:
    method = make("SimCLRUrkle", beta_robust=0.3)
    ids = torch.cat([2 * IDS, 2 * IDS + 1])
    views = digit_augmentation()(torch.cat([X, X]), ids, fold(SEED, "views"))
    f, g = method.encoder, method.projector
    p = f(views)
    x_adv = ATTACK(lambda x_, p_: kl(p_, f(x_)), views, THREAT, p.detach(), ids=ids, seed=SEED)
    assert torch.equal(x_adv, method.worst(views, ids, SEED))
    q = f(x_adv)
    four = torch.cat([2 * ids, 2 * ids + 1])
    n = noise(fold(SEED, "z"), four, (8,))
    z = [g(c.mean + c.scale * e) for c, e in ((p, n[:10]), (q, n[10:]))]
    tuples = [z[0][:5], z[0][5:], z[1][:5], z[1][5:]]
    terms = method(X, Y, IDS, SEED)
    torch.testing.assert_close(terms["nt_xent"], slow_nt_xent(tuples, 0.5, "all_but_self").mean())
    torch.testing.assert_close(terms["urkle"], 0.3 * kl(p, q).mean())
    assert len(n.unique(dim=0)) == 20, "each of the four views of each image has its own noise"


@pytest.mark.parametrize("name", ["SimCLR", "RoCL", "SimCLRUrkle"])
def test_terms_gradients_and_modes(name: str) -> None:
    method = make(name)
    torch.manual_seed(1)
    state, modes = torch.get_rng_state(), [m.training for m in method.modules()]
    terms = method(X, Y, IDS, SEED)
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in method.modules()] == modes
    assert all(t.shape == () and t.isfinite() and t >= 0 for t in terms.values())
    again = make(name)(X, Y, IDS, SEED)
    assert all(torch.equal(terms[k], again[k]) for k in terms)
    assert not torch.equal(method(X, Y, IDS, SEED + 1)["nt_xent"], terms["nt_xent"])
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(("name", "calls"), [("RoCL", [5, 5, 5, 5, 15]), ("SimCLRUrkle", [10, 10, 10, 10, 20])])
def test_clean_codes_are_computed_once_and_attacks_leave_batch_norm_alone(name: str, calls: list[int]) -> None:
    """One pass over what the attack compares with, one for each step, one for the loss over all views together."""
    method = make(name)
    method.encoder.features.insert(1, nn.BatchNorm2d(4).double())
    norm, seen = method.encoder.features[1], []
    method.encoder.register_forward_hook(lambda m, i, o: seen.append((len(i[0]), m.training, norm.training)))
    method(X, Y, IDS, SEED)
    assert [n for n, *_ in seen] == calls
    assert [training for _, *training in seen] == [[False, False]] * 4 + [[True, True]]
    assert norm.num_batches_tracked == 1


def test_the_contrast_couples_its_batch() -> None:
    method = make("RoCL")
    method.adversary = Adversary(PGD(2, leave_early=True), THREAT)
    with pytest.raises(ValueError, match="the objective couples it"):
        method.worst(X, X, IDS, 0)


# --- LARS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lars", "lars-all"])
def test_lars_is_its_formula(name: Any) -> None:
    """v <- 0.9 v + trust (g + wd w), w <- w - lr v, trust = 0.001 |w| / (|g| + wd |w|) where |w| is positive."""
    shapes = [(4, 3), (4,), (2, 4, 3, 3), (5,)]
    weights = [nn.Parameter(random(*s, seed=i)) for i, s in enumerate(shapes)]
    with torch.no_grad():
        weights[3].zero_()  # as a bias begins
    by_hand, velocity = [w.detach().clone() for w in weights], [torch.zeros(s, dtype=torch.float64) for s in shapes]
    optimizer = make_optimizer(name, weights, lr=0.5, weight_decay=0.1)
    for step, lr in enumerate((0.5, 0.2, 0.1)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, w in enumerate(weights):
            w.grad = random(*shapes[i], seed=100 * step + i)
        for i, w in enumerate(by_hand):
            g, adapted = weights[i].grad.clone(), name == "lars-all" or w.ndim > 1
            decay = 0.1 if adapted else 0.0
            trust = 0.001 * w.norm() / (g.norm() + decay * w.norm() + 1e-8) if adapted and w.norm() > 0 else 1.0
            velocity[i] = 0.9 * velocity[i] + trust * (g + decay * w)
            by_hand[i] = w - lr * velocity[i]
        optimizer.step()
        for a, b in zip(weights, by_hand, strict=True):
            torch.testing.assert_close(a.detach(), b)


@pytest.mark.parametrize("name", ["RoCL", "SimCLRUrkle"])
def test_training_lowers_the_loss(name: str) -> None:
    x = (255 * images(32)).to(torch.uint8)
    method = make(name, **({"beta_robust": 0.01} if name == "SimCLRUrkle" else {})).float()
    history = fit(method, x, torch.zeros(32, dtype=torch.int64), epochs=6, batch_size=16, lr=5.0, optimizer="lars-all")
    assert history[-1]["loss"] < history[0]["loss"] and len(history) == 6


# --- two processes as one -----------------------------------------------------------------------------------------

DISTRIBUTED = textwrap.dedent("""
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import torch, torch.distributed as dist
    import test_contrastive as t
    dist.init_process_group("gloo")
    rank, kept = dist.get_rank(), {}
    x, ids = t.images(6).double(), torch.tensor([3, 1, 8, 10, 0, 4])
    for name in ("SimCLR", "RoCL", "SimCLRUrkle"):
        for denominator in t.DENOMINATORS:
            method = t.make(name, denominator=denominator)
            one = torch.nn.parallel.DistributedDataParallel(method)
            mine = slice(rank, None, 2)
            terms = one(x[mine], t.Y[:3], ids[mine], t.SEED)
            sum(terms.values()).backward()
            for value in terms.values():
                value = value.detach()
                dist.all_reduce(value)
                kept.setdefault(f"{name} {denominator}", []).append(value / 2)
            kept[f"{name} {denominator} gradients"] = [p.grad for p in method.parameters()]
    torch.save(kept, os.path.join(sys.argv[2], f"{rank}.pt"))
    dist.barrier()  # a process that leaves while the other still talks to it aborts it
    dist.destroy_process_group()
""")


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Half the batch in each of two processes: loss and gradients of one process with the whole batch."""
    script = tmp_path / "run.py"
    script.write_text(DISTRIBUTED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(script), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    x, ids = images(6).double(), torch.tensor([3, 1, 8, 10, 0, 4])
    for name in ("SimCLR", "RoCL", "SimCLRUrkle"):
        for denominator in DENOMINATORS:
            method, key = make(name, denominator=denominator), f"{name} {denominator}"
            terms = method(x, Y, ids, SEED)
            sum(terms.values()).backward()
            for rank in ranks:
                torch.testing.assert_close(rank[key], [t.detach() for t in terms.values()])
                torch.testing.assert_close(rank[f"{key} gradients"], [p.grad for p in method.parameters()])
