"""All methods of the book side by side: built by name around one encoder, paid for in one unit.

The unit is the *pass*: one image through the encoder, forward and back, for whatever purpose: training step, attack or
moving target. A forward without a backward is half a pass. Decoders, projectors and critics are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robrep.attacks import FGSM, PGD, Threat
from robrep.augmentations import Augmentation
from robrep.checks import one_of, positive_int
from robrep.encoders import (
    ConvDecoder,
    ConvEncoder,
    Critic,
    MaskedAutoEncoder,
    MeanCode,
    NormMLP,
    Projector,
    ResNetEncoder,
)
from robrep.foundation import FrozenFoundation
from robrep.gaussians import Gaussian
from robrep.methods import (
    AETRADES,
    BYOL,
    BYORL,
    TRADES,
    AdversarialTraining,
    CRoPD,
    GaussianVAE,
    InfoMax,
    RoCL,
    SimCLR,
    SimCLRUrkle,
    SmoothEncoder,
    Supervised,
    VAEUrkle,
    WorstCaseInfoMax,
)


class Row(NamedTuple):
    """One row of the comparison.

    Attributes:
        name: what tables call it.
        group: what it learns from: "labels", "pixels", "views" or "information"; "frozen" cleans images for another
            row's encoder.
        attacked: whether training meets attacked images.
        each, fixed: passes of one image in one step are ``each`` times the attack's steps, plus ``fixed``.
        gaussian: whether the code is a Gaussian, of which the mean is evaluated.
    """

    name: str
    group: str
    attacked: bool
    each: float
    fixed: float
    gaussian: bool = False


#: Every row, references first in each group. The numbers of passes are held against hooks by a test.
ROWS: dict[str, Row] = {
    "supervised": Row("Standard", "labels", False, 0, 1),
    "at": Row("AT", "labels", True, 1, 1),
    "trades": Row("TRADES", "labels", True, 1, 2),
    "vae": Row("VAE", "pixels", False, 0, 1, gaussian=True),
    "ae_trades": Row("AE + TRADES", "pixels", True, 1, 2),
    "vae_urkle": Row("VAE + Urkle", "pixels", True, 1, 2, gaussian=True),
    "smooth_encoder": Row("Smooth encoder", "pixels", True, 1, 2, gaussian=True),
    "simclr": Row("SimCLR", "views", False, 0, 2),
    "rocl": Row("RoCL", "views", True, 1, 3.5),
    "simclr_urkle": Row("SimCLR + Urkle", "views", True, 2, 5, gaussian=True),
    "byol": Row("BYOL", "views", False, 0, 3),
    "byorl": Row("BYORL", "views", True, 2, 3),
    "infomax": Row("InfoMax", "information", False, 0, 1),
    "worst_case_infomax": Row("Worst-case InfoMax", "information", True, 1, 1.5),
    "cropd": Row("CRoPD", "frozen", True, 1, 2.5),
}
ENCODERS = ("conv", "resnet18")


def passes(row: str, steps: int) -> float:
    """Passes that one image costs in one training step of a row whose attack has ``steps`` steps.

    CRoPD's attack has one step, whatever is asked; its passes go through the pre-processor's encoder.
    """
    r = ROWS[one_of("row", row, ROWS)]
    return r.each * (1 if row == "cropd" else positive_int("steps", steps)) + r.fixed


def affordable_epochs(row: str, steps: int, budget: float) -> int:
    """How many epochs of a row come nearest to ``budget`` passes for each training image; at least 1."""
    return max(1, round(budget / passes(row, steps)))


class Counter:
    """Counts the images that pass through an encoder, forward and back, while it is used as a context.

    Args:
        modules: what counts as the encoder, each with the images (N, ...) as its only input: the encoder itself and,
            where a method keeps a moving copy of it, that copy. Modules called for other purposes must not be named.

    Attributes:
        forward, backward: images so far.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self.modules, self.forward, self.backward = modules, 0, 0

    @property
    def passes(self) -> float:
        """(forward + backward) / 2."""
        return (self.forward + self.backward) / 2

    def __enter__(self) -> Counter:
        self._handles = [module.register_forward_hook(self._see) for module in self.modules]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Gaussian) -> None:
        n = len(inputs[0])
        self.forward += n
        parts = [part for part in (output if isinstance(output, Gaussian) else (output,)) if part.requires_grad]
        if parts:
            torch.autograd.graph.register_multi_grad_hook(parts, partial(self._back, n), mode="any")

    def _back(self, n: int, grad: Tensor) -> None:
        self.backward += n


class Built(NamedTuple):
    """A row ready to be trained.

    Attributes:
        method: for :func:`robrep.training.fit`.
        encoder: images to the codes (N, D) that are evaluated, a deterministic module; for a Gaussian code its mean.
        counted: the modules whose passes count.
    """

    method: nn.Module
    encoder: nn.Module
    counted: tuple[nn.Module, ...]


def new_encoder(s: Mapping[str, Any], channels: int, gaussian: bool) -> nn.Module:
    """The common encoder; a Gaussian one differs in its last layer alone.

    Args:
        s: settings ``net`` ("conv" or "resnet18"), ``widths``, ``strides`` (of "conv") or ``width`` (of "resnet18"),
            ``dim`` and ``start_scale``, what a Gaussian code's scale starts at before its softplus.
        channels: channels of the images.
        gaussian: give a ``Gaussian``.

    Raises:
        ValueError: no such net.
    """
    if one_of("net", s["net"], ENCODERS) == "resnet18":
        f: Any = ResNetEncoder(18, gaussian=gaussian, width=s["width"], dim=s["dim"], channels=channels)
    else:
        f = ConvEncoder(
            channels, s["dim"], gaussian=gaussian, widths=s["widths"], strides=s["strides"], groups=s["groups"]
        )
    if gaussian:
        nn.init.constant_(f.code.bias[f.dim :], s["start_scale"])
    return f


