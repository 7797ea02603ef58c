"""Training methods: one module each, whose ``forward`` is the whole training step.

``method(x, y, ids, seed)`` gives a dict of named scalar loss terms, weights included; training minimises their sum.
Images come in [0, 1], labels are ignored by methods that need none, and all randomness comes from (seed, id).
"""

from __future__ import annotations

from robrep.methods.autoencoders import AETRADES, VAE, GaussianVAE, SmoothEncoder, VAEUrkle
from robrep.methods.byol import BYOL, BYORL, ema_rate, pseudo_labels
from robrep.methods.contrastive import RoCL, SimCLR, SimCLRUrkle
from robrep.methods.information import InfoMax, WorstCaseInfoMax, information_attack
from robrep.methods.supervised import TRADES, AdversarialTraining, Supervised, Terms

__all__ = [
    "AETRADES",
    "BYOL",
    "BYORL",
    "TRADES",
    "VAE",
    "AdversarialTraining",
    "GaussianVAE",
    "InfoMax",
    "RoCL",
    "SimCLR",
    "SimCLRUrkle",
    "SmoothEncoder",
    "Supervised",
    "Terms",
    "VAEUrkle",
    "WorstCaseInfoMax",
    "ema_rate",
    "information_attack",
    "pseudo_labels",
]
