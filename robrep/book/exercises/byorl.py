"""The exercises of the chapter on BYORL."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    call,
    compare,
    exercise,
    interpret,
    one_number,
    random_tensor,
    returned,
)
from robrep.contrastive import effective_rank

# --- warm-ups ---------------------------------------------------------------------------------------------------------


@exercise(
    "byorl.memory",
    "step k leaves tau_k of what was there before it. What do two steps in a row leave?",
    "multiply tau_1, tau_2, ..., tau_K; tau_K is 1.",
    "math.prod(1 - (1 - base) * (math.cos(math.pi * k / K) + 1) / 2 for k in range(1, K + 1))",
    learned="At the paper's 0.996, half of a target would be its random start after the 340 steps of `demo`.",
)
def _check_memory(answer: Any) -> None:
    """answer(K, base) -> the weight of the target's initial parameters in its parameters after K steps."""
    for steps, base in ((10, 0.9), (1, 0.5), (340, 0.996)):
        got = one_number(call(answer, steps, base))
        truth = torch.ones((), dtype=torch.float64)  # follow one parameter from 1, with online parameters of 0
        tau = [1 - (1 - base) * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps + 1)]
        for rate in tau[1:]:
            truth = rate * truth + (1 - rate) * 0
        numbers = [
            base**steps,
            math.prod(tau[:-1]),
            math.prod(1 - t for t in tau[1:]),
            1 - math.prod(tau[1:]),
            math.prod(base + (1 - base) * k / steps for k in range(1, steps + 1)),
            (sum(tau[1:]) / steps) ** steps,
            tau[-1],
        ]
        constant, early, online, new, straight, mean, last = (torch.tensor([v], dtype=torch.float64) for v in numbers)
        mistakes = [
            (early, "the steps are 1 to K: the last one has tau = 1."),
            (constant, "tau does not stay at the base: it follows the schedule."),
            (online, "tau, not 1 - tau, is the weight of what was there before."),
            (new, "that is the weight of all online parameters together: you are asked for the rest."),
            (straight, "tau rises along half a cosine, not along a straight line."),
            (mean, "a product of different rates is not a power of their mean."),
            (last, "that is the last step alone: multiply over all of them."),
        ]
        compare(got, truth.view(1), f"K = {steps}, base = {base:g}", mistakes, "the product of tau_1 to tau_K.")


@exercise(
    "byorl.pseudo_labels",
    "the model labels only what has no label.",
    "made = logits.argmax(1); made[labelled] = y[labelled]",
    learned="With every label known this is adversarial training; with few, the model's mistakes are taught too.",
)
def _check_pseudo_labels(answer: Any) -> None:
    """answer(logits, y, labelled) -> int64 (N,): UAT-FT's targets."""
    logits, y, labelled = random_tensor(118, 30, 4), torch.arange(30) % 4, torch.tensor([0, 5, 6, 17])
    value = call(answer, logits.clone(), y.clone(), labelled)
    if isinstance(value, Tensor) and value.is_floating_point():
        raise Wrong("The labels are floating-point numbers.", "class indices are integers: argmax, not softmax or max.")
    got = returned(value, (30,), "return one class index for each image, shape (N,).")
    made = logits.argmax(1)
    truth = made.clone()
    truth[labelled] = y[labelled]
    swapped = y.clone()
    swapped[labelled] = made[labelled]
    mistakes = [
        (made.double(), "known labels are kept, whatever the model thinks of them."),
        (y.double(), "labels outside `labelled` may not be looked at."),
        (swapped.double(), "the two are exchanged: known labels where they are known."),
    ]
    compare(got, truth.double(), "30 images, 4 of them labelled", mistakes, "known labels, and the argmax elsewhere.")


# --- design -----------------------------------------------------------------------------------------------------------


def _spread(z: Tensor) -> float:
    return 1 - F.normalize(z, dim=1).mean(0).square().sum().item()


