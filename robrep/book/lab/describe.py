"""A network as a list of layers that the browser can compute, read off its torch modules.

Each layer is a JSON object: ``op``, which ``layers.js`` knows by this name, its numbers, and the names of its tensors
as the weights file has them. What the browser cannot compute is refused here, by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robrep.encoders import ConvEncoder, FlatConvEncoder, InfoMaxEncoder, MaskedAutoEncoder, MeanCode, MLPEncoder
from robrep.encoders.small import PooledConv
from robrep.foundation import FrozenFoundation

Layer = dict[str, Any]
IDENTITIES = (nn.Identity, nn.Dropout)  # in evaluation mode


def layers(module: nn.Module, name: str) -> list[Layer]:
    """The layers of ``module`` in evaluation mode, one image at a time.

    Args:
        module: a network whose forward pass is a chain of the layers that the lab knows.
        name: the module's name in the weights file, for example "encoder".

    Raises:
        ValueError: a layer that the lab does not know.
    """
    if isinstance(module, IDENTITIES):
        return []
    if isinstance(module, PooledConv):
        return [{"op": "pooledConv", **_named(module, name, "weight", "bias")}]
    if isinstance(module, nn.Conv2d | nn.Conv1d):
        return [_convolution(module, name)]
    if isinstance(module, nn.Linear):
        return [{"op": "linear", **_named(module, name, "weight", "bias")}]
    if isinstance(module, nn.ReLU):
        return [{"op": "relu"}]
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return [{"op": "gelu"}]
    if isinstance(module, nn.Flatten):
        return [{"op": "flatten"}]
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        tensors = _named(module, name, "weight", "bias", "running_mean", "running_var")
        axis = "first" if isinstance(module, nn.BatchNorm2d) else "last"
        return [{"op": "batchNorm", **tensors, "eps": module.eps, "channels": axis}]
    if isinstance(module, nn.LayerNorm):
        return [{"op": "layerNorm", **_named(module, name, "weight", "bias"), "eps": module.eps}]
    if type(module) in COMPOSED:
        return COMPOSED[type(module)](module, name)
    if isinstance(module, nn.Sequential):
        return [layer for key, child in module.named_children() for layer in layers(child, f"{name}.{key}")]
    raise ValueError(f"{name} is a {type(module).__name__}, expected layers that the lab can compute in the browser")


def gaussian(module: nn.Module) -> Layer | None:
    """How an encoder makes a Gaussian of its last layer's output, mean first: None if its code is a point."""
    if isinstance(module, MeanCode):
        return gaussian(module.encoder)
    if isinstance(module, ConvEncoder) and module.gaussian:
        return {"scale": "softplus", "min": module.min_scale}
    if isinstance(module, FlatConvEncoder | MLPEncoder):
        return {"scale": "logVariance", "limit": 12.0}
    return None


def _named(module: nn.Module, name: str, *tensors: str) -> Layer:
    """The names of a module's tensors in the file; null for those it lacks (a bias)."""
    return {t: f"{name}.{t}" if getattr(module, t) is not None else None for t in tensors}


def _convolution(conv: nn.Conv2d | nn.Conv1d, name: str) -> Layer:
    if conv.groups != 1 or set(conv.dilation) != {1} or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ValueError(f"{name} is {conv}, expected a convolution without groups and dilation, padded with zeros")
    pair = (lambda v, fill: [fill, *v]) if isinstance(conv, nn.Conv1d) else (lambda v, fill: list(v))
    tensors = _named(conv, name, "weight", "bias")
    return {"op": "conv2d", **tensors, "stride": pair(conv.stride, 1), "padding": pair(conv.padding, 0)}


def _chain(*parts: str) -> Any:
    """Layers of the named children, one after the other."""
    return lambda module, name: [layer for p in parts for layer in layers(getattr(module, p), f"{name}.{p}")]


def _block(block: nn.Module, name: str, groups: int) -> list[Layer]:
    """A pre-norm transformer block of timm on ``groups`` sequences, one below the other."""
    part: Any = block
    attention = part.attn
    known = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()), part.ls1, part.ls2)
    if not all(isinstance(each, nn.Identity) for each in known) or getattr(attention, "gate", None) is not None:
        raise ValueError(f"{name} is {block}, expected a plain transformer block")
    attend = {"op": "attention", "heads": attention.num_heads, "groups": groups}
    first = layers(part.norm1, f"{name}.norm1") + layers(attention.qkv, f"{name}.attn.qkv") + [attend]
    second = [layer for key in ("fc1", "act", "fc2") for layer in layers(getattr(part.mlp, key), f"{name}.mlp.{key}")]
    return [
        {"op": "residual", "body": first + layers(attention.proj, f"{name}.attn.proj")},
        {"op": "residual", "body": layers(part.norm2, f"{name}.norm2") + second},
    ]


def _auto_encoder(m: MaskedAutoEncoder, name: str) -> list[Layer]:
    """Both halves of the image as two sequences, one below the other, and back to an image."""
    (rows, columns), side = m.grid, m.patch
    white, black, count = m.white.tolist(), m.black.tolist(), rows * columns
    if len(white) != len(black):
        raise ValueError(f"{name} has {count} patches, expected an even number")
    width, half = m.embed.out_channels, 1 + len(white)

    def filled(first_row: int, places: Tensor) -> list[int]:  # row of the half, or -1 where a mask token stands
        return [first_row + p if p < half else -1 for p in places.tolist()]

    def rearranged(shape: tuple[int, ...], change: Any) -> Layer:
        index = change(torch.arange(torch.Size(shape).numel()).view(shape))
        return {"op": "permute", "index": index.flatten().tolist(), "shape": list(index.shape)}

    def to_image(patches: Tensor) -> Tensor:
        grid = patches.view(rows, columns, m.channels, side, side).permute(2, 0, 3, 1, 4)
        return grid.reshape(m.channels, rows * side, columns * side)

    both = filled(0, m.white_places) + filled(half, m.black_places)
    blocks = [
        [layer for i, b in enumerate(part) for layer in _block(b, f"{name}.{key}.{i}", 2)]
        for key, part in (("encoder", m.encoder), ("decoder", m.decoder))
    ]
    return [
        *layers(m.embed, f"{name}.embed"),
        rearranged((width, count), lambda v: v.T),
        {"op": "add", "constant": f"{name}.position", "times": 1},
        {"op": "rows", "index": [-1, *white, -1, *black], "filler": f"{name}.cls_token"},
        *blocks[0],
        *layers(m.norm, f"{name}.norm"),
        {"op": "rows", "index": both, "filler": f"{name}.mask_token"},
        {"op": "add", "constant": f"{name}.decoder_position", "times": 2},
        *blocks[1],
        {"op": "meanRows", "pairs": [[i, i + 1 + count] for i in range(1, 1 + count)]},
        *layers(m.head, f"{name}.head"),
        rearranged((count, m.channels * side * side), to_image),
    ]


COMPOSED: dict[type, Any] = {
    ConvEncoder: _chain("features", "code"),
    FlatConvEncoder: _chain("net", "code"),
    MLPEncoder: _chain("net", "code"),
    InfoMaxEncoder: _chain("features", "code"),
    MeanCode: _chain("encoder"),
    MaskedAutoEncoder: _auto_encoder,
    FrozenFoundation: _chain("preprocessor", "foundation"),
}


def tensors(parts: list[Layer]) -> list[str]:
    """The names of all tensors that these layers need."""
    found: list[str] = []
    for layer in parts:
        found += [v for k, v in layer.items() if isinstance(v, str) and k not in ("op", "channels")]
        found += tensors(layer.get("body", []))
    return found
