"""The masked auto-encoder in two halves: every token at its own place, no chance in it, the paper's size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep.encoders import MAE_SETTINGS, Halves, LatentCode, MaskedAutoEncoder, Projector
from robrep.encoders.mae import checkerboard, places

SMALL: dict[str, Any] = {"patch": 2, "width": 24, "depth": 2, "decoder_depth": 1, "heads": 3, "pool": 2}


def make(image_size: Any = 8, channels: int = 1, **others: Any) -> MaskedAutoEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MaskedAutoEncoder(image_size, channels, **(SMALL | others)).double()


def images(n: int, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def see_through(model: MaskedAutoEncoder) -> MaskedAutoEncoder:
    """Blocks that change nothing, and a head in which no token sees another."""
    for block in [*model.encoder, *model.decoder]:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_(), layer.bias.zero_()
    tokens, _, kernel = model.head.weight.shape
    model.head.weight.copy_(torch.eye(tokens)[:, :, None].expand(-1, -1, kernel) / kernel)
    return model


def changed(model: MaskedAutoEncoder, patch: int, x: Tensor) -> Tensor:
    """Which patches of the output change when one patch of the input does: bool, (tokens,)."""
    rows, columns, side = *model.grid, model.patch
    row, column = divmod(patch, columns)
    other = x.clone()
    other[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side] += 0.3 * images(1, 1, side, side)
    moved = (model(other) - model(x)).abs().amax((0, 1))
    return moved.view(rows, side, columns, side).amax((1, 3)).flatten() > 1e-9


@pytest.mark.parametrize("size", [(8, 8), (6, 6), (4, 6), (2, 8)])
@torch.no_grad()
def test_tokens_land_on_their_own_places(size: tuple[int, int]) -> None:
    model, x = see_through(make(size, pool=1)), images(2, 1, *size)
    tokens = model.grid[0] * model.grid[1]
    assert torch.equal(torch.stack([changed(model, p, x) for p in range(tokens)]), torch.eye(tokens, dtype=torch.bool))


@torch.no_grad()
def test_the_first_halfs_order_for_the_second_misplaces_tokens() -> None:
    """The slip of the code this derives from; the test above sees it."""
    model, x = see_through(make()), images(2)
    model.black_places = model.white_places
    seen = torch.stack([changed(model, p, x) for p in range(16)])
    assert all(seen[p, p] for p in model.white.tolist())
    assert not any(seen[p, p] for p in model.black.tolist())


def test_a_checkerboard_and_its_inverse() -> None:
    white, black = checkerboard(2, 3)
    assert white.tolist() == [0, 2, 4] and black.tolist() == [1, 3, 5]
    for rows, columns in ((1, 2), (3, 3), (4, 4), (5, 2)):
        white, black = checkerboard(rows, columns)
        assert sorted([*white.tolist(), *black.tolist()]) == list(range(rows * columns))
        board = torch.zeros(rows, columns)
        board.view(-1)[black] = 1
        assert ((board[1:] + board[:-1]) == 1).all() and ((board[:, 1:] + board[:, :-1]) == 1).all()
        for own, hidden in ((white, black), (black, white)):
            sequence = torch.cat([torch.tensor([-1]), own, hidden])
            assert sequence[places(own, hidden)].tolist() == list(range(-1, rows * columns))


@torch.no_grad()
def slowly(model: MaskedAutoEncoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and latent vector of one image (C, H, W), patch by patch."""
    (rows, columns), side = model.grid, model.patch
    spots = [(r, c) for r in range(rows) for c in range(columns)]
    weight, bias = model.embed.weight.flatten(1), model.embed.bias
    embedded = {
        (r, c): weight @ x[:, r * side : (r + 1) * side, c * side : (c + 1) * side].flatten()
        + bias
        + model.position[0, i]
        for i, (r, c) in enumerate(spots)
    }
    decoded, tokens = torch.zeros(len(spots), len(bias), dtype=x.dtype), {}
    for colour in (0, 1):
        mine = [s for s in spots if sum(s) % 2 == colour]
        sequence = torch.stack([model.cls_token[0, 0], *(embedded[s] for s in mine)])[None]
        cls_token, *coded = model.norm(model.encoder(sequence))[0]
        tokens |= dict(zip(mine, coded, strict=True))
        whole = [cls_token, *(tokens[s] if s in mine else model.mask_token[0, 0] for s in spots)]
        decoded += model.decoder((torch.stack(whole) + model.decoder_position[0])[None])[0, 1:] / 2
    out, kernel, stride = torch.zeros_like(x), model.head.kernel_size[0], model.head.stride[0]
    for i, (r, c) in enumerate(spots):
        pixels = [
            (model.head.weight[i] * decoded[:, k * stride : k * stride + kernel]).sum() + model.head.bias[i]
            for k in range(x.shape[0] * side**2)
        ]
        patch = torch.stack(pixels).view(x.shape[0], side, side)
        out[:, r * side : (r + 1) * side, c * side : (c + 1) * side] = patch
    in_order = torch.stack([tokens[s] for s in spots])
    pooled = in_order.view(-1, model.pool, len(bias)).mean(1)  # groups x width, and the embedding runs first
    return out, pooled.T.flatten()


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 1), ((4, 6), 3), ((6, 6), 1)])
@torch.no_grad()
def test_a_model_is_what_one_writes_patch_by_patch(size: tuple[int, int], channels: int) -> None:
    pool = 3 if size == (6, 6) else 2
    model, x = make(size, channels, pool=pool), images(3, channels, *size)
    output, code = model(x), LatentCode(model)(x)
    assert output.shape == x.shape and code.shape == (3, model.dim)
    for i in range(3):
        expected, latent = slowly(model, x[i])
        torch.testing.assert_close(output[i], expected)
        torch.testing.assert_close(code[i], latent)


