"""Our attack on the other teams' encoders."""

from torch import Tensor, nn

from robrep.attacks import PGD, Threat
from robrep.objectives import classifier_objective


def attack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    """Images in the ball around x that the model gets wrong.

    Args:
        model: another team's encoder with the judge's linear head (``model.encoder``, ``model.head``); it gives logits
            (N, 10), and PyTorch differentiates it.
        x: images in [0, 1], (N, C, H, W).
        y: their labels, (N,).
        threat: the ball. What leaves it is projected back; then pixels are rounded to multiples of 1/255.
        seed: of whatever you draw.
    """
    return PGD(10)(classifier_objective(model), x, threat, y, seed=seed)