def _hidden_codes(seed: int, count: int = 12, images: int = 400, dim: int = 12) -> list[tuple[Tensor, Tensor, float]]:
    """Codes (N, D) of two views from each of several encoders, and the nats that a code has on its image.

    A code is scale * (s A + noise + b): s is the image, two views differ in their noise, and b is common to all.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    found, nats = [], torch.linspace(0.25, 6, count, dtype=torch.float64)
    for information in nats[torch.randperm(count, generator=g)]:
        used = 1 + int(dim * uniform())
        strength = torch.exp(-2 * uniform(used))  # of the directions that depend on the image
        low, high = 1e-6, 1e6
        for _ in range(60):  # the noise at which the code has this information
            noise = math.sqrt(low * high)
            more = 0.5 * (1 + (strength / noise).square()).log().sum() > information
            low, high = (noise, high) if more else (low, noise)
        left, right = (torch.linalg.qr(normal(dim, dim)).Q[:, :used] for _ in range(2))
        size = math.sqrt(strength.square().sum().item() + dim * noise**2)
        common = 6 * uniform() * size * F.normalize(normal(dim), dim=0)
        signal = normal(images, dim) @ left * strength @ right.T
        scale = normal().exp()
        a, b = (scale * (signal + noise * normal(images, dim) + common) for _ in range(2))
        found.append((a, b, information.item()))
    return found


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, for (N,) and (N,); 0 where one of them is constant."""
    a, b = ((v[:, None] > v).double().sum(1) + 0.5 * (v[:, None] == v).double().sum(1) for v in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm()).clamp_min(1e-12)).item()


@exercise(
    "byorl.meter",
    "one set of codes cannot tell image from noise. What do the codes of two views of one image have in common?",
    "a common direction is no information: look at differences of codes. Can the code of one view find its partner?",
    "classify: the logits of row i are minus its squared distances to all codes of the other view, over 2 (a - b)².",
    "(-torch.cdist(a, b) ** 2 / (2 * (a - b).square().mean())).log_softmax(1).diagonal().mean()",
    learned="It is the contrastive question of SimCLR, asked of a code that was trained without negatives.",
    kind="design",
)
def _check_meter(answer: Any, seed: int) -> str:
    """answer(a, b) -> a number that is larger for an encoder whose codes have more information on the image."""
    codes = _hidden_codes(seed)
    made = torch.cat([one_number(call(answer, a.clone(), b.clone())) for a, b, _ in codes])
    if not made.isfinite().all():
        raise Wrong("Your meter is not finite for some encoder.", "look for a logarithm of 0, or a division by 0.")
    truth = torch.tensor([information for *_, information in codes], dtype=torch.float64)
    known = {
        "the spread": [_spread(a) for a, _, _ in codes],
        "the effective rank": [effective_rank(a) for a, _, _ in codes],
        "the loss, turned round": [F.cosine_similarity(a, b).mean().item() for a, b, _ in codes],
    }
    meters = {name: torch.tensor(values, dtype=torch.float64) for name, values in known.items()}
    best = max(meters, key=lambda name: _rank_correlation(meters[name], truth))
    reference, found = _rank_correlation(meters[best], truth), _rank_correlation(made, truth)
    seen = (
        f"Over {len(codes)} hidden encoders your meter's rank correlation with the information is {found:.2f}; "
        f"the best of loss, spread and rank ({best}) has {reference:.2f}."
    )
    if 1 - found <= 0.5 * (1 - max(reference, 0.0)):
        return seen
    like = {name: _rank_correlation(made, values) for name, values in meters.items()}
    if like["the loss, turned round"] > 0.95:
        text = "codes that share a direction always have a large cosine: what do the codes of different images do?"
    elif found < -0.95:
        text = "it falls where the information rises: turn the sign round."
    elif max(like["the effective rank"], like["the spread"]) > 0.95:
        text = "noise fills directions as well as images do: compare the two views of an image with each other."
    else:
        text = "compare how far the views of one image lie apart with how far those of different images do."
    raise Wrong(seen, text)


# --- a figure, and a bug ----------------------------------------------------------------------------------------------

interpret(
    "byorl.read_few_steps",
    "compare the second epoch with the last one, run by run, in the panels of spread; then the first epoch in that of "
    "the rank.",
)


