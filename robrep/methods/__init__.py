"""Training methods, one file for each paper: its regularizer, its training step and its baselines.

A method is a module whose ``forward`` is the whole training step.

``method(x, y, ids, seed)`` gives a dict of named scalar loss terms, weights included; training minimises their sum.
Images come in [0, 1], labels are ignored by methods that need none, and all randomness comes from (seed, id).
"""

from __future__ import annotations

from robrep.methods.byorl import BYOL, BYORL, ema_rate
from robrep.methods.cropd import (
    AdversarialReconstruction,
    CRoPD,
    MixedHead,
    Reconstruction,
    pixel_error,
)
from robrep.methods.simclr_urkle import RoCL, SimCLR, SimCLRUrkle
from robrep.methods.smooth_encoders import GaussianVAE, SmoothEncoder, selection_attack
from robrep.methods.supervised import TRADES, AdversarialTraining, Augmented, Supervised, Terms
from robrep.methods.vae_urkle import AETRADES, VAE, VAEUrkle, urkle
from robrep.methods.worst_case_mi import InfoMax, WorstCaseInfoMax, information_attack

__all__ = [
    "AETRADES", "AdversarialReconstruction", "BYOL", "BYORL", "TRADES", "VAE", "AdversarialTraining", "Augmented",
    "CRoPD", "GaussianVAE", "InfoMax", "MixedHead", "RoCL", "SimCLR",
    "SimCLRUrkle", "SmoothEncoder", "Supervised", "Terms", "VAEUrkle", "Reconstruction",
    "WorstCaseInfoMax", "ema_rate", "information_attack",
    "pixel_error", "selection_attack", "urkle",
]  # fmt: skip
