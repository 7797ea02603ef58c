"""Networks: shapes, precision, and the pooled convolution against what it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robrep.encoders import ConvDecoder, ConvEncoder, MLPHead, PooledConv
from robrep.gaussians import Gaussian

QUICK = settings(deadline=None, max_examples=40, database=None, derandomize=True)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def in_order(layer: PooledConv, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight, layer.bias, padding=1).mean((2, 3))


@QUICK
@given(n=st.integers(1, 3), c=st.integers(1, 4), k=st.integers(1, 4), h=st.integers(1, 6), w=st.integers(1, 6))
def test_pooled_convolution_is_convolution_then_mean(n: int, c: int, k: int, h: int, w: int) -> None:
    layer, x = PooledConv(c, k).double(), torch.randn(n, c, h, w, dtype=torch.float64, requires_grad=True)
    got, expected = layer(x), in_order(layer, x)
    assert got.shape == (n, k)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn(n, k, dtype=torch.float64)
    inputs = [x, layer.weight, layer.bias]
    one = torch.autograd.grad((got * probe).sum(), inputs)
    other = torch.autograd.grad((expected * probe).sum(), inputs)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_pooled_convolution_has_a_convolutions_parameters() -> None:
    """So weights move between the two, and the initialisation is that of a convolution."""
    torch.manual_seed(1)
    pooled = PooledConv(3, 5)
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert pooled.state_dict().keys() == conv.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(pooled.parameters(), conv.parameters(), strict=True))


def test_pooled_convolution_stays_in_float32_under_autocast() -> None:
    layer, x = PooledConv(8, 4), torch.randn(5, 8, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        inside, half = layer(x), layer(x.bfloat16())
    assert inside.dtype == half.dtype == torch.float32
    assert torch.equal(inside, layer(x))
    torch.testing.assert_close(inside, in_order(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 28, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoder_shapes(side: int, channels: int) -> None:
    x = torch.rand(3, channels, side, side + 1)
    p = ConvEncoder(channels, 6, widths=(8, 8, 16))(x)
    assert isinstance(p, Gaussian) and p.mean.shape == p.scale.shape == (3, 6)
    assert (p.scale > 0).all()
    z = ConvEncoder(channels, 6, gaussian=False, widths=(8, 8, 16))(x)
    assert isinstance(z, Tensor) and z.shape == (3, 6)


def test_encoder_by_hand() -> None:
    encoder, x = ConvEncoder(1, 4, widths=(8, 16, 24), strides=(2, 1, 1), groups=4).double(), torch.rand(2, 1, 9, 9)
    x = x.double()
    h = x
    for i, (stride, groups) in enumerate(((2, 4), (1, 4), (1, 4))):
        conv, norm = encoder.features[3 * i], encoder.features[3 * i + 2]
        h = nn.functional.conv2d(h, conv.weight, conv.bias, stride=stride, padding=1).relu()
        h = nn.functional.group_norm(h, groups, norm.weight, norm.bias)
    raw = in_order(encoder.code, h)
    p = encoder(x)
    torch.testing.assert_close(p.mean, raw[:, :4])
    torch.testing.assert_close(p.scale, torch.log1p(raw[:, 4:].exp()) + 1e-4)


def test_codes_take_any_sign_and_the_scale_has_a_floor() -> None:
    encoder = ConvEncoder(1, 8, widths=(8, 8, 8), min_scale=0.25)
    nn.init.constant_(encoder.code.bias, -200.0)
    p = encoder(torch.rand(4, 1, 8, 8))
    torch.testing.assert_close(p.scale, torch.full((4, 8), 0.25))
    assert (p.mean < 0).all()
    mean = ConvEncoder(1, 32, widths=(8, 8, 8))(torch.rand(20, 1, 8, 8)).mean
    assert (mean > 0).any() and (mean < 0).any()


def test_an_example_does_not_hang_on_its_batch() -> None:
    encoder = ConvEncoder(1, 4, widths=(8, 8, 8)).train()
    x = torch.rand(5, 1, 8, 8)
    for a, b in zip(encoder(x), encoder(x[2:3]), strict=True):
        torch.testing.assert_close(a[2:3], b)


def test_no_normalisation() -> None:
    kinds = {type(m) for m in ConvEncoder(1, 4, groups=0, widths=(5, 6, 7)).modules()}
    assert nn.GroupNorm not in kinds and nn.Conv2d in kinds


@pytest.mark.parametrize("gaussian", [True, False])
def test_output_is_float32_under_autocast(gaussian: bool) -> None:
    encoder, x = ConvEncoder(1, 4, gaussian=gaussian, widths=(8, 8, 8)), torch.rand(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        code = encoder(x)
        image = ConvDecoder((1, 8, 8), 4, widths=(8, 8, 8))(code.mean if isinstance(code, Gaussian) else code)
    assert {t.dtype for t in (code if isinstance(code, Gaussian) else [code])} == {torch.float32}
    assert image.dtype == torch.float32
    for t, u in zip(code if gaussian else [code], encoder(x) if gaussian else [encoder(x)], strict=True):
        torch.testing.assert_close(t, u, rtol=0.1, atol=0.05)


def test_float64_stays_float64() -> None:
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    p = ConvEncoder(1, 4, widths=(8, 8, 8)).double()(x)
    assert p.mean.dtype == p.scale.dtype == torch.float64
    assert ConvDecoder((1, 8, 8), 4, widths=(8, 8, 8)).double()(p.mean).dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (2, 4, 12)])
def test_decoder_shapes(shape: tuple[int, int, int]) -> None:
    assert ConvDecoder(shape, 5, widths=(8, 6, 4))(torch.randn(3, 5)).shape == (3, *shape)


@pytest.mark.parametrize("shape", [(1, 27, 28), (1, 28, 30), (3, 2, 4)])
def test_decoder_refuses(shape: tuple[int, int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"shape is \({shape[0]}, {shape[1]}, {shape[2]}\), expected .* multiples of 4"
    ):
        ConvDecoder(shape)


@pytest.mark.parametrize(("name", "value"), [("channels", 0), ("dim", 0), ("dim", -1)])
def test_encoder_refuses(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, expected at least 1"):
        ConvEncoder(**{name: value})


def test_decoder_is_not_bounded() -> None:
    decoder = ConvDecoder((1, 8, 8), 4, widths=(8, 8, 8))
    nn.init.constant_(decoder.net[-1].bias, -3.0)
    assert (decoder(torch.randn(2, 4)) < 0).any()


def test_number_of_parameters() -> None:
    """The network of the paper for MNIST: 1-64-128-128-256 channels, kernels 3 x 3, GroupNorm after the first three."""

    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k * k + b

    features = conv(1, 64) + conv(64, 128) + conv(128, 128) + 2 * (64 + 128 + 128)
    assert count(ConvEncoder()) == features + conv(128, 256)
    assert count(ConvEncoder(gaussian=False)) == features + conv(128, 128)
    assert count(ConvDecoder((1, 28, 28))) == conv(128, 128, 7) + conv(128, 64, 4) + conv(64, 32, 4) + conv(32, 1)
    linear = 128 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    assert count(MLPHead()) == linear + 2 * (64 + 32)


def test_initial_weights_keep_the_scale() -> None:
    """The mean square of a layer's output is twice that of its input, half of which a ReLU takes (He et al. 2015)."""
    networks = [ConvEncoder(1, 64, widths=(64, 128, 128), groups=0), ConvDecoder((1, 16, 16), 64)]
    kinds = []
    for layer in (m for network in networks for m in network.modules()):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        assert (layer.bias == 0).all()
        kinds.append(type(layer))
        side = 1 if isinstance(layer, nn.ConvTranspose2d) and layer.padding == (0, 0) else 12
        x = torch.randn(50 if side == 12 else 400, layer.in_channels, side, side).relu()
        y = nn.functional.conv2d(x, layer.weight, padding=1) if isinstance(layer, PooledConv) else layer(x)
        y = y[:, :, 2:-2, 2:-2] if side == 12 else y  # away from the padding
        few = layer.in_channels * layer.out_channels < 1000  # too few weights for their own mean to be sharp
        torch.testing.assert_close(y.square().mean(), 2 * x.square().mean(), rtol=0.5 if few else 0.15, atol=0)
    assert kinds == [nn.Conv2d] * 3 + [PooledConv] + [nn.ConvTranspose2d] * 4


def test_head() -> None:
    head, z = MLPHead(16, 7), torch.randn(9, 16)
    assert head(z).shape == (9, 7)
    kinds = [type(m) for m in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [m.out_features for m in head if isinstance(m, nn.Linear)] == [8, 4, 7]
