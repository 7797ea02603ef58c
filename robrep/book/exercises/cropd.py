"""The exercises of the chapter on CRoPD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.attacks import FGSM, PGD, Linf
from robrep.book.exercises.core import (
    Unanswered,
    Wrong,
    call,
    close,
    compare,
    exercise,
    interpret,
    random_tensor,
    returned,
)
from robrep.contrastive import adversarial_contrast
from robrep.objectives import cross_entropy


@exercise(
    "cropd.floor",
    "take x' = x first. By Jensen's inequality the logarithm of the sum is at least ln(2 N - 2) plus the mean of its "
    "exponents.",
    "the cosines of N vectors with each other cannot all be -1: how low can their mean be, when |sum of p_i|^2 >= 0?",
    "that mean is at least -1 / (N - 1), reached by the corners of a simplex: ln(2 N - 2) - (1 + 1 / (N - 1)) / tau.",
    learned="The vectors of a larger batch get in each other's way: its floor comes close to that of right angles.",
)
def _check_floor(answer: Any) -> None:
    """answer(N, tau) -> the lowest mean of CRoPD's loss that N images can have, in at least N - 1 dimensions."""
    for n, tau in ((8, 0.1), (2, 0.5), (32, 0.5)):
        value = call(answer, n, tau)
        got = returned(torch.as_tensor(value, dtype=torch.float64), (), "return one number.")
        corners = torch.eye(n, dtype=torch.float64) - 1 / n
        truth = adversarial_contrast(corners, corners, tau).mean()
        others = math.log(2 * n - 2)
        values: list[tuple[Any, str]] = [
            (others - 1 / tau, "this is the value at right angles: the vectors of different images can do better."),
            (others - 2 / tau, "not all pairs can be opposite: two vectors opposite to a third one are equal."),
            (truth - math.log(2), "clean and attacked vectors of the others: 2 (N - 1) of them."),
            (truth + math.log(n / (n - 1)), "an image's own two vectors are not in the sum."),
            (math.log1p(math.exp(float(truth))), "that is NT-Xent: here the positive is not in the sum."),
            (others - 1 - 1 / (n - 1), "tau divides all cosines."),
        ]
        mistakes = [(torch.tensor(float(wrong), dtype=torch.float64), text) for wrong, text in values]
        compare(got, truth, f"N = {n}, tau = {tau}", mistakes, "ln(2 N - 2) minus what the cosines give, over tau.")


