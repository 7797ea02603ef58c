"""The exercises of the chapter on VAE + Urkle."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from robrep.book.exercises.core import (
    EXERCISES,
    LinearGaussian,
    Unanswered,
    Wrong,
    call,
    close,
    compare,
    exact_kl,
    exercise,
    random_tensor,
    returned,
)
from robrep.gaussians import Gaussian


@exercise(
    "vae_urkle.kl",
    "in each dimension, KL is half of: log of the ratio of variances, plus a quadratic term, minus 1; then sum.",
    "p.scale and q.scale are standard deviations: square them first. The ratio under the log is q's over p's.",
    "0.5 * (log(v2 / v1) + (v1 + (m1 - m2)**2) / v2 - 1), summed over the last axis, where v1 and v2 are variances.",
)
def _check_kl(answer: Any) -> None:
    """answer(p, q) -> (N,): KL[p || q] of diagonal Gaussians, summed over dimensions."""
    one = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    two = Gaussian(one.mean + 1, one.scale * 2)
    many = (
        Gaussian(random_tensor(0, 5, 3), random_tensor(1, 5, 3).exp()),
        Gaussian(random_tensor(2, 5, 3), random_tensor(3, 5, 3).exp()),
    )
    cases = (("KL[N(0, 1) || N(1, 2²)]", one, two), ("five pairs in three dimensions", *many))
    for case, p, q in cases:
        n, d = p.mean.shape
        value = call(answer, p, q)
        each = exact_kl(p, q)
        if isinstance(value, Tensor) and value.shape == (n, d):
            raise Wrong(f"The result has shape ({n}, {d}).", "sum over the dimensions: one number for each pair.")
        if isinstance(value, Tensor) and value.ndim == 0:
            raise Wrong("The result is one number.", "keep the batch: one number for each pair, shape (N,).")
        got = returned(value, (n,), "return one number for each pair, shape (N,): sum over the last axis only.")
        v, w, square = p.scale**2, q.scale**2, (p.mean - q.mean) ** 2
        half = each.sum(1)
        mistakes = [
            (exact_kl(q, p).sum(1), "you computed KL[p' || p]: the clean distribution comes first."),
            (each.mean(1), "you averaged over the dimensions: the bound needs their sum."),
            (
                exact_kl(Gaussian(p.mean, p.scale.sqrt()), Gaussian(q.mean, q.scale.sqrt())).sum(1),
                "you used the scale as the variance: square the standard deviations.",
            ),
            (exact_kl(Gaussian(p.mean, v), Gaussian(q.mean, w)).sum(1), "you squared the scale twice."),
            (2 * half, "the factor 1/2 is missing."),
            (half + d / 2, "the -1 in each dimension is missing: KL of a distribution with itself must be 0."),
            (0.5 * (torch.log(v / w) + (v + square) / w - 1).sum(1), "the ratio under the log is upside down."),
            (0.5 * (torch.log(w / v) + (v + square) / v - 1).sum(1), "divide by the second variance, not the first."),
            (0.5 * (torch.log(w / v) + v / w - 1).sum(1), "the distance of the means is missing."),
            (0.5 * (0.5 * torch.log(w / v) + (v + square) / w - 1).sum(1), "the log is of the ratio of variances."),
        ]
        other = "check the terms one by one with p = q (0) and with equal scales ((m1 - m2)² / 2 / scale²)."
        compare(got, half, case, mistakes, other)


@exercise(
    "vae_urkle.project",
    "two limits hold at once: within eps of the clean image, and within [0, 1]. Both are limits on single pixels.",
    "a pixel x may become anything between max(0, x - eps) and min(1, x + eps).",
    "x_adv.clamp(x - eps, x + eps).clamp(0, 1), or torch.minimum and torch.maximum.",
    learned="For the l-infinity ball and the box the order does not matter; for an l2 ball it does.",
)
def _check_project(answer: Any) -> None:
    """answer(x_adv, x, eps) -> images: the closest point to x_adv in the l-infinity ball around x and in [0, 1]."""
    x = torch.rand(4, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 0.03, 0.97, 0.5])
    eps = 0.1
    outside = x + 0.5 * random_tensor(1, *x.shape)
    outside[0, 0, 0] = torch.tensor([-0.3, 1.3, -0.3, 1.3, 0.52])
    given = outside.clone()
    got = returned(call(answer, given, x.clone(), eps), x.shape, "return an image of the shape of x.")
    if not torch.equal(given, outside):
        raise Wrong("Your function changed its input x_adv in place.", "return a new tensor (clamp, not clamp_).")
    delta = outside - x
    truth = torch.minimum(torch.maximum(outside, (x - eps).clamp(min=0)), (x + eps).clamp(max=1))
    largest = delta.abs().amax((1, 2, 3), keepdim=True)
    mistakes = [
        (x + delta.clamp(-eps, eps), "this stays in the ball but leaves [0, 1]: an image cannot be darker than black."),
        (outside.clamp(0, 1), "this is an image, but it is further than eps from the clean one."),
        (truth - x, "you returned the change delta: add it to x."),
        (delta.clamp(-eps, eps), "you returned the change delta: add it to x, then clip to [0, 1]."),
        (outside.clamp(-eps, eps), "clamp the change x_adv - x, not the image, to [-eps, eps]."),
        (
            x + eps * delta.sign(),
            "this moves every pixel to the ball's edge: pixels already inside stay where they are.",
        ),
        ((x + eps * delta.sign()).clamp(0, 1), "pixels already inside the ball must stay where they are."),
        (
            (x + delta * (eps / largest).clamp(max=1)).clamp(0, 1),
            "this shrinks the whole change, as for an l2 ball: for l-infinity each pixel is clamped by itself.",
        ),
    ]
    compare(got, truth, "the worst pixel", mistakes, "a pixel ends between max(0, x - eps) and min(1, x + eps).")
    inside = truth
    again = returned(call(answer, inside.clone(), x.clone(), eps), x.shape, "return an image of the shape of x.")
    compare(again, inside, "a point already inside", [], "a point that is already allowed must not move.")


class _Curved(nn.Module):
    """A small Gaussian encoder whose mean and scale both depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.to_mean = nn.Parameter(random_tensor(10, 6, 3))
        self.to_scale = nn.Parameter(0.3 * random_tensor(11, 6, 3))

    def forward(self, x: Tensor) -> Gaussian:
        flat = x.flatten(1)
        return Gaussian((flat @ self.to_mean).tanh(), nn.functional.softplus(flat @ self.to_scale) + 0.2)


