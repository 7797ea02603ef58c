"""Foundation models: loaded from their own format, deterministic unless asked otherwise, and left untouched."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep import foundation
from robrep.attacks import PGD, Linf
from robrep.book import cropd
from robrep.book.cropd import load_cifar10_classifier, load_diffusion_vae, new_diffusion_vae, new_vit_mae, with_lora
from robrep.encoders import MaskedAutoEncoder
from robrep.evaluation import evaluate
from robrep.foundation import Chain, FrozenFoundation, Prepare, load_vit_mae
from robrep.heads import encode
from robrep.objectives import classifier_objective, draws_noise, predict
from robrep.random import fold

IDS = torch.tensor([3, 1, 8, 10])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Path:
    """A tiny model in the format, and with all the parts, of a pre-trained ViT-MAE on the hub."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_vit_mae(16, 3, patch=4, width=12, depth=2, decoder_width=12)
    folder = tmp_path_factory.mktemp("vit-mae")
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file() and not list(folder.glob("*.bin"))
    return folder


def images(n: int = 4, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def chain(saved: Path, samples: int = 1, **others: Any) -> Chain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        preprocessor = MaskedAutoEncoder(8, 3, width=24, depth=1, decoder_depth=1)
        preprocessor.add_module("statistics", nn.BatchNorm2d(3))  # something with buffers that training would move
        head = nn.Linear(12, 3)
    return Chain(FrozenFoundation(preprocessor, load_vit_mae(str(saved), local_only=True, **others)), head, samples)


def test_prepare_scales_and_normalises() -> None:
    x = images(2).double()
    up = nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (foundation.IMAGENET_MEAN, foundation.IMAGENET_STD))
    torch.testing.assert_close(Prepare(16)(x), (up - mean) / std)
    torch.testing.assert_close(Prepare(8)(x[:, :1]), (x[:, :1] - mean) / std)
    assert torch.equal(Prepare(8, 1)(x[:, :1]), 2 * x[:, :1] - 1)
    with pytest.raises(ValueError, match=r"x has shape \(2, 2, 8, 8\), expected \(N, 3, H, W\)"):
        Prepare(8)(x[:, :2])


@torch.no_grad()
def test_the_library_masks_in_evaluation_mode_and_this_does_not(saved: Path) -> None:
    from transformers import ViTMAEModel

    x, plain = images(), ViTMAEModel.from_pretrained(saved, local_files_only=True).eval()
    pixels = Prepare(16)(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        once, again = (plain(pixels).last_hidden_state for _ in range(2))
    assert once.shape == (4, 1 + 4, 12) and not torch.allclose(once, again)  # 4 of 16 patches, others each time
    model = load_vit_mae(str(saved), local_only=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    code = model(x)
    assert torch.equal(torch.get_rng_state(), state) and not model.random and not model.training
    torch.manual_seed(2)
    assert torch.equal(model(x), code) and torch.equal(model(x, ids=IDS, seed=5), code)
    torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(4)]), code)
    torch.testing.assert_close(encode(model, x, batch_size=3), code)


