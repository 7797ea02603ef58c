"""The exercises of the chapter on judging robustness."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robrep.book.exercises.core import Wrong, call, compare, exercise, random_tensor, returned


@exercise(
    "judging_robustness.dlr",
    "the numerator is the largest *other* logit minus the label's; the denominator does not know the label.",
    "mask the label's logit with minus infinity before the maximum; sort all logits for the denominator.",
    "top = logits.topk(3, dim=1).values; (other - own) / (top[:, 0] - top[:, 2])",
    learned="Multiply the logits by 1,000 and nothing changes: this loss cannot be saturated.",
)
def _check_dlr(answer: Any) -> None:
    """answer(logits, y) -> (N,): difference of logits ratio, large where the label loses."""
    n, classes = 5, 6
    z = 3 * random_tensor(43, n, classes)
    rank = z.argsort(1, descending=True)
    y = rank[torch.arange(n), torch.tensor([0, 0, 1, 2, 4])]  # right, right, and wrong in three ways
    got = returned(call(answer, z.clone(), y.clone()), (n,), "one value for each image, shape (N,).")
    own = z.gather(1, y[:, None])[:, 0]
    other = z.scatter(1, y[:, None], -math.inf).amax(1)
    top = z.sort(1, descending=True).values
    truth = (other - own) / (top[:, 0] - top[:, 2])
    rest = z.scatter(1, y[:, None], -math.inf).sort(1, descending=True).values
    mistakes = [
        (-truth, "this falls as the label loses: an attack makes the objective large."),
        (other - own, "this is the margin: divide it."),
        (own - other, "this is minus the margin: turn it round, and divide it."),
        ((top[:, 0] - own) / (top[:, 0] - top[:, 2]), "leave the label out of the maximum."),
        ((top[:, 1] - own) / (top[:, 0] - top[:, 2]), "the best other class is second only where the label is first."),
        ((other - own) / (top[:, 0] - top[:, 1]), "the denominator has the third largest logit: with the second, "
         "a right image scores -1 whatever you do."),
        ((other - own) / (rest[:, 0] - rest[:, 2]), "the denominator sorts all logits, the label's included."),
        ((other - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2), "that is the denominator of the targeted loss."),
    ]  # fmt: skip
    compare(got, truth, f"{n} images of {classes} classes", mistakes, "compare numerator and denominator one by one.")
    scaled = returned(call(answer, 1000 * z, y.clone()), (n,), "one value for each image, shape (N,).")
    compare(scaled, truth, "logits 1,000 times as large", [], "a common factor of the logits must cancel.")


@exercise(
    "judging_robustness.worst_case",
    "an image is robust only if it survives everything: join image by image, before you count.",
    "all() over attacks and restarts, and the clean image is one of the things to survive.",
    "(right.flatten(0, 1).all(0) & clean).float().mean().item()",
    learned="The lowest accuracy of a single attack is larger, unless that attack breaks all that any of them breaks.",
)
def _check_worst_case(answer: Any) -> None:
    """answer(right, clean) -> robust accuracy; right is bool (attacks, restarts, N), clean bool (N,)."""
    right = torch.rand(3, 4, 200, generator=torch.Generator().manual_seed(45)) > 0.06
    clean = torch.rand(200, generator=torch.Generator().manual_seed(46)) > 0.1
    right[0, 1] = right[0, 1] & (torch.rand(200, generator=torch.Generator().manual_seed(47)) > 0.3)
    value = call(answer, right.clone(), clean.clone())
    try:
        got = torch.tensor([float(value)], dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number in [0, 1].") from None
    share = right.double().mean(-1)

    def number(v: Tensor | float) -> Tensor:
        return torch.as_tensor(v, dtype=torch.float64).reshape(1)

    robust = right.flatten(0, 1).all(0) & clean
    mistakes = [
        (number(right.flatten(0, 1).all(0).double().mean()), "an image that is wrong without an attack is not robust."),
        (number(share.min()), "this is the best single run: join image by image first."),
        (number((right & clean).double().mean(-1).min()), "this is the best single run: join image by image first."),
        (number(right.all(1).double().mean(-1).min()), "this joins restarts but not attacks."),
        (number((right.all(1) & clean).double().mean(-1).min()), "this joins restarts but not attacks."),
        (number((right[:, -1].all(0) & clean).double().mean()), "you kept the last restart: every restart counts."),
        (number(share.mean()), "an average over attacks is not a worst case."),
        (number((right.flatten(0, 1).any(0) & clean).double().mean()), "any() asks for one failed attack: use all()."),
        (number(robust.double().sum()), "return a share in [0, 1], not a count."),
        (number(1 - robust.double().mean()), "this is the share that was broken."),
        (number(100 * robust.double().mean()), "return a share in [0, 1], not percent."),
    ]
    compare(got, number(robust.double().mean()), "200 images", mistakes, "all() over attacks and restarts, and clean.")


@exercise(
    "judging_robustness.radius",
    "first a lower bound of the share of votes, then sigma times the normal quantile of that bound.",
    "the Clopper-Pearson lower bound is scipy.stats.beta.ppf(alpha, k, n - k + 1), and 0 for k = 0.",
    "low = beta.ppf(alpha, k, n - k + 1) if k else 0; radius = sigma * norm.ppf(low) if low > 0.5 else 0",
    learned="With every one of n votes the bound is alpha^(1/n): more votes, and only more votes, certify further.",
)
def _check_radius(answer: Any) -> None:
    """answer(k, n, sigma, alpha) -> certified l2 radius, 0 where the model abstains."""
    from scipy.stats import beta, norm

    def bounded(k: int, n: int, level: float) -> float:
        return float(beta.ppf(level, k, n - k + 1)) if k else 0.0

    for k, n, sigma, alpha in ((990, 1000, 0.25, 0.001), (1000, 1000, 0.5, 0.001), (70, 100, 0.25, 0.05),
                               (480, 1000, 0.25, 0.001), (51, 100, 0.25, 0.001), (0, 100, 0.25, 0.001)):  # fmt: skip
        value = call(answer, k, n, sigma, alpha)
        try:
            got = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise Wrong(f"Your function returned a {type(value).__name__}.", "return one number, the radius.") from None
        low, share = bounded(k, n, alpha), k / n
        truth = sigma * float(norm.ppf(low)) if low > 0.5 else 0.0
        if math.isclose(got, truth, abs_tol=1e-6):
            continue
        seen = f"For {k} of {n} votes, sigma {sigma:g} and alpha {alpha:g} you have {got:.4g}, right is {truth:.4g}."
        text = "a lower bound of the share first, then sigma times the quantile of the normal distribution."
        if truth == 0:
            text = "with a bound of at most 1/2 no class is certain to win: abstain, with radius 0."
        elif 0 < share < 1 and math.isclose(got, sigma * float(norm.ppf(share)), abs_tol=1e-6):
            text = "the share itself is not a bound: the next votes may turn out worse. Take a lower confidence bound."
        elif math.isclose(got, sigma * float(norm.ppf(bounded(k, n, alpha / 2))), abs_tol=1e-6):
            text = "a one-sided bound puts all of alpha on its side: do not halve it."
        elif math.isclose(got, float(norm.ppf(low)), abs_tol=1e-6):
            text = "multiply by sigma."
        elif math.isclose(got, low, abs_tol=1e-6):
            text = "this is the bound of the share: the radius is sigma times its normal quantile."
        elif math.isclose(got, sigma * low, abs_tol=1e-6):
            text = "the quantile (norm.ppf) is missing."
        elif not math.isfinite(got):
            text = "with every vote for one class the share is 1 and its quantile infinite: use the lower bound."
        raise Wrong(seen, text)