@exercise(
    "vae_urkle.random_start",
    "KL[p(z|x) || p(z|x + delta)] is never negative and is 0 at delta = 0. What is the slope at a minimum?",
    "make delta require a gradient, compute p from x (detached) and p' from x + delta, and sum KL over the batch.",
    "torch.autograd.grad(kl(p.detach(), encoder(x + delta)).sum(), delta)[0], after delta.requires_grad_().",
    learned="At delta = 0 every component is 0, so the sign of what rounding leaves there is noise.",
)
def _check_random_start(answer: Any) -> None:
    """answer(encoder, x, delta) -> gradient of KL[p(z|x) || p(z|x + delta)] in delta, or how many are nonzero at 0."""
    if isinstance(answer, Real) and not isinstance(answer, bool):
        if answer != 0:
            raise Wrong(
                f"You say that {answer:g} components are not zero.", EXERCISES["vae_urkle.random_start"].hints[0]
            )
        return
    encoder, x = _Curved(), torch.rand(3, 1, 2, 3, dtype=torch.float64) * 0.5 + 0.25
    shape_hint = "return the gradient itself, of the shape of delta (autograd.grad returns a tuple: take its first)."
    shift = 0.1 * torch.rand(x.shape, dtype=torch.float64) + 0.01

    def objective(delta: Tensor, swap: bool = False) -> Tensor:
        with torch.no_grad():
            p, q = encoder(x), encoder(x + delta)
            return (exact_kl(q, p) if swap else exact_kl(p, q)).sum(1)

    def slope(swap: bool = False) -> Tensor:
        """By central differences, one pixel of all images at a time."""
        result, h = torch.zeros_like(x), 1e-5
        for i in range(x[0].numel()):
            step = torch.zeros_like(x)
            step.view(len(x), -1)[:, i] = h
            up, down = objective(shift + step, swap), objective(shift - step, swap)
            result.view(len(x), -1)[:, i] = (up - down) / (2 * h)
        return result

    got = returned(call(answer, encoder, x.clone(), shift.clone()), x.shape, shape_hint)
    truth = slope()
    if not torch.allclose(got, truth, rtol=1e-5, atol=1e-7):
        for wrong, text in (
            (torch.zeros_like(x), "away from delta = 0 it is not zero: p must come from x alone, p' from x + delta."),
            (truth / len(x), "you averaged over the batch: sum, so that each image's gradient is its own."),
            (truth.sign(), "return the gradient, not its sign."),
            (-truth, "the sign is turned round: the attack ascends."),
            (slope(swap=True), "you computed KL[p' || p]: the clean distribution comes first."),
        ):
            if torch.allclose(got, wrong, rtol=1e-5, atol=1e-7):
                raise Wrong("At a random delta the gradient is not right.", text)
        raise Wrong(
            "At a random delta the gradient is not right.",
            "compare it with a difference quotient of KL[p(z|x) || p(z|x + delta)] in one pixel.",
        )
    zero = torch.zeros_like(x)
    got = returned(call(answer, encoder, x.clone(), zero.clone()), x.shape, shape_hint)
    if not torch.allclose(got, zero, atol=1e-10):
        raise Wrong(
            f"At delta = 0 you have components up to {got.abs().max():.3g}.",
            "KL has its minimum there, so the gradient must vanish.",
        )