@pytest.mark.parametrize("token", ["cls", "mean"])
@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(saved: Path, token: Any) -> None:
    """Every patch, in order, through the library's layers by hand."""
    model, x = load_vit_mae(str(saved), token=token, local_only=True), images()
    vit = model.model
    tokens = vit.embeddings.patch_embeddings(Prepare(16)(x)) + vit.embeddings.position_embeddings[:, 1:]
    cls_token = (vit.embeddings.cls_token + vit.embeddings.position_embeddings[:, :1]).expand(4, -1, -1)
    hidden = torch.cat([cls_token, tokens], dim=1)
    layers = vit.layers if hasattr(vit, "layers") else vit.encoder.layer  # transformers 5, and before
    for layer in layers:
        hidden = layer(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    hidden = vit.layernorm(hidden)
    torch.testing.assert_close(model(x), hidden[:, 0] if token == "cls" else hidden[:, 1:].mean(1))


@torch.no_grad()
def test_masks_on_request_come_from_seed_and_id(saved: Path) -> None:
    model, x = load_vit_mae(str(saved), mask_ratio=0.75, local_only=True), images()
    torch.manual_seed(1)
    state, code = torch.get_rng_state(), model(x, ids=IDS, seed=5)
    assert torch.equal(torch.get_rng_state(), state) and model.random
    assert torch.equal(model(x, ids=IDS, seed=5), code)
    assert not torch.allclose(model(x, ids=IDS, seed=6), code) and not torch.allclose(
        model(x, ids=IDS + 1, seed=5), code
    )
    torch.testing.assert_close(model(x[1:2], ids=IDS[1:2], seed=5), code[1:2])
    visible = model.model(model.prepare(x), noise=torch.rand(4, 16)).last_hidden_state
    assert visible.shape[1] == 1 + 4
    with pytest.raises(ValueError, match="mask_ratio is 1, expected one in .* that leaves one of 16 patches"):
        load_vit_mae(str(saved), mask_ratio=1, local_only=True)
    with pytest.raises(ValueError, match="token is 'last'"):
        load_vit_mae(str(saved), token="last", local_only=True)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_chain_averages_probabilities_over_masks(saved: Path) -> None:
    model, x = chain(saved, samples=3, mask_ratio=0.5), images()
    assert draws_noise(model) and not draws_noise(chain(saved, samples=3))
    p = [model.head(model.encoder(x, ids=IDS, seed=fold(7, "sample", s))).softmax(1) for s in range(3)]
    torch.testing.assert_close(model(x, ids=IDS, seed=7).exp(), sum(p) / 3)
    assert not torch.allclose(p[0], p[1])


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_frozen_parts_are_untouched_and_gradients_reach_the_image(saved: Path, mask_ratio: float) -> None:
    model, x, y = chain(saved, 2, mask_ratio=mask_ratio), images().requires_grad_(), torch.tensor([0, 1, 2, 0])
    before = {name: t.clone() for name, t in model.encoder.state_dict().items()}
    model.train()
    assert model.training and not any(m.training for m in model.encoder.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x, ids=IDS, seed=step), y).backward()
        optimizer.step()
    assert x.grad is not None and (x.grad.flatten(1).abs().amax(1) > 0).all()
    if not mask_ratio:
        assert (x.grad.abs() > 0).float().mean() > 0.99  # every pixel, through the pre-processor and the up-scaling
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    after = model.encoder.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 12 * 3 + 3


def test_no_preprocessor_and_any_foundation(saved: Path) -> None:
    x, vit = images(), load_vit_mae(str(saved), local_only=True)
    assert torch.equal(FrozenFoundation(None, vit)(x), vit(x))
    other = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    assert torch.equal(FrozenFoundation(None, other)(x), other(x)) and not FrozenFoundation(None, other).random


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_a_chain_is_attacked_and_evaluated_end_to_end(saved: Path, mask_ratio: float) -> None:
    model, x, y = chain(saved, 2, mask_ratio=mask_ratio), images(), torch.tensor([0, 1, 2, 0])
    threat, objective = Linf(8 / 255), classifier_objective(model)
    x_adv = PGD(3)(objective, x, threat, y, ids=IDS, seed=1)
    assert threat.distance(x_adv, x).max() <= 8 / 255 + 1e-6
    options = {"ids": IDS, "seed": 4} if mask_ratio else {}
    with torch.no_grad():
        loss = [nn.functional.cross_entropy(model(v, **options), y) for v in (x, x_adv)]
    assert loss[1] > loss[0]
    with torch.no_grad():  # no class leads by its bias alone
        model.head.bias -= predict(model, x, seed=fold(0, "verdict"), ids=torch.arange(4)).mean(0)
    right = predict(model, x, seed=fold(0, "verdict"), ids=torch.arange(4)).argmax(1)
    result = evaluate(model, x, right, PGD(20), Linf(1.0))
    assert result.clean.value == 1 and result.robust.value < 1
    assert all(p.grad is None for p in model.parameters())


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    for name in ("nobody/no-such-model", str(tmp_path)):
        with pytest.raises(OSError, match="expected a folder with a ViT-MAE") as caught:
            load_vit_mae(name, local_only=True)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_new_models_say_what_does_not_fit() -> None:
    with pytest.raises(TypeError, match="model is a ViTMAEForPreTraining, expected a ViTMAEModel"):
        foundation.ViTMAE(new_vit_mae(8, 1, patch=2, width=12, depth=1, decoder_width=12))
    with pytest.raises(ValueError, match="image_size is 9, expected a multiple of patch, 2"):
        new_vit_mae(9, 1, patch=2)
    with pytest.raises(ValueError, match="width is 14, expected a multiple of 4 and of heads, 3"):
        new_vit_mae(8, 1, patch=2, width=14)


