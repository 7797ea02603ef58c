"""Train our encoder and write weights.safetensors: python train.py [demo | lite | lite-cifar10]"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from submission import encoder

from robrep import data, encoders
from robrep.book.project import GAMES
from robrep.methods import VAE
from robrep.training import fit

game = GAMES[sys.argv[1] if len(sys.argv) > 1 else "demo"]
images = data.load(game.data)  # train on its training images, choose on its validation images
torch.manual_seed(0)
ours = encoder(images.shape)
decoder = encoders.ConvDecoder(images.shape, dim=32)
method = VAE(ours.gaussian_encoder, decoder)  # <- the week's work
fit(method, images.x_train, images.y_train, epochs=25, batch_size=64, lr=8e-3, seed=0, progress="VAE")
save_file(ours.state_dict(), Path(__file__).with_name("weights.safetensors"))