@exercise(
    "vae_urkle.bounded_softmax",
    "mix the probabilities with a floor: p becomes K p + exp(-M). What must K be for the C classes to sum to 1?",
    "K = 1 - C exp(-M). It has to be positive.",
    "return torch.log(K * logits.softmax(-1) + exp(-M)), math.log(C)",
    learned="The paper's example M = 3 is legal for 10 classes (ln 10 = 2.30) but not for 100 (ln 100 = 4.61).",
)
def _check_bounded_softmax(answer: Any) -> None:
    """answer(logits, M) -> (log-probabilities (N, C) that are nowhere below -M, smallest legal M for C classes)."""
    for classes, bound in ((10, 5.0), (100, 6.0)):
        logits = 4 * random_tensor(classes, 6, classes)
        logits[0, 0] += 200  # as sure as can be
        value = call(answer, logits.clone(), bound)
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise Wrong(
                f"Your function returned a {type(value).__name__}.", "return a pair: log-probabilities, smallest M."
            )
        if any(part is None or part is ... for part in value):
            raise Unanswered
        got = returned(value[0], logits.shape, "one log-probability for each class.")
        p, floor = logits.softmax(1), math.exp(-bound)
        log_p = logits.log_softmax(1)
        bounded = (1 - classes * floor) * p + floor
        mistakes = [
            (bounded, "these are probabilities: return their logarithm."),
            (log_p, "this is the ordinary softmax: its loss has no bound."),
            (log_p.clamp(min=-bound), "clamping keeps the bound, but the probabilities of a row no longer sum to 1."),
            (torch.log((1 - floor) * p + floor), "K must give back one floor for each of the C classes."),
            (torch.log(p + floor), "without K the probabilities of a row sum to more than 1."),
            (
                torch.log((p + floor) / (1 + classes * floor)),
                "the floor becomes exp(-M)/(1 + C exp(-M)), below exp(-M).",
            ),
            (torch.log((1 - floor) * p + floor / classes), "the floor of each class is exp(-M) itself, not exp(-M)/C."),
        ]
        compare(
            got, bounded.log(), f"{classes} classes and M = {bound:g}", mistakes,
            "each row's exponentials must sum to 1, and none may be below exp(-M).",
        )  # fmt: skip
        least = float(value[1])
        if not math.isclose(least, math.log(classes), rel_tol=1e-6):
            hints = {
                math.log(10): "that is right for 10 classes only: use the number of columns.",
                math.log2(classes): "use the natural logarithm: the losses are in nats.",
                math.log10(classes): "use the natural logarithm: the losses are in nats.",
                float(classes): "solve 1 - C exp(-M) = 0 for M.",
                bound: "that is the M given; which is the smallest that keeps K positive?",
            }
            text = next((h for v, h in hints.items() if math.isclose(least, v, rel_tol=1e-6)), "solve K = 0 for M.")
            seen = f"For {classes} classes you have a smallest M of {least:.4g}, right is {math.log(classes):.4g}."
            raise Wrong(seen, text)


