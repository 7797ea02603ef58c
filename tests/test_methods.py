"""Methods: each loss term against a computation by hand, and gradients where they must flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robrep import methods
from robrep.attacks import PGD, Adversary, Linf
from robrep.encoders import ConvDecoder, ConvEncoder, MLPHead
from robrep.losses import cross_entropy, kl_categorical, squared_error
from robrep.methods import AETRADES, TRADES, VAE, AdversarialTraining, Augmented, Supervised, VAEUrkle
from robrep.random import fold, noise

ATTACK, THREAT = PGD(2), Linf(0.1)
ADVERSARY = Adversary(ATTACK, THREAT)
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y, IDS, SEED = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([3, 1, 8, 10, 0]), 11


def parts(gaussian: bool) -> tuple[nn.Module, nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ConvEncoder(1, 8, gaussian=gaussian, widths=(4, 4, 4), groups=2)
        return encoder.double(), ConvDecoder((1, 8, 8), 8, widths=(4, 4, 4)).double(), MLPHead(8, 3).double()


def make(name: str, **settings: Any) -> nn.Module:
    encoder, decoder, head = parts(name.startswith("VAE"))
    kind = getattr(methods, name)
    if name == "Supervised":
        return kind(encoder, head, **settings)
    if name == "VAE":
        return kind(encoder, decoder, **settings)
    return kind(encoder, head if name in ("AdversarialTraining", "TRADES") else decoder, ATTACK, THREAT, **settings)


ALL = {
    "Supervised": ["cross_entropy"],
    "AdversarialTraining": ["cross_entropy"],
    "TRADES": ["cross_entropy", "trades"],
    "AETRADES": ["reconstruction", "trades"],
    "VAE": ["reconstruction"],
    "VAEUrkle": ["reconstruction", "urkle"],
}


@pytest.mark.parametrize("name", ALL)
def test_terms_and_gradients(name: str) -> None:
    method = make(name)
    modes = [m.training for m in method.modules()]
    terms = method(X, Y, IDS, SEED)
    assert sorted(terms) == sorted(ALL[name])
    assert all(t.shape == () and t.isfinite() and t >= 0 for t in terms.values())
    assert [m.training for m in method.modules()] == modes
    sum(terms.values()).backward()
    for parameter, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), parameter
        # a bias in front of a batch norm shifts nothing
        if not parameter.startswith(("head.0.bias", "head.3.bias")):
            assert p.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ALL)
def test_the_same_call_gives_the_same_terms(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(name)(X, Y, IDS, SEED)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = make(name)(X, Y, IDS, SEED)
    assert all(torch.equal(first[k], again[k]) for k in first)
    if name != "Supervised":
        other = make(name)(X, Y, IDS, SEED + 1)
        assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_a_mean_over_the_batch(name: str) -> None:
    """Evaluated without batch norm's own statistics, the batch's terms are the mean of the images' own."""
    method = make(name).eval()
    whole = method(X, Y, IDS, SEED)
    rows = [method(X[i : i + 1], Y[i : i + 1], IDS[i : i + 1], SEED) for i in range(5)]
    for k in whole:
        torch.testing.assert_close(whole[k], torch.stack([r[k] for r in rows]).mean(), rtol=1e-7, atol=1e-9)


def test_supervised() -> None:
    method = make("Supervised").eval()
    logits = method.head(method.encoder(X))
    expected = nn.functional.cross_entropy(logits, Y)
    torch.testing.assert_close(method(X, Y, IDS, SEED)["cross_entropy"], expected)
    torch.testing.assert_close(method.classifier(X), logits)


def test_adversarial_training() -> None:
    method = make("AdversarialTraining").eval()
    worst = ADVERSARY.worst_case(lambda y, f: cross_entropy(f, y), method.classifier, X, Y, ids=IDS, seed=SEED)
    got = method(X, Y, IDS, SEED)["cross_entropy"]
    torch.testing.assert_close(got, worst.mean())
    assert got > nn.functional.cross_entropy(method.classifier(X), Y)


@pytest.mark.parametrize("beta", [0.5, 6.0])
def test_trades(beta: float) -> None:
    method = make("TRADES", beta=beta).eval()
    logits = method.classifier(X)
    worst = ADVERSARY.worst_case(kl_categorical, method.classifier, X, logits, ids=IDS, seed=SEED)
    terms = method(X, Y, IDS, SEED)
    torch.testing.assert_close(terms["cross_entropy"], nn.functional.cross_entropy(logits, Y))
    torch.testing.assert_close(terms["trades"], beta * worst.mean())