def test_no_chance() -> None:
    model, x = make(), images(5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = model.train()(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(model(x), first) and torch.equal(model.eval()(x), first)
    torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(5)]), first)
    assert torch.equal(make()(x), first)


def test_every_pixel_and_every_parameter_counts() -> None:
    model, x = make(), images(2).requires_grad_()
    halves = model.encode(x)
    assert isinstance(halves, Halves) and halves.first.shape == halves.second.shape == (2, 1 + 8, 24)
    for output in (model.decode(halves), model.latent(halves)):
        grad = torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0]
        assert (grad.abs() > 0).all()
    (model(x) ** 2).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_the_papers_size() -> None:
    """Appendix C: 1.8e7 parameters and 6.1 % of the foundation model's 303.3 million at low resolution."""
    with torch.device("meta"):
        low = MaskedAutoEncoder.named("low_resolution", 32)
        projector = Projector(low.dim, 2048, 128)
        high = MaskedAutoEncoder.named("high_resolution", 224)
    assert low.dim == 6144 and count(projector) == 12_847_232
    # the code this derives from counts 5,604,044: it has a second patch embedding and a linear head that nothing uses
    assert count(low) + count(low.embed) + (192 * 12 + 12) == 5_604_044
    total = count(low) + count(projector)
    assert round(total / 1e6, 2) == 18.45 and round(100 * total / 303.3e6, 1) == 6.1
    assert (low.head.kernel_size, low.head.stride, low.head.in_channels) == ((16,), (16,), 256)
    # 768 is no multiple of 588 = 3 x 14 x 14: the longest kernel that fits gives Table 12's 27.6 %, without a projector
    assert (high.head.kernel_size, high.head.stride) == ((181,), (1,))
    assert round(100 * count(high) / 303.3e6, 1) == 27.6


@pytest.mark.parametrize(("setting", "size", "most"), [("digits", 8, 100_000), ("cpu", 32, 1_000_000)])
def test_small_settings(setting: str, size: int, most: int) -> None:
    for channels in (1, 3):
        model, x = MaskedAutoEncoder.named(setting, size, channels), images(2, channels, size, size).float()
        assert model(x).shape == x.shape and count(model) < most
        assert LatentCode(model)(x).shape == (2, model.dim)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="setting is 'low', expected one of"):
        MaskedAutoEncoder.named("low", 32)
    with pytest.raises(ValueError, match="image_size is 9, expected a multiple of patch, 2"):
        make(9)
    with pytest.raises(ValueError, match="expected at least two patches"):
        make(2)
    with pytest.raises(ValueError, match="width is 25, expected a multiple of heads, 3"):
        make(8, width=25)
    with pytest.raises(ValueError, match="at least 48"):
        make(8, 3, patch=4)
    with pytest.raises(ValueError, match="pool is 5, expected a divisor of the 16 tokens"):
        make(8, pool=5)
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 6, 6\), expected \(N, 1, 8, 8\)"):
        make(8)(images(2, 1, 6, 6))
    assert set(MAE_SETTINGS) == {"digits", "cpu", "low_resolution", "high_resolution"}