class _OnePixel(nn.Module):
    """A Gaussian encoder of one pixel whose scale depends on it, so that the order inside KL matters."""

    def forward(self, x: Tensor) -> Gaussian:
        pixel = x.flatten(1)
        return Gaussian(3 * pixel, 0.3 + pixel)


@exercise(
    "vae_urkle.urkle",
    "three parts: a random start in the ball, ascent on KL with projection, KL at the image found.",
    "the attack's gradient is with respect to the image only (torch.autograd.grad), with p detached; the value "
    "returned keeps its gradients.",
    "x_adv = x + eps * (2 * rand - 1); repeat: g = autograd.grad(kl(p.detach(), encoder(x_adv)).sum(), x_adv)[0], "
    "x_adv = project(x_adv + 2.5 * eps / steps * g.sign(), x, eps); return kl(encoder(x), encoder(x_adv)).",
    learned="For a linear encoder the maximum is known, (eps ||w||_1)² / 2, and your attack finds it.",
)
def _check_urkle(answer: Any) -> None:
    """answer(encoder, x, eps, steps) -> (N,): KL[p(z|x) || p(z|x')] at the worst x' found in the l-infinity ball."""
    eps, steps, n = 0.1, 20, 3  # an odd number, so that wrong gradients of both signs cannot cancel
    w = random_tensor(20, 1, 9)
    middle = torch.full((n, 1, 3, 3), 0.5, dtype=torch.float64)
    exact = (eps * w.abs().sum()).square().item() / 2
    encoder = LinearGaussian(w.clone())
    value = call(answer, encoder, middle.clone(), eps, steps)
    if encoder.weight.grad is not None:
        raise Wrong(
            "The attack left gradients in the encoder's parameters.",
            "use torch.autograd.grad(score, x_adv) instead of score.backward().",
        )
    if isinstance(value, Tensor) and value.ndim == 0:
        raise Wrong("The result is one number.", "return one value for each image; the training loss averages them.")
    got = returned(value, (n,), "one value for each image, shape (N,).")
    found = f"On a linear encoder you find {got.min():.4g} to {got.max():.4g}; the maximum is {exact:.4g}."
    if (got > exact * (1 + 1e-6)).any():
        raise Wrong(found, "more than the maximum: x' has left the ball. Project after every step, and last of all.")
    if (got.abs() < 1e-9).all():
        raise Wrong(found, "nothing moved: at delta = 0 the gradient is exactly zero, so start at a random point.")
    if (got < 0.98 * exact).any():
        low = got.min().item() < 0.02 * exact
        raise Wrong(
            found,
            "so little: do you ascend (x + step), and keep the moved x' from step to step?" if low
            else "the attack stops early: steps of 2.5 eps / steps along the gradient's sign reach the ball's edge.",
        )  # fmt: skip

    if not value.requires_grad:
        raise Wrong(
            "The value has no gradient.", "detach inside the attack only: the last KL is what training minimises."
        )
    value.sum().backward()
    both = n * eps**2 * w.abs().sum() * w.sign()
    if encoder.weight.grad is None or not close(encoder.weight.grad, both, 1e-5):
        raise Wrong(
            "The value's gradient in the encoder's weights is not that of KL.",
            "let it flow through both p(z|x) and p(z|x'): detach p inside the attack only, and x' but not p(z|x').",
        )

    thrice = LinearGaussian(w.repeat(3, 1))
    got = returned(call(answer, thrice, middle.clone(), eps, steps), (n,), "one value for each image.")
    if close(got, torch.full_like(got, exact), 0.02):
        raise Wrong("With three equal outputs KL must be three times as large.", "sum over the dimensions of z.")
    if not close(got, torch.full_like(got, 3 * exact), 0.02):
        raise Wrong(f"With three equal outputs you find {got.mean():.4g}, right is {3 * exact:.4g}.", "sum over z.")

    up, down = eps * w.clamp(min=0).sum(), eps * (-w).clamp(min=0).sum()  # from a black image pixels can only rise
    ends = torch.stack([up, down]).square() / 2
    black = torch.zeros(n, 1, 3, 3, dtype=torch.float64)
    got = returned(call(answer, LinearGaussian(w.clone()), black, eps, steps), (n,), "one value for each image.")
    seen = f"Around a black image you find up to {got.max():.4g}; the maximum is {ends.max():.4g}."
    if (got > ends.max() * (1 + 1e-6)).any():
        raise Wrong(seen, "x' has left [0, 1]: no pixel can be darker than black.")
    if (got < 0.98 * ends.min()).any():
        raise Wrong(seen, "clip to [0, 1] after each step, but let the attack go on from there.")

    pixel, one = torch.linspace(0.3, 0.7, 8, dtype=torch.float64).view(8, 1, 1, 1), _OnePixel()
    got = returned(call(answer, one, pixel.clone(), eps, steps), (8,), "one value for each image.")
    p, sides = one(pixel), [one(pixel - eps), one(pixel + eps)]

    def at_an_end(values: list[Tensor]) -> bool:
        return bool(torch.stack([(got - v).abs() <= 0.01 * v for v in values]).any(0).all())

    if not at_an_end([exact_kl(p, q).sum(1) for q in sides]):
        swapped = at_an_end([exact_kl(q, p).sum(1) for q in sides])
        raise Wrong(
            "Where the scale depends on the image, the value is not KL at an end of the interval.",
            "you computed KL[p' || p]: the clean distribution comes first." if swapped
            else "the attack must climb KL[p(z|x) || p(z|x')] itself, not another distance.",
        )  # fmt: skip


