"""Imported by the process that is forked for each submission: what tracing an encoder loads is then loaded once."""

from __future__ import annotations

import torch
from torch import nn

from robrep.book.project.network import traced

torch.set_num_threads(1)  # a pool of threads would not survive the fork
traced(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), (1, 4, 4))
