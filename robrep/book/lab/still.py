"""A still picture of the lab, for a page without JavaScript and before the lab is opened: one digit, two networks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from robrep.attacks import PGD, Linf
from robrep.book.lab.export import Images, Offered, row_name
from robrep.evaluation import adversarial_images
from robrep.heads import Classifier

SIDE, GAP, LEFT = 112, 28, 8  # of an image, between images, before the first
STYLE = "font-family='system-ui, sans-serif' fill='#24292f'"


def _pixels(image: Tensor, x: float, y: float) -> str:
    """A grey image, (1, H, W) in [0, 1], as squares."""
    size = SIDE / image.shape[-1]
    return "".join(
        f"<rect x='{x + size * column:g}' y='{y + size * row:g}' width='{size:g}' height='{size:g}' "
        f"fill='rgb({v},{v},{v})'/>"
        for row, line in enumerate((255 * image[0]).round().int().tolist())
        for column, v in enumerate(line)
    )


def picture(pair: Sequence[Offered], pictures: Images, eps: float, image: int | None = None) -> str:
    """An SVG: x, x' and their difference for each of two networks under PGD-20 on the loss, with what each one says.

    Args:
        pair: the networks, one row each.
        pictures: the images to choose from.
        eps: radius of the l-inf ball.
        image: number of the image; None for the first on which the first network fails and the second does not.
    """
    x, y = pictures.shown.float() / 255, torch.arange(len(pictures.shown)) % 10
    ball: Any = Linf(eps)
    found = []
    for each in pair:
        model = Classifier(each.encoder, each.head[1], each.samples).eval()
        x_adv = adversarial_images(model, x, y, PGD(20), ball)
        with torch.no_grad():
            said = [(model(images).softmax(1) if not each.samples else model(images).exp()) for images in (x, x_adv)]
        found.append((x_adv, *(p.max(1) for p in said)))
    (_, clean, one), (_, clean_2, other) = found
    right = (clean.indices == y) & (clean_2.indices == y) & (one.indices != y) & (other.indices == y)
    k = image if image is not None else int(right.nonzero()[0]) if right.any() else 0
    rows = []
    for row, (each, (x_adv, before, after)) in enumerate(zip(pair, found, strict=True)):
        top = 44 + row * (SIDE + 66)
        change = (x_adv[k] - x[k]) / (2 * eps) + 0.5
        for column, (shown, caption) in enumerate(
            (
                (x[k], f"x: says {before.indices[k]} ({before.values[k]:.0%})"),
                (x_adv[k], f"x': says {after.indices[k]} ({after.values[k]:.0%})"),
                (change, "the change, enlarged"),
            )
        ):
            left = LEFT + column * (SIDE + GAP)
            rows.append(_pixels(shown, left, top))
            rows.append(f"<text x='{left}' y='{top + SIDE + 16}' font-size='12' {STYLE}>{escape(caption)}</text>")
        title = f"{row_name(each.run.row)}, attacked within ε = {eps:g}"
        rows.append(f"<text x='{LEFT}' y='{top - 10}' font-size='14' font-weight='600' {STYLE}>{escape(title)}</text>")
    width, height = 2 * LEFT + 3 * SIDE + 2 * GAP + 20, 2 * (SIDE + 66) + 8
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>{''.join(rows)}</svg>\n"
    )