@exercise(
    "vae_urkle.predict",
    "draw z = mean + scale * noise for each sample, classify each, and average what?",
    "average probabilities: first the softmax of each sample's logits, then the mean over samples.",
    "head(p.mean + p.scale * noise).softmax(-1).mean(0)",
    learned="The average of probabilities is what the bound speaks about; averaged logits are surer than the model is.",
)
def _check_predict(answer: Any) -> None:
    """answer(head, p, noise) -> (N, C): probabilities averaged over the samples; noise is (S, N, D)."""
    n, d, samples = 5, 2, 4000
    w = torch.tensor([1.5, -1.0], dtype=torch.float64)
    p = Gaussian(random_tensor(30, n, d), 0.5 + random_tensor(31, n, d).abs())
    draws = random_tensor(32, samples, n, d)
    normal = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))

    def head(z: Tensor) -> Tensor:
        """Logits whose softmax is (Phi(wz), Phi(-wz)), for which the average over z is known."""
        score = (z * w).sum(-1)
        return torch.stack([normal.cdf(score), normal.cdf(-score)], -1).clamp(min=1e-300).log()

    value = call(answer, head, p, draws.clone())
    got = returned(value, (n, 2), "one row of probabilities for each image, shape (N, C): average over the samples.")
    logits = head(p.mean + p.scale * draws)
    truth = logits.softmax(-1).mean(0)
    mistakes = [
        (logits.mean(0).softmax(-1), "you averaged logits: take the softmax of each sample first."),
        (logits.log_softmax(-1).mean(0), "you averaged log-probabilities: average the probabilities."),
        (logits.log_softmax(-1).mean(0).exp(), "you averaged log-probabilities: average the probabilities."),
        (truth.log(), "these are log-probabilities: the exercise asks for probabilities."),
        (head(p.mean).softmax(-1), "you used the mean only: draw z with the noise given."),
        (head((p.mean + p.scale * draws).mean(0)).softmax(-1), "you averaged z: average after the head."),
        (logits.mean(0), "you averaged logits and left out the softmax."),
        (logits.softmax(-1)[0], "this is one sample: average over all of them."),
        (logits.softmax(-1).sum(0), "divide by the number of samples."),
        (head(p.mean + p.scale**2 * draws).softmax(-1).mean(0), "the scale is a standard deviation already."),
        (
            head(p.mean + p.scale.sqrt() * draws).softmax(-1).mean(0),
            "the scale is a standard deviation, not a variance.",
        ),
        (head(p.mean + draws).softmax(-1).mean(0), "multiply the noise by the scale."),
    ]
    compare(got, truth, f"{samples} samples", mistakes, "z = mean + scale * noise; softmax; mean over the first axis.")
    # the reference itself against the integral: E Phi(w z) = Phi(w mu / sqrt(1 + sum (w s)^2))
    exact = normal.cdf((p.mean * w).sum(1) / (1 + (p.scale * w).square().sum(1)).sqrt())
    if not torch.allclose(got[:, 0], exact, atol=0.03):
        raise Wrong("The average is not the integral over z.", "use every sample of the noise given.")


