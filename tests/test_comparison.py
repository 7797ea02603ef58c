"""The rows of the comparison: each can be built and trained, and costs the passes that the table says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robrep import data
from robrep.attacks import Linf
from robrep.augmentations import digit_augmentation
from robrep.book.comparison import ROWS, Built, Counter, affordable_epochs, build, passes
from robrep.book.figures import method_dots, method_plane
from robrep.gaussians import Gaussian
from robrep.training import fit

SETTINGS = {
    "net": "conv",
    "widths": (4, 8, 8),
    "strides": (2, 2, 1),
    "groups": 0,
    "width": 4,
    "dim": 8,
    "start_scale": -3.0,
    "decoder_widths": (8, 8, 8),
    "hidden": 16,
    "hidden_byol": 16,
    "projection": 8,
    "critic_widths": (4,),
    "units": 8,
    "preprocessor": "digits",
    "pool": 8,
    "attack_steps": 2,
    "variance": 0.03,
    "gamma": 100.0,
    "beta_vae_urkle": 0.3,
    "beta_simclr_urkle": 0.01,
    "beta_trades": 6.0,
    "beta_ae_trades": 10.0,
    "weight_cropd": 1.0,
    "temperature": 0.2,
    "base_rate": 0.95,
}
SHAPE, X, Y = (3, 8, 8), data.load("colour-digits").x_train[:24], data.load("colour-digits").y_train[:24]


def made(row: str, seed: int = 0, **changes: object) -> Built:
    s = SETTINGS | changes
    foundation = build("simclr", seed, SHAPE, 10, s, Linf(0.1), digit_augmentation()).encoder
    given = (foundation,) if row == "cropd" else ()
    return build(row, seed, SHAPE, 10, s, Linf(0.1), digit_augmentation(), *given)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("row", ROWS)
def test_passes_are_those_that_hooks_count(row: str, steps: int) -> None:
    one = made(row, attack_steps=steps)
    with Counter(*one.counted) as counter:
        history = fit(one.method, X, Y, epochs=2, batch_size=12)
    assert counter.passes == 2 * 24 * passes(row, steps)
    assert all(torch.isfinite(torch.tensor(epoch["loss"])) for epoch in history)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_learns_and_gives_codes(row: str) -> None:
    one = made(row)
    before = [p.clone() for p in one.counted[0].parameters()]
    fit(one.method, X, Y, epochs=1, batch_size=12, lr=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, one.counted[0].parameters(), strict=True))
    codes = one.encoder.eval()(data.as_float(X[:5]))
    assert codes.shape == (5, 8) and codes.isfinite().all()


def test_rows_start_from_the_same_encoder_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    plain = [made(row).counted[0] for row, r in ROWS.items() if not r.gaussian and row != "cropd"]
    assert torch.equal(torch.get_rng_state(), state)
    first = plain[0].state_dict()
    for f in plain[1:]:
        assert all(torch.equal(v, first[k]) for k, v in f.state_dict().items())
    other = made("supervised", seed=1).counted[0].state_dict()
    assert not torch.equal(other["features.0.weight"], first["features.0.weight"])


def test_the_foundation_stays_as_it_is() -> None:
    one = made("cropd")
    frozen = one.encoder[1]  # type: ignore[index]
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    fit(one.method, X, Y, epochs=1, batch_size=12)
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


@pytest.mark.parametrize("gaussian", [False, True])
def test_counter(gaussian: bool) -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor | Gaussian:
            return Gaussian(2 * x, x.exp()) if gaussian else 2 * x

    f, x = Half(), torch.ones(5, 3, requires_grad=True)
    read = lambda code: (code.mean + code.scale if gaussian else code).sum()  # noqa: E731
    with Counter(f) as counter:
        with torch.no_grad():
            f(x)
        assert (counter.forward, counter.backward, counter.passes) == (5, 0, 2.5)
        torch.autograd.grad(read(f(x)), x)
        assert (counter.forward, counter.backward, counter.passes) == (10, 5, 7.5)
    torch.autograd.grad(read(f(x)), x)
    assert counter.passes == 7.5, "it counts inside its context alone"


def test_budget() -> None:
    assert passes("supervised", 3) == 1 and passes("simclr_urkle", 3) == 11 and passes("cropd", 7) == 3.5
    assert affordable_epochs("supervised", 3, 160) == 160
    assert affordable_epochs("simclr_urkle", 3, 160) == 15
    assert affordable_epochs("byorl", 40, 10) == 1
    for row in ROWS:
        if 2 * passes(row, 3) <= 160:
            assert abs(affordable_epochs(row, 3, 160) * passes(row, 3) / 160 - 1) <= passes(row, 3) / 320


def test_refusals() -> None:
    with pytest.raises(ValueError, match="row is 'vea'"):
        passes("vea", 3)
    with pytest.raises(ValueError, match="row is 'vea'"):
        made("vea")
    with pytest.raises(ValueError, match="foundation is None"):
        build("cropd", 0, SHAPE, 10, SETTINGS, Linf(0.1), digit_augmentation())
    with pytest.raises(ValueError, match="foundation is Identity"):
        build("at", 0, SHAPE, 10, SETTINGS, Linf(0.1), digit_augmentation(), nn.Identity())
    with pytest.raises(ValueError, match="net is 'vit'"):
        made("at", net="vit")


def test_residual_encoder() -> None:
    """The other encoder, for 32 x 32 images, with a plain and a Gaussian code."""
    for row in ("at", "simclr_urkle"):
        one = build(
            row, 0, (3, 32, 32), 10, SETTINGS | {"net": "resnet18", "dim": 32}, Linf(0.03), digit_augmentation()
        )
        assert one.encoder.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 32)


def test_method_dots() -> None:
    frames = {
        str(eps): {"clean": {"A": 0.9, "B": [0.8, 1.0]}, "robust": {"A": 0.5 - eps, "B": 0.2}} for eps in (0.0, 0.1)
    }
    fig = method_dots(frames, x_title="accuracy (%)", title="Two methods.", prefix="ε = ")
    assert len(fig.frames) == 2 and fig.frames[1].data[1].x == (40.0, 20.0)
    assert fig.data[0].error_x.array == (0.0, 10.0)
    assert "ε = 0.0" in fig.layout.meta["alt"] and "B: clean 90, robust 20" in fig.layout.meta["alt"]
    single = method_dots({"": {"moved": {"A": 2.0}}}, x_title="distance", title="One.", scale=1, log=True)
    assert not single.frames and single.layout.xaxis.type == "log"
    with pytest.raises(ValueError, match="other measures or methods"):
        method_dots({"0": {"clean": {"A": 1}}, "1": {"clean": {"B": 1}}}, x_title="", title="")


def test_method_plane() -> None:
    fig = method_plane(
        {"A": (1.0, [0.2, 0.4]), "B": (2.0, 0.5)}, {"one": ["A"], "two": ["B"]}, x_title="x", y_title="y", title="T."
    )
    assert [t.name for t in fig.data] == ["one", "two"] and fig.data[0].y[0] == pytest.approx(0.3)
    assert "A (one): 1, 0.3" in fig.layout.meta["alt"]
    with pytest.raises(ValueError, match="groups hold"):
        method_plane({"A": (1, 1)}, {"one": []}, x_title="", y_title="", title="")
