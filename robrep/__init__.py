"""Adversarially robust representation learning: encoders, attacks and regularizers over PyTorch.

Everything in this package is one sentence: find the input inside the ball that moves the representation most, then
train so that it does not move. Import the module you need, for example ``from robrep import attacks, methods``.
"""

__version__ = "0.1.0"