@exercise(
    "vae_urkle.wilson",
    "ask which rates p would make the share seen unsurprising: |share - p| <= z sqrt(p (1 - p) / n), z = 1.96.",
    "the standard error is taken at p, not at the share: that makes a quadratic equation for the two ends.",
    "with t = z² / n: centre (share + t/2) / (1 + t), half width z / (1 + t) * sqrt(share (1 - share) / n + t/(4 n)).",
    learned="0 right of 500 still leaves a rate of up to 0.76 % possible.",
)
def _check_wilson(answer: Any) -> None:
    """answer(k, n) -> (low, high): the 95 % interval of a rate, in [0, 1]."""
    z = 1.959963984540054
    for k, n in ((50, 500), (3, 10), (0, 500), (500, 500)):
        value = call(answer, k, n)
        try:
            low, high = (float(v) for v in value)
        except (TypeError, ValueError):
            raise Wrong(f"Your function returned {value!r}.", "return a pair: low, high.") from None
        # the ends solve (share - p)^2 = z^2 p (1 - p) / n
        share = k / n
        a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        truth = ((-b - root) / (2 * a), (-b + root) / (2 * a))

        def same(pair: tuple[float, float], low: float = low, high: float = high) -> bool:
            return all(math.isclose(u, v, abs_tol=2e-4) for u, v in zip((low, high), pair, strict=True))

        if same(truth):
            continue
        seen = f"For {k} of {n} you have [{low:.4g}, {high:.4g}], right is [{truth[0]:.4g}, {truth[1]:.4g}]."
        wald = z * math.sqrt(share * (1 - share) / n)
        text = "solve the quadratic (share - p)² = z² p (1 - p) / n for p."
        if low == high == share:
            text = "a share of 0 is no proof of 0: one more image could be right."
        elif same((share - wald, share + wald)) or same((max(0.0, share - wald), min(1.0, share + wald))):
            text = "this is share ± z standard errors, which has no width at 0: take the error at p, not at the share."
        elif same(truth[::-1]):
            text = "the lower end comes first."
        elif same((100 * truth[0], 100 * truth[1])):
            text = "return rates in [0, 1], not percent."
        elif 0 < low < truth[0] + 0.05 and truth[1] - 0.05 < high and high - low < truth[1] - truth[0]:
            text = "too narrow: 95 % on both sides together needs z = 1.96."
        raise Wrong(seen, text)