# --- optional extras ----------------------------------------------------------------------------------------------


def missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def refuse(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {package!r}", name=name)

    monkeypatch.setattr("importlib.import_module", refuse)


def test_a_missing_extra_says_how_to_get_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = load_vit_mae(str(saved), local_only=True)
    missing(monkeypatch, "peft")
    with pytest.raises(ImportError, match=r"peft cannot be imported .* pip install 'robrep\[lora\]'"):
        with_lora(vit)
    with pytest.raises(ImportError, match=r"diffusers cannot be imported .* pip install 'robrep\[vae\]'"):
        load_diffusion_vae()


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed (the extra 'lora')")
def test_lora(saved: Path) -> None:
    vit, x = load_vit_mae(str(saved), local_only=True), images()
    code, adapted = vit(x), with_lora(vit, rank=2)
    torch.testing.assert_close(adapted(x), code)  # adapters begin at zero
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained) and sum(p.numel() for p in trained.values()) == 192
    adapted(x).square().sum().backward()
    assert all(p.grad is not None for p in trained.values()) and torch.equal(vit(x), code)
    assert not any("lora_" in name for name, _ in vit.named_parameters())
    with pytest.raises(TypeError, match="vit is a Linear, expected a ViTMAE"):
        with_lora(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers is not installed (the extra 'vae')")
def test_diffusion_vae(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2
    ).save_pretrained(tmp_path)
    model, x = load_diffusion_vae(str(tmp_path), local_only=True), images(2, 3, 16).requires_grad_()
    out = model(x)
    assert out.shape == x.shape and torch.equal(model(x), out) and not model.training
    assert (torch.autograd.grad(out.sum(), x)[0] != 0).any()


@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers is not installed (the extra 'vae')")
@torch.no_grad()
def test_a_small_diffusion_vae_is_of_the_kind_that_is_loaded(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = new_diffusion_vae(1, (8, 16, 16)).eval()
    x = images(3, 1, 8)
    p = small.posterior(x)
    assert p.mean.shape == p.scale.shape == (3, 4, 2, 2) and (p.scale > 0).all()
    torch.testing.assert_close(small(x), small.decode(p.mean))
    small.model.save_pretrained(tmp_path)
    assert torch.equal(load_diffusion_vae(str(tmp_path), local_only=True)(x), small(x))
    with pytest.raises(ValueError, match="widths is .*, expected at least one width, each a multiple of 8"):
        new_diffusion_vae(1, (8, 12))


def test_the_classifier_by_others_says_what_their_own_code_says() -> None:
    module = pytest.importorskip("pyautoattack.examples.resnet")
    path = Path(module.__file__).with_name("model_test.pt")
    theirs = module.ResNet18()
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    encoder, head = load_cifar10_classifier()
    x = images(4, 3, 32)
    with torch.no_grad():
        assert torch.allclose(head(encoder(x)), theirs.eval()(x), atol=1e-4)
    assert encoder(x).shape == (4, encoder.dim) == (4, 512) and not encoder.training


def test_another_file_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cropd, "CIFAR10_CLASSIFIER", "0" * 64)
    with pytest.raises(ValueError, match="model_test.pt of pyautoattack has the hash [0-9a-f]{64}, expected 0{64}"):
        load_cifar10_classifier()