def test_trades_at_beta_zero_is_supervised() -> None:
    trades, plain = make("TRADES", beta=0.0).eval(), make("Supervised").eval()
    terms = trades(X, Y, IDS, SEED)
    assert terms["trades"] == 0
    assert torch.equal(terms["cross_entropy"], plain(X, Y, IDS, SEED)["cross_entropy"])
    sum(terms.values()).backward()
    plain(X, Y, IDS, SEED)["cross_entropy"].backward()
    for a, b in zip(trades.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_autoencoder_trades(beta: float) -> None:
    method = make("AETRADES", beta=beta)
    output = method.decoder(method.encoder(X))
    worst = ADVERSARY.worst_case(squared_error, method.autoencoder, X, output, ids=IDS, seed=SEED)
    terms = method(X, Y, IDS, SEED)
    torch.testing.assert_close(terms["reconstruction"], (output - X).square().sum((1, 2, 3)).mean())
    torch.testing.assert_close(terms["trades"], beta * worst.mean())


def reconstruction(method: nn.Module) -> Tensor:
    p = method.encoder(X)
    z = p.mean + p.scale * noise(fold(SEED, "z"), IDS, (8,))
    return (method.decoder(z) - X).square().sum((1, 2, 3)).mean()


@pytest.mark.parametrize("beta_vae", [0.0, 0.3])
def test_vae(beta_vae: float) -> None:
    method = make("VAE", beta_vae=beta_vae)
    terms = method(X, Y, IDS, SEED)
    torch.testing.assert_close(terms["reconstruction"], reconstruction(method))
    assert ("prior" in terms) == (beta_vae > 0)
    if beta_vae:
        m, s = method.encoder(X)
        expected = beta_vae * 0.5 * (m**2 + s**2 - 1 - (s**2).log()).sum(1).mean()
        torch.testing.assert_close(terms["prior"], expected)


@pytest.mark.parametrize("beta_vae", [0.0, 0.3])
@pytest.mark.parametrize("beta_robust", [0.0, 2.0])
def test_vae_urkle(beta_vae: float, beta_robust: float) -> None:
    method, plain = make("VAEUrkle", beta_robust=beta_robust, beta_vae=beta_vae), make("VAE", beta_vae=beta_vae)
    terms, expected = method(X, Y, IDS, SEED), plain(X, Y, IDS, SEED)
    assert all(torch.equal(terms[k], expected[k]) for k in expected)
    worst = methods.urkle(method.encoder, X, method.encoder(X), ADVERSARY, ids=IDS, seed=SEED)
    torch.testing.assert_close(terms["urkle"], beta_robust * worst.mean())
    assert (terms["urkle"] > 0) == (beta_robust > 0)
    if not beta_robust:
        sum(terms.values()).backward()
        sum(expected.values()).backward()
        for a, b in zip(method.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_the_regularizer_sees_the_encoder_alone() -> None:
    """The decoder is trained by the reconstruction only."""
    method = make("VAEUrkle")
    method(X, Y, IDS, SEED)["urkle"].backward()
    assert all(p.grad is None for p in method.decoder.parameters())
    assert all(p.grad is not None for p in method.encoder.parameters())


@pytest.mark.parametrize("kind", [VAE, VAEUrkle, AETRADES])
def test_labels_are_ignored_where_none_are_needed(kind: type) -> None:
    method = make(kind.__name__)
    one, other = method(X, Y, IDS, SEED), method(X, (Y + 1) % 3, IDS, SEED)
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("TRADES", "beta"),
        ("AETRADES", "beta"),
        ("VAE", "beta_vae"),
        ("VAEUrkle", "beta_robust"),
        ("VAEUrkle", "beta_vae"),
    ],
)
def test_weights_are_checked(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is -1.0, expected a finite number of at least 0"):
        make(name, **{setting: -1.0})
    with pytest.raises(TypeError, match=f"{setting} is '1'"):
        make(name, **{setting: "1"})


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("Supervised", "VAE")])
def test_images_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"x has values from .*expected finite values in \[0, 1\]"):
        make(name)(X + 1, Y, IDS, SEED)


def test_weights_move_from_one_method_to_another() -> None:
    """The networks are found under the same names, so a record of one row loads into the next."""
    assert make("Supervised").state_dict().keys() == make("TRADES").state_dict().keys()
    assert make("VAE").state_dict().keys() == make("VAEUrkle").state_dict().keys()
    assert isinstance(make("TRADES"), AdversarialTraining) and isinstance(make("TRADES"), Supervised)
    assert isinstance(make("TRADES"), TRADES)


def test_augmented_images_are_what_the_method_sees() -> None:
    seen: list[Any] = []

    def augment(x: Tensor, ids: Tensor, seed: int) -> Tensor:
        seen.append((ids, seed))
        return 1 - x

    method = make("Supervised")
    found, expected = Augmented(method, augment)(X, Y, IDS, SEED), method(1 - X, Y, IDS, SEED)
    assert torch.equal(found["cross_entropy"], expected["cross_entropy"])
    assert torch.equal(seen[0][0], IDS) and seen[0][1] not in (SEED, None)