def _epochs() -> tuple[Tensor, Tensor, dict[str, list[nn.Linear]]]:
    """Images (N, 20) of two classes, one strong pixel and nineteen faint ones; classifiers of three epochs, by case."""
    y = torch.arange(60) % 2
    amounts = 0.05 + 0.02 * random_tensor(123, 60, 20).clamp(-1, 1)
    amounts[:, 0] = 0.3 + 0.15 * random_tensor(124, 60).clamp(-1, 1)
    x = 0.5 + (2.0 * y - 1)[:, None] * amounts

    def linear(strong: float, faint: float) -> nn.Linear:
        row, model = torch.tensor([strong] + [faint] * 19, dtype=torch.float64), nn.Linear(20, 2).double()
        model.requires_grad_(False)
        model.weight.copy_(torch.stack([-row, row]))
        model.bias.copy_(-model.weight.sum(1) / 2)
        return model

    robust, brittle, useless = linear(1.0, 0.0), linear(0.5, 1.0), linear(-1.0, 0.1)
    cases = {
        "a robust epoch at the end": [useless, brittle, robust],
        "a robust epoch at the start": [robust, brittle, useless],
        "a robust epoch in the middle": [brittle, robust, brittle],
    }
    return x, y, cases


def _right(x: Tensor, y: Tensor, model: nn.Linear, eps: float = 0.0, made_for: nn.Linear | None = None) -> float:
    """The share that ``model`` classifies correctly after the worst change for ``made_for``, a linear classifier."""
    target = made_for or model
    row = (target.weight[1] - target.weight[0]).detach()
    moved = x - eps * (2.0 * y - 1)[:, None] * row.sign()
    return (model(moved).argmax(1) == y).double().mean().item()


@exercise(
    "byorl.best_epoch",
    "against which network were the attacked images made?",
    "an attack on one network is a weak attack on another one: each epoch has to be attacked itself.",
    "move the lines that make x_adv into the loop over the models, with `model` in place of `models[-1]`.",
    learned="Attacked images belong to the network that they were made for; on others they prove little.",
    kind="bug",
)
def _check_best_epoch(answer: Any) -> None:
    """answer(models, x, y, eps) -> the index of the classifier that is the most accurate under attack."""
    (x, y, cases), eps = _epochs(), 0.2
    chosen = {case: one_number(call(answer, m, x.clone(), y.clone(), eps)).item() for case, m in cases.items()}
    left = {case: [_right(x, y, m, eps) for m in models] for case, models in cases.items()}
    rules = {
        "right": left,
        "given": {case: [_right(x, y, m, eps, models[-1]) for m in models] for case, models in cases.items()},
        "first": {case: [_right(x, y, m, eps, models[0]) for m in models] for case, models in cases.items()},
        "clean": {case: [_right(x, y, m) for m in models] for case, models in cases.items()},
        "worst": {case: [-share for share in shares] for case, shares in left.items()},
    }
    by_rule = {rule: {case: v.index(max(v)) for case, v in found.items()} for rule, found in rules.items()}
    if chosen == by_rule["right"]:
        return
    case = next(c for c in cases if chosen[c] != by_rule["right"][c])
    got, best = chosen[case], by_rule["right"][case]
    if got not in range(len(cases[case])):
        raise Wrong(f"You return {got:g} for three epochs.", "return an index, counted from 0.")
    told = (
        f"epoch {got:g}, of which an attack leaves {100 * left[case][int(got)]:.0f} %; "
        f"of epoch {best} it leaves {100 * left[case][best]:.0f} %."
    )
    if chosen == by_rule["given"]:
        raise Unanswered(f"With {case} the given code chooses {told}")
    texts = {
        "first": "attacked images that were made for one epoch prove little about another: attack each one.",
        "clean": "that is the most accurate epoch without an attack, or with one that helps the network.",
        "worst": "that is the least robust epoch: take the largest share, not the smallest.",
    }
    text = [text for rule, text in texts.items() if chosen == by_rule[rule]] + ["attack every epoch, and compare."]
    raise Wrong(f"With {case} you choose {told}", text[0])
