"""The lab's page: its three tasks have the answers that it gives, and a site without solutions leaves these out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep.attacks import PGD, Linf
from robrep.book import results
from robrep.book.lab import export
from robrep.book.lab.describe import layers
from robrep.book.site.build import copy_page
from robrep.gaussians import Gaussian, kl, wasserstein2
from robrep.heads import Classifier
from robrep.losses import cross_entropy

ROOT = Path(__file__).resolve().parent.parent


class Subject:
    """A network of the lab, its code as a Gaussian (of scale 1 where it is a point), and its classifier."""

    def __init__(self, chapter: str, run: str) -> None:
        self.offered = export.load(results.load_run(chapter, run, folder=ROOT / "book" / "results"))
        self.pictures = export.images(self.offered.run.dataset)
        self.x = self.pictures.shown.float() / 255
        self.y = torch.arange(len(self.x)) % 10
        self.model = Classifier(self.offered.encoder, self.offered.head[1], self.offered.samples).eval()

    def code(self, x: Tensor) -> Gaussian:
        code = self.offered.encoder(x)
        return code if isinstance(code, Gaussian) else Gaussian(code, torch.ones_like(code))

    def says(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x).argmax(1)

    def attacked(self, eps: float, objective: Any) -> Tensor:
        ball: Any = Linf(eps)
        return PGD(20)(objective, self.x, ball)

    def by_loss(self, eps: float) -> Tensor:
        return self.attacked(eps, lambda x: cross_entropy(self.model(x), self.y))


def test_radius_between_two_networks() -> None:
    """For many digits there is a radius at which Standard fails and VAE + Urkle does not, and a larger one for both."""
    standard, urkle = (Subject("vae_urkle", f"demo-digits-{row}-0") for row in ("standard", "vae_urkle"))
    fails = {(s, eps): s.says(s.by_loss(eps)) != s.y for s in (standard, urkle) for eps in (0.1, 0.15, 0.4)}
    between = fails[standard, 0.15] & ~fails[urkle, 0.15]
    assert between.sum() >= 20
    assert (between & fails[urkle, 0.4]).sum() >= 0.9 * between.sum(), "both fail in a larger ball"


def test_start_at_the_image() -> None:
    """The gradient of the divergences at the image is exactly zero, that of the loss is not."""
    urkle = Subject("vae_urkle", "demo-digits-vae_urkle-0")
    x = urkle.x[:20].clone().requires_grad_()
    clean = Gaussian(*(part.detach() for part in urkle.code(x)))
    for divergence in (kl, wasserstein2):
        assert not torch.autograd.grad(divergence(clean, urkle.code(x)).sum(), x)[0].any()
    assert torch.autograd.grad(cross_entropy(urkle.model(x), urkle.y[:20]).sum(), x)[0].flatten(1).any(1).all()


def test_code_moves_and_prediction_stays() -> None:
    """SimCLR on colour digits at 0.1: the divergence moves the code further than the loss, and fools less often."""
    simclr = Subject("simclr_urkle", "demo-colour-digits-simclr-0")
    clean = Gaussian(*(part.detach() for part in simclr.code(simclr.x)))
    _, distance = export.fixed_map(simclr.offered.encoder, simclr.pictures)
    found = simclr.attacked(0.1, lambda x: kl(clean, simclr.code(x))), simclr.by_loss(0.1)
    with torch.no_grad():
        far, less = ((simclr.code(x).mean - clean.mean).norm(dim=1) / distance for x in found)
    stays, fooled = simclr.says(found[0]) == simclr.says(simclr.x), simclr.says(found[1]) != simclr.y
    example = (far >= 0.8) & stays
    assert example.sum() >= 10
    assert (example & fooled & (less < far)).sum() >= 0.8 * example.sum()


def test_solutions_left_out(tmp_path: Path) -> None:
    page = ROOT / "book" / "lab.md"
    for solutions in (True, False):
        copy_page(page, tmp_path / "lab.md", solutions)
        text = (tmp_path / "lab.md").read_text()
        assert len(re.findall(r"^```\{exercise\}", text, re.MULTILINE)) == 3
        assert len(re.findall(r"^```\{solution\}", text, re.MULTILINE)) == (3 if solutions else 0)
        assert text.count("```") % 2 == 0


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.GELU("tanh"), nn.Conv2d(2, 2, 3, groups=2)])
def test_layers_that_the_lab_does_not_know(layer: nn.Module) -> None:
    """Refused by name when the site is built."""
    with pytest.raises(ValueError, match=r"^encoder.1 is a? ?(MaxPool2d|GELU|Conv2d)"):
        layers(nn.Sequential(nn.ReLU(), layer), "encoder")


def test_images_without_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MNIST is not at hand nothing is downloaded: the small digits stand in, enlarged, and a note says so."""
    monkeypatch.setattr(export, "available", lambda dataset: dataset.endswith("digits"))
    for name in ("mnist", "colour-mnist"):
        pictures = export.images(name)
        assert pictures.shown.shape == (100, *export.shape_of(name)) and "enlarged" in pictures.note
        assert len(pictures.colours) == (6 if name == "colour-mnist" else 0)
    assert not export.images("digits").note
