"""Training methods: one module each, whose ``forward`` is the whole training step.

``method(x, y, ids, seed)`` gives a dict of named scalar loss terms, weights included; training minimises their sum.
Images come in [0, 1], labels are ignored by methods that need none, and all randomness comes from (seed, id).
"""

from __future__ import annotations

from robrep.methods.autoencoders import AETRADES, VAE, GaussianVAE, SmoothEncoder, VAEUrkle
from robrep.methods.byol import BYOL, BYORL, ema_rate
from robrep.methods.contrastive import RoCL, SimCLR, SimCLRUrkle
from robrep.methods.cropd import (
    AdversarialReconstruction,
    CRoPD,
    MaskedPretraining,
    MixedHead,
    Reconstruction,
    VariationalReconstruction,
    pixel_error,
)
from robrep.methods.information import InfoMax, WorstCaseInfoMax, information_attack
from robrep.methods.supervised import TRADES, AdversarialTraining, Augmented, Supervised, Terms

__all__ = [
    "AETRADES",
    "AdversarialReconstruction",
    "BYOL",
    "BYORL",
    "TRADES",
    "VAE",
    "AdversarialTraining",
    "Augmented",
    "CRoPD",
    "GaussianVAE",
    "InfoMax",
    "MaskedPretraining",
    "MixedHead",
    "RoCL",
    "SimCLR",
    "SimCLRUrkle",
    "SmoothEncoder",
    "Supervised",
    "Terms",
    "VAEUrkle",
    "Reconstruction",
    "VariationalReconstruction",
    "WorstCaseInfoMax",
    "ema_rate",
    "information_attack",
    "pixel_error",
]
