"""What a method of the book costs, in a unit that no machine changes.

The unit is the *pass*: one image through the encoder, forward and back, for whatever purpose: training step, attack or
moving target. A forward without a backward is half a pass. Decoders, projectors and critics are not counted.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, autograd, nn

from robrep.checks import one_of, positive_int
from robrep.gaussians import Gaussian


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


#: Every row, references first in each group. The chapter's training compares these numbers with a :class:`Counter`'s.
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

#: The methods of the papers and two references, each with the four settings that are tried on validation images: two
#: learning rates and two values of one more setting, or four learning rates. The chapter's own are among them.
TRIED: dict[str, dict[str, tuple[float, ...]]] = {
    "supervised": {"lr_labels": (0.001, 0.002, 0.004, 0.008)},
    "at": {"lr_labels": (0.001, 0.002, 0.004, 0.008)},
    "vae_urkle": {"lr_pixels": (0.004, 0.008), "beta_vae_urkle": (0.1, 0.3)},
    "smooth_encoder": {"lr_smooth_encoder": (0.003, 0.006), "gamma": (30.0, 100.0)},
    "simclr_urkle": {"lr_views": (0.002, 0.004), "beta_simclr_urkle": (0.003, 0.01)},
    "byorl": {"lr_byorl": (0.002, 0.008), "base_rate": (0.95, 0.99)},
    "worst_case_infomax": {"lr_information": (0.003, 0.006), "units": (64, 256)},
    "cropd": {"lr_cropd": (0.0025, 0.005), "weight_cropd": (0.1, 1.0)},
}
TRIED_AT = 2  #: they are tried at this multiple of the budget
#: Multiples of the budget that the best of them then gets, and the number of training seeds there.
BUDGETS: dict[str, dict[int, int]] = {row: {1: 3, 3: 3} for row in TRIED} | {
    "byorl": {1: 3, 3: 3, 10: 3},
    "worst_case_infomax": {1: 3, 3: 3, 10: 1},
}


def settings_tried(row: str) -> list[dict[str, Any]]:
    """Every combination of what :data:`TRIED` names for a row."""
    lines = TRIED[one_of("row", row, TRIED)]
    return [dict(zip(lines, values, strict=True)) for values in itertools.product(*lines.values())]


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
            autograd.graph.register_multi_grad_hook(parts, partial(self._back, n), mode="any")

    def _back(self, n: int, grad: Tensor) -> None:
        self.backward += n