@exercise(
    "cropd.order",
    "the sequence holds the tokens of own and then those of hidden: where did token 0 of the image go?",
    "a permutation is undone by its argsort.",
    "torch.cat([own, hidden]).argsort()",
    learned="Each half needs its own: with the other's, every token of the half lands on a wrong field.",
)
def _check_order(answer: Any) -> None:
    """answer(own, hidden) -> int64 (T,): the index that puts a half's tokens, and masks behind them, in place."""
    board = torch.arange(16).view(4, 4)
    colour = (board // 4 + board % 4) % 2
    white, black = board[colour == 0], board[colour == 1]
    for case, own, hidden in (("the white half", white, black), ("the black half", black, white)):
        value = call(answer, own.clone(), hidden.clone())
        if isinstance(value, Tensor) and value.is_floating_point():
            raise Wrong("The index is a floating-point tensor.", "an index is int64; argsort gives one.")
        got = returned(value, (16,), "return one place for each of the T tokens, shape (T,).")
        sequence = torch.cat([own, hidden])
        mistakes = [
            (sequence.double(), "that is the permutation itself: invert it."),
            (
                torch.cat([hidden, own]).argsort().double(),
                "that is the other half's order: its tokens come first here.",
            ),
            (torch.arange(16).double(), "the tokens do not stand in the image's order."),
        ]
        compare(got, sequence.argsort().double(), case, mistakes, "sequence[index] has to be 0, 1, 2, ...")


# --- design: a cleaner for a model that one may look into -------------------------------------------------------------

DIMS, CLASSES, EPS = 48, 4, 0.1
BALL: Any = Linf(EPS)


class Cleaner(nn.Module):
    """A pre-processor of images (N, 1, 6, 8): ``encode`` gives latent vectors (N, 16), a call the cleaned images."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (torch.randn(shape, dtype=torch.float64) for shape in ((16, DIMS), (DIMS, 16)))
        self.first = nn.Parameter(first / DIMS**0.5)
        self.second = nn.Parameter(second / 8)

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T)

    def forward(self, x: Tensor) -> Tensor:
        return (self.encode(x) @ self.second.T + 0.5).view_as(x)


class Frozen(nn.Module):
    """A foundation model: images (N, 1, 6, 8) to codes (N, 12), most sensitive to the pixels that vary least."""

    first: Tensor
    second: Tensor

    def __init__(self, spread: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        first, second = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((32, DIMS), (12, 32)))
        self.register_buffer("first", 0.17 * first / (DIMS**0.5 * spread))
        self.register_buffer("second", second / 32**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.first.T) @ self.second.T


class Chain:
    """Images and a frozen model that a generator draws, and what a trained cleaner in front of it is worth.

    The class moves 8 pixels by 0.2, which no attack of radius 0.1 can hide, and 40 pixels by 0.05, which it can.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.seed = int(torch.randint(2**31, (), generator=generator))
        while True:  # the nearest two classes differ in two of the eight pixels
            signs = torch.randint(0, 2, (CLASSES, DIMS), generator=generator).double() * 2 - 1
            if torch.cdist(signs[:, :8], signs[:, :8], p=0).fill_diagonal_(DIMS).min() == 2:
                break
        size, spread = (torch.tensor([a] * 8 + [b] * 40, dtype=torch.float64) for a, b in ((0.2, 0.05), (0.1, 0.02)))
        y = torch.randint(CLASSES, (712,), generator=generator)
        x = 0.5 + (size * signs)[y] + spread * torch.randn(712, DIMS, generator=generator, dtype=torch.float64)
        self.x, self.x_test = x.clamp(0, 1).view(712, 1, 6, 8).split([512, 200])
        self.y, self.y_test = y.split([512, 200])
        self.foundation = Frozen(spread, generator)

    def trained(self, loss: Callable[[Cleaner, Frozen, Tensor, float], Any]) -> tuple[float, float]:
        """Clean and robust accuracy (PGD-20) of the chain after 100 steps on a loss."""
        torch.manual_seed(self.seed)
        m, f = Cleaner(), self.foundation
        updater = torch.optim.Adam(m.parameters(), lr=0.01)
        for _ in range(100):
            batch = self.x[torch.randint(len(self.x), (64,))]
            updater.zero_grad()
            loss(m, f, batch, EPS).backward()
            updater.step()
        m.requires_grad_(False)
        codes = F.pad(f(m(self.x)), (0, 1), value=1.0)
        ridge = 0.512 * torch.eye(codes.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(codes.T @ codes + ridge, codes.T @ F.one_hot(self.y).double())

        def logits(x: Tensor) -> Tensor:
            return 10 * F.pad(f(m(x)), (0, 1), value=1.0) @ weight

        x_adv = PGD(20)(lambda x_, y_: cross_entropy(logits(x_), y_), self.x_test, BALL, self.y_test)
        clean, robust = ((logits(x_).argmax(1) == self.y_test).double().mean() for x_ in (self.x_test, x_adv))
        return float(clean), float(robust)


def cropd_loss(m: Cleaner, f: Frozen, x: Tensor, eps: float) -> Tensor:
    """The reference: CRoPD with a weight of 1, which never looks at f."""
    with torch.no_grad():
        p = m.encode(x)
    seed, ball = int(torch.randint(2**31, ())), cast(Any, Linf(eps))
    x_adv = FGSM()(lambda x_, p_: -F.cosine_similarity(m.encode(x_), p_), x, ball, p, seed=seed)
    contrast = adversarial_contrast(m.encode(x), m.encode(x_adv)).mean()
    return (m(x) - x).square().mean() + contrast


@exercise(
    "cropd.objective",
    "the classifier sees f(m(x')). Does CRoPD's loss contain f?",
    "ask that what f sees after the attack is what it saw of the clean image: compare f(m(x')) with f(x).",
    "(m(x) - x).square().mean() + 10 * (f(m(x_adv)) - f(x)).square().mean(), x_adv from two sign steps that make the "
    "second term large, from a random start.",
    learned="Frozen is not hidden: a gradient through the foundation model costs nothing but time.",
    kind="design",
)
def _check_objective(answer: Any, seed: int) -> str:
    """answer(m, f, x, eps) -> loss of a batch, for the cleaner m in front of the frozen f."""

    def loss(m: Cleaner, f: Frozen, x: Tensor, eps: float) -> Tensor:
        value = call(answer, m, f, x.clone(), eps)
        returned(value, (), "return one number, the mean over the batch.")
        if not value.requires_grad:
            raise Wrong("The loss carries no gradient.", "it is minimised over m's parameters: do not detach it.")
        if not value.isfinite():
            raise Wrong("The loss is not finite.", "check logarithms, divisions and the learning rate's share.")
        return value

    generator = torch.Generator().manual_seed(seed)
    cases = [Chain(generator) for _ in range(3)]
    theirs, yours = (torch.tensor([case.trained(of) for case in cases]).mean(0).tolist() for of in (cropd_loss, loss))
    found = (
        f"Trained with your loss, three chains keep {100 * yours[1]:.0f} % under attack and {100 * yours[0]:.0f} % "
        f"clean; with CRoPD's {100 * theirs[1]:.0f} % and {100 * theirs[0]:.0f} %."
    )
    if yours[0] < 0.9 * theirs[0]:
        raise Wrong(found, "the clean accuracy is gone: a constant image may satisfy your loss.")
    if 1 - yours[1] <= 0.8 * (1 - theirs[1]):
        return found
    if yours[1] < 0.5 * theirs[1]:
        raise Wrong(found, "the loss has to see attacked images; an attack must not start where its gradient is 0.")
    raise Wrong(found, "the cleaner may lose whatever f does not need: let the loss look at what f makes of m(x').")


interpret(
    "cropd.read_trade_off",
    "compare a head trained under attack without the contrastive loss with a clean head behind a little of it.",
)


# --- bug: a contrastive step ------------------------------------------------------------------------------------------


class _Project(nn.Module):
    """Images (N, 12) to projected vectors (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_tensor(140, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T)


@exercise(
    "cropd.step",
    "compare the parts of the loss that a change of the weights would change with those that backward() reaches.",
    "the attack may treat p as a constant. May the loss?",
    "compute project(x) once more for the loss, with its gradient.",
    learned="A constant for the attack is not a constant for the training step; the value alone does not tell.",
    kind="bug",
)
def _check_step(answer: Any) -> None:
    """answer(project, x, start, eps, tau) -> the mean contrastive loss at one FGSM step from start."""
    eps, tau, project = 0.1, 0.5, _Project()
    x = 0.5 + 0.3 * torch.tanh(random_tensor(141, 6, 12))
    start = x + eps * torch.tanh(random_tensor(142, 6, 12))
    with torch.no_grad():
        p = project(x)

    def loss(sign: float, clean: Tensor, detached: bool = False) -> Tensor:
        moved = start.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cosine_similarity(project(moved), p).sum(), moved)
        p_adv = project((start - sign * eps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1))
        return adversarial_contrast(clean, p_adv.detach() if detached else p_adv, tau).mean()

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, project.weight)[0]

    value = call(answer, project, x.clone(), start.clone(), eps, tau)
    got, truth = returned(value, (), "return one number, the mean over the batch."), loss(1, project(x))
    mistakes = [
        (loss(-1, project(x)).detach(), "the attack makes the similarity small: subtract the sign."),
        (loss(0, project(x)).detach(), "this is the loss at the random start: take the step."),
    ]
    compare(got, truth.detach(), "a batch of six", mistakes, "the value of the given code was right.")
    if not value.requires_grad:
        raise Wrong("The loss carries no gradient.", "only the attack may be without gradients.")
    grad, right = slope(value), slope(truth)
    seen = (
        f"The value is right, {float(got):.4f}. Its gradient in the weights has length {float(grad.norm()):.3f}; "
        f"that of the equation has length {float(right.norm()):.3f}."
    )
    if close(grad, right):
        return
    if close(grad, slope(loss(1, p))):
        raise Unanswered(seen)
    if close(grad, slope(loss(1, project(x), detached=True))):
        raise Wrong(seen, "now the attacked vectors are constants: both need their gradient.")
    raise Wrong(seen, "x' is data, but p and p' are both computed by the network that is trained.")