def build(
    row: str,
    seed: int,
    shape: tuple[int, int, int],
    classes: int,
    s: Mapping[str, Any],
    threat: Threat,
    augment: Augmentation,
    foundation: nn.Module | None = None,
) -> Built:
    """One row's networks with the weights of ``seed``, and its method around them, from ``robrep.methods``.

    Args:
        row: a name of :data:`ROWS`.
        seed: of the initial weights. All rows draw the encoder first; those with a plain code start from the same one.
        shape: (C, H, W) of the images.
        classes: number of classes of the supervised rows' heads.
        s: settings, by the names of the chapter's table.
        threat: the ball of all attacks.
        augment: makes the views of the rows that need some; the others see images as they are.
        foundation: images to codes, for "cropd" alone: the encoder that is left as it is.

    Raises:
        ValueError: an unknown row, or a foundation that is missing or not asked for.
    """
    r = ROWS[one_of("row", row, ROWS)]
    if (foundation is None) == (row == "cropd"):
        raise ValueError(f"foundation is {foundation and type(foundation).__name__}, expected one for 'cropd' alone")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if foundation is not None:
            auto = MaskedAutoEncoder.named(s["preprocessor"], shape[1], shape[0], pool=s["pool"])
            projector = Projector(auto.dim, s["hidden"], s["projection"])
            method: nn.Module = CRoPD(auto, projector, FGSM(), threat, weight=s["weight_cropd"])
            return Built(method, nn.Sequential(auto, FrozenFoundation(None, foundation)), (auto.embed,))
        f = new_encoder(s, shape[0], r.gaussian)
        method = _METHODS[row](_Parts(f, shape, classes, s, threat, augment, PGD(s["attack_steps"])))
    encoder = MeanCode(f) if r.gaussian else f
    return Built(method, encoder, (f, method.target[0]) if isinstance(method, BYOL) else (f,))


class _Parts:
    """What the constructors below are fed with: networks are made when they are asked for."""

    def __init__(
        self,
        f: nn.Module,
        shape: tuple[int, int, int],
        classes: int,
        s: Mapping[str, Any],
        threat: Threat,
        augment: Augmentation,
        attack: PGD,
    ) -> None:
        self.f, self.shape, self.classes, self.s = f, shape, classes, s
        self.threat, self.augment, self.attack, self.dim = threat, augment, attack, int(f.dim)  # type: ignore[arg-type]

    @property
    def head(self) -> nn.Module:
        return nn.Linear(self.dim, self.classes)

    @property
    def decoder(self) -> nn.Module:
        return ConvDecoder(self.shape, self.dim, widths=self.s["decoder_widths"])

    @property
    def projector(self) -> nn.Module:
        return Projector(self.dim, self.s["hidden"], self.s["projection"])

    @property
    def norm_mlps(self) -> tuple[nn.Module, nn.Module]:
        hidden, out = self.s["hidden_byol"], self.s["projection"]
        return NormMLP(self.dim, hidden, out), NormMLP(out, hidden, out)

    @property
    def critic(self) -> nn.Module:
        widths = self.s["critic_widths"]
        return Critic(self.shape, self.dim, widths=widths, units=self.s["units"], whole=True)

    @property
    def information_attack(self) -> PGD:  # as the released code: from the image itself, best iterate
        return PGD(self.attack.steps, random_start=False, keep="best")


_METHODS: dict[str, Callable[[_Parts], nn.Module]] = {
    "supervised": lambda p: Supervised(p.f, p.head),
    "at": lambda p: AdversarialTraining(p.f, p.head, p.attack, p.threat),
    "trades": lambda p: TRADES(p.f, p.head, p.attack, p.threat, p.s["beta_trades"]),
    "vae": lambda p: GaussianVAE(p.f, p.decoder, p.s["variance"]),
    "ae_trades": lambda p: AETRADES(p.f, p.decoder, p.attack, p.threat, p.s["beta_ae_trades"]),
    "vae_urkle": lambda p: VAEUrkle(p.f, p.decoder, p.attack, p.threat, p.s["beta_vae_urkle"]),
    "smooth_encoder": lambda p: SmoothEncoder(p.f, p.decoder, p.attack, p.threat, p.s["gamma"], p.s["variance"]),
    "simclr": lambda p: SimCLR(p.f, p.projector, p.augment, temperature=p.s["temperature"]),
    "rocl": lambda p: RoCL(p.f, p.projector, p.augment, p.attack, p.threat, temperature=p.s["temperature"]),
    "simclr_urkle": lambda p: SimCLRUrkle(
        p.f,
        p.projector,
        p.augment,
        p.attack,
        p.threat,
        beta_robust=p.s["beta_simclr_urkle"],
        temperature=p.s["temperature"],
    ),
    "byol": lambda p: BYOL(p.f, *p.norm_mlps, p.augment, base_rate=p.s["base_rate"]),
    "byorl": lambda p: BYORL(p.f, *p.norm_mlps, p.augment, p.attack, p.threat, base_rate=p.s["base_rate"]),
    "infomax": lambda p: InfoMax(p.f, p.critic, "js"),
    "worst_case_infomax": lambda p: WorstCaseInfoMax(p.f, p.critic, p.information_attack, p.threat, "js"),
}
