"""Models as people wrap them: ``evaluate`` gives the bare model's number, or refuses by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robrep.attacks import FGSM, L2, PGD, Linf
from robrep.book.smoothing import Smoothed, votes
from robrep.evaluation import Evaluation, accuracy, adversarial_images, evaluate
from robrep.gaussians import Gaussian
from robrep.heads import Classifier, device_of, encode, pseudo_labels
from robrep.objectives import draws_noise, predict, samplers, samples_of
from robrep.random import noise
from robrep.suites import ClassifierAttack

# sixteenths, which every dtype holds exactly
X = torch.randint(17, (24, 2, 4, 4), generator=torch.Generator().manual_seed(0)) / 16
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Rows(nn.Module):
    """A linear map without matrix products, so that an image's result is the same in any batch."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) - 0.5).unsqueeze(1) * self.w).sum(2)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = Rows(32, 4, 1)

    def forward(self, x: Tensor) -> Gaussian:
        mean = self.mean(x)
        return Gaussian(mean, torch.full_like(mean, 1.5))


class Own(nn.Module):
    """A reader's own model that draws noise: it takes ids and seed, as a Classifier does."""

    def __init__(self, samples: int = 3) -> None:
        super().__init__()
        self.net, self.samples = Rows(32, 3, 2), samples

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        ids = torch.arange(len(x)) if ids is None else ids
        z = self.net(x).unsqueeze(1) + 3 * noise(seed, ids, (self.samples, 3)).to(x)
        return z.float().log_softmax(2).logsumexp(1) - math.log(self.samples)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "deterministic": lambda: Rows(32, 3, 2),
    "classifier": lambda: Classifier(Encoder(), Rows(4, 3, 3), 3),
    "one sample": lambda: Classifier(Encoder(), Rows(4, 3, 3), 1),
    "classifier of a deterministic encoder": lambda: Classifier(nn.Sequential(Rows(32, 4, 1)), Rows(4, 3, 3)),
    "own": Own,
    "smoothed": lambda: Smoothed(Rows(32, 3, 2), 0.3, 3),
    "smoothed classifier": lambda: Smoothed(nn.Sequential(Classifier(Encoder(), Rows(4, 3, 3), 2)), 0.1, 2),
}
DETERMINISTIC = {"deterministic", "classifier of a deterministic encoder"}


class Around(nn.Module):
    """A module of one's own around a model."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.inner, self.call = model, call

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) if self.call is None else self.call(self.inner, x)


class Hiding(nn.Module):
    """Holds its model where no one finds it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.models = [model]

    def forward(self, x: Tensor) -> Tensor:
        return self.models[0](x)


class Passing(nn.Module):
    """Has a number of samples of its own, and passes ids and seed on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def samples(self) -> int:
        return samples_of(self.model)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, seed: int = 0) -> Tensor:
        return predict(self.model, x, ids=ids, seed=seed)


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


eagerly: Any = functools.partial(torch.compile, backend="eager")
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Sequential": lambda m: nn.Sequential(nn.Identity(), m),
    "Sequential in Sequential": lambda m: nn.Sequential(nn.Sequential(nn.Identity(), nn.Sequential(m)), nn.Identity()),
    "DataParallel": nn.DataParallel,
    "DataParallel of a Sequential": lambda m: nn.DataParallel(nn.Sequential(m)),
    "own module": Around,
    "passing on": Passing,
    "ModelOutput": lambda m: Around(m, lambda inner, x: SimpleNamespace(logits=inner(x))),
    "in training mode": lambda m: nn.Sequential(nn.Dropout(0.9), m).train(),
}
COMPILED: dict[str, Callable[[nn.Module], nn.Module]] = {  # slower
    "compiled": eagerly,
    "compiled Sequential": lambda m: eagerly(nn.Sequential(nn.Identity(), m)),
    "Sequential of a compiled one": lambda m: nn.Sequential(nn.Identity(), eagerly(m)),
    "compiled, deep inside": lambda m: Around(nn.Sequential(eagerly(nn.Sequential(nn.Identity(), m)))),
    "compiled in place": lambda m: compiled_in_place(nn.Sequential(nn.Identity(), m)),
}
# right for a deterministic model; of one that samples the noise could not follow its image
UNFOLLOWED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "halves": lambda m: Around(m, lambda inner, x: torch.cat([inner(part) for part in x.chunk(2)])),
    "one by one": lambda m: Around(m, lambda inner, x: torch.cat([inner(image[None]) for image in x])),
    "turned round": lambda m: Around(m, lambda inner, x: inner(x.flip(0)).flip(0)),
    "copies": lambda m: Around(m, lambda inner, x: inner(x.repeat(2, 1, 1, 1))[: len(x)]),
    "in a list": Hiding,
    "in a closure": lambda m: Around(nn.Identity(), lambda _, x: m(x)),
}
HIDDEN = {"in a list", "in a closure"}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: torch.stack([x, 1 - x], 1).flatten(0, 1)[::2],
    "inference": lambda x: torch.inference_mode()(lambda: x.clone())(),
}
ATTACKS = [ClassifierAttack("weak", FGSM()), ClassifierAttack("strong", PGD(4, keep="best"), "margin")]


def judged(model: nn.Module, x: Tensor, **options: Any) -> Evaluation:
    y = torch.arange(len(x)) % 3
    return evaluate(model, x, y, ATTACKS, Linf(0.03), seed=3, **options)


@functools.cache
def bare(kind: str, inputs: torch.dtype, weights: torch.dtype) -> Evaluation:
    return judged(MODELS[kind]().to(weights), X.to(inputs))


def agree(one: Evaluation, other: Evaluation) -> None:
    assert torch.equal(one.clean.correct, other.clean.correct)
    assert torch.equal(one.robust.correct, other.robust.correct)
    assert [(s.attacked, s.broken, s.robust.attack) for s in one.stages] == [
        (s.attacked, s.broken, s.robust.attack) for s in other.stages
    ]
    assert one.unconfirmed == other.unconfirmed == 0
    assert one.x_adv is not None and other.x_adv is not None and torch.equal(one.x_adv, other.x_adv)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(MODELS)),
    wrapper=st.sampled_from([*WRAPPERS, *UNFOLLOWED]),
    layout=st.sampled_from(list(LAYOUTS)),
    inputs=st.sampled_from(DTYPES),
    weights=st.sampled_from(DTYPES),
    batch_size=st.sampled_from([None, 24, 7]),
    inference=st.booleans(),
)
def test_the_bare_model_s_number_or_a_refusal(
    kind: str,
    wrapper: str,
    layout: str,
    inputs: torch.dtype,
    weights: torch.dtype,
    batch_size: int | None,
    inference: bool,
) -> None:
    if wrapper in HIDDEN:  # nobody can ask what is hidden for its dtype, or whether it samples
        weights = inputs = torch.float32
        kind = "classifier" if kind == "own" else kind
    model, x = MODELS[kind]().to(weights), LAYOUTS[layout](X.to(inputs))
    wrapped = (WRAPPERS | UNFOLLOWED)[wrapper](model)
    reference, refused = bare(kind, inputs, weights), wrapper in UNFOLLOWED and kind not in DETERMINISTIC
    with torch.inference_mode(inference):
        if refused:
            with pytest.raises(ValueError, match="draws noise"):
                judged(wrapped, x, batch_size=batch_size)
        else:
            agree(judged(wrapped, x, batch_size=batch_size), reference)


@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [(k, w) for k in MODELS for w in WRAPPERS]
    + [("one sample", w) for w in COMPILED]
    + [("own", "compiled Sequential"), ("own", "compiled in place")],
)
def test_every_wrapper(kind: str, wrapper: str) -> None:
    torch._dynamo.reset()
    reference = bare(kind, torch.float32, torch.float32)
    assert 0 < reference.robust.value < reference.clean.value < 1
    wrapped = (WRAPPERS | COMPILED)[wrapper](MODELS[kind]())
    state = [(m.training, sorted(vars(m)), len(m._forward_pre_hooks)) for m in wrapped.modules()]
    found = judged(wrapped, X)
    agree(found, reference)
    assert [(m.training, sorted(vars(m)), len(m._forward_pre_hooks)) for m in wrapped.modules()] == state
    assert torch.equal(accuracy(wrapped, X, torch.arange(24) % 3, seed=3, batch_size=5).correct, found.clean.correct)
    one, other = (
        adversarial_images(m, X, torch.arange(24) % 3, PGD(2), L2(0.3), seed=1) for m in (MODELS[kind](), wrapped)
    )
    assert torch.equal(one, other.cpu())


@pytest.mark.parametrize(
    ("kind", "wrapper"), [(k, w) for k in MODELS for w in UNFOLLOWED if k != "own" or w not in HIDDEN]
)
def test_what_is_refused(kind: str, wrapper: str) -> None:
    wrapped = UNFOLLOWED[wrapper](MODELS[kind]())
    if kind in DETERMINISTIC:
        return agree(judged(wrapped, X), bare(kind, torch.float32, torch.float32))
    with pytest.raises(ValueError, match="draws noise") as caught:
        judged(wrapped, X)
    assert "expected" in str(caught.value) and not any(m._forward_pre_hooks for m in wrapped.modules())


def test_a_second_call_draws_other_noise() -> None:
    """Two passes of the sampler in one of the model (an average over two views) do not share their noise."""
    model = MODELS["one sample"]()
    seen: list[int] = []
    model.encoder.register_forward_hook(lambda *_: seen.append(1))
    twice = Around(model, lambda inner, x: torch.stack([inner(x), inner(x)]))
    with pytest.raises(ValueError, match="model gives shape"):
        predict(twice, X, seed=1)
    different = Around(model, lambda inner, x: (inner(x) - inner(x)).abs() + x.new_tensor([0, 0, 0]))
    assert predict(different, X, seed=1).max() > 0.01 and len(seen) == 4
    with torch.no_grad():
        torch.testing.assert_close(predict(different, X, seed=1), predict(different, X, seed=1))


def test_who_draws_noise() -> None:
    model = nn.Sequential(nn.Identity(), MODELS["classifier"]())
    assert draws_noise(model) and samplers(model) == {"1": model[1]} and samples_of(model) == 3
    assert not draws_noise(MODELS["deterministic"]()) and samples_of(nn.Identity()) == 0

    class Library(nn.Module):  # a number called samples, and no ids or seed
        samples = 100

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert not draws_noise(Library()) and not draws_noise(nn.Sequential(Library()))
    undecided = Classifier(nn.Sequential(Rows(32, 4, 1)), Rows(4, 3, 3))
    assert undecided.samples == 20
    undecided(X)
    assert undecided.samples == 0 and not draws_noise(undecided)
    found = judged(Classifier(nn.Sequential(Rows(32, 4, 1)), Rows(4, 3, 3)), X)
    assert "samples" not in found.robust.attack


def test_noise_from_the_global_state_is_refused() -> None:
    jittered = Around(Rows(32, 3, 2), lambda inner, x: inner(x + 0.1 * torch.randn_like(x)))
    with pytest.raises(ValueError, match="model draws noise from the global random state, .* expected noise from ids"):
        judged(jittered, X)
    harmless = Around(Rows(32, 3, 2), lambda inner, x: inner(x) + 0 * torch.rand(1))
    agree(judged(harmless, X), bare("deterministic", torch.float32, torch.float32))


def test_other_functions_hand_noise_down_too() -> None:
    model, y = MODELS["one sample"](), torch.arange(24) % 3
    wrapped = nn.Sequential(nn.Identity(), MODELS["one sample"]())
    labels = [pseudo_labels(wrapped, X, y, y[:0], batch_size=size) for size in (24, 5)]
    assert torch.equal(*labels) and torch.equal(labels[0], predict(model, X).argmax(1))
    assert torch.equal(encode(wrapped, X, 7), encode(model, X, 24))  # type: ignore[arg-type]
    assert torch.equal(votes(wrapped, X, 0.1, 20), votes(model, X, 0.1, 20))
    assert torch.equal(votes(wrapped, X, 0.1, 20, batch_size=150), votes(model, X, 0.1, 20))


# --- what comes out, and where it is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: (z, None), "model gives a tuple, expected logits: a floating-point tensor of shape"),
        (lambda z: [z], "model gives a list"),
        (lambda z: {"logits": z}, "model gives a dict"),
        (lambda z: z.detach().numpy(), "model gives a ndarray"),
        (lambda z: SimpleNamespace(logits=None), "model gives a SimpleNamespace"),
        (lambda z: z[:, 0], r"model gives shape \(24,\), .*a single logit z of class 1 stands for the two logits"),
        (lambda z: z[:, :1], r"model gives shape \(24, 1\), .*a single logit z"),
        (lambda z: z[..., None, None], r"model gives shape \(24, 3, 1, 1\)"),
        (lambda z: z[1:], r"model gives shape \(23, 3\), expected .* shape \(24, C\)"),
        (lambda z: z.argmax(1), r"model gives torch.int64 of shape \(24,\)"),
        (lambda z: z.mean(), r"model gives shape \(\)"),
    ],
)
def test_what_comes_out_is_looked_at_before_any_attack(change: Any, message: str) -> None:
    model, y, attacked = Around(Rows(32, 3, 2), lambda inner, x: change(inner(x))), torch.arange(24) % 2, []

    def attack(*_: Any, **__: Any) -> Tensor:
        attacked.append(1)
        return X

    for call in (
        lambda: accuracy(model, X, y),
        lambda: evaluate(model, X, y, attack, Linf(0.1)),
        lambda: votes(model, X, 0.1, 10),
        lambda: adversarial_images(model, X, y, PGD(1), Linf(0.1)),
    ):
        with pytest.raises((TypeError, ValueError), match=message.replace("24", r"\d+").replace("23", r"\d+")):
            call()
    assert not attacked


def test_functions_and_labels_are_refused_before_any_attack() -> None:
    y = torch.arange(24) % 3
    for call in (accuracy, lambda m, x, y: evaluate(m, x, y, PGD(1), Linf(0.1)), lambda m, x, y: votes(m, x, 0.1, 5)):
        with pytest.raises(TypeError, match="model is a function, expected an nn.Module that maps images"):
            call(lambda x: x.flatten(1), X, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"y has labels from 0 to 3, expected labels in 0 ... 2"):
        evaluate(Rows(32, 3, 2), X, torch.arange(24) % 4, PGD(1), Linf(0.1))
    with torch.inference_mode():
        made = Rows(32, 3, 2)
    with pytest.raises(ValueError, match=r"model has weights made inside torch.inference_mode\(\)"):
        judged(made, X)


def test_mixed_devices_are_named() -> None:
    model = Classifier(Rows(32, 4, 1), Rows(4, 3, 3).to("meta"))
    for call in (
        lambda: device_of(model),
        lambda: judged(model, X),
        lambda: votes(model, X, 0.1, 5),
        lambda: encode(model, X),
    ):
        with pytest.raises(ValueError, match="Classifier has encoder on cpu, head on meta, expected all of it on one"):
            call()
    norm = nn.BatchNorm2d(2)
    norm.running_mean = norm.running_mean.to("meta")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="BatchNorm2d has weight on cpu, .*running_mean on meta"):
        device_of(norm)


# --- the ball -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ball_is_judged_with_the_tolerance_of_the_dtype(ball: Any, dtype: torch.dtype) -> None:
    """An attack of the reader's that rounds x' to its dtype is right; one that goes further is not."""

    def attack(further: float) -> Any:
        def search(objective: Any, x: Tensor, threat: Any, *given: Any, **keywords: Any) -> Tensor:
            direction = threat.direction(torch.ones_like(x))
            return (x + (1 + further) * threat.eps * direction).clamp(0, 1).to(dtype)

        return search

    y = torch.arange(24) % 3
    assert evaluate(Rows(32, 3, 2), X, y, attack(0.0), ball).x_adv.dtype == torch.float32  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="x_adv leaves the l.* ball of radius .* by .*, expected an attack"):
        evaluate(Rows(32, 3, 2), X, y, attack(0.5), ball)


def test_what_an_attack_gives_is_looked_at() -> None:
    y = torch.arange(24) % 3
    for found, message in ((None, "a NoneType"), (X[:3], r"shape \(3, 2, 4, 4\)"), (X[:, :1], "shape")):
        with pytest.raises(ValueError, match=f"attack mine gives {message}.*, expected x' of the images' shape"):
            evaluate(Rows(32, 3, 2), X, y, ClassifierAttack("mine", lambda *_, **__: found), Linf(0.1))  # noqa: B023


def test_a_ball_of_another_kind_has_no_such_tolerance() -> None:
    class Pixels(Linf):
        """At most eps pixels may change."""

        def distance(self, a: Tensor, b: Tensor) -> Tensor:
            return (a != b).flatten(1).sum(1).to(a.dtype)

    y = torch.arange(24) % 3
    with pytest.raises(ValueError, match="x_adv leaves the l-inf ball of radius 2 by 30"):
        evaluate(Rows(32, 3, 2), X, y, lambda objective, x, *_, **__: 1 - x * 0.5, Pixels(2.0))


def test_logits_that_are_not_a_number_are_no_verdict() -> None:
    """argmax takes them for class 0."""
    broken = Around(Rows(32, 3, 2), lambda inner, x: inner(x) + torch.where(x[:, 0, :1, 0] > 0.9, torch.nan, 0.0))
    for call in (lambda: accuracy(broken, X, torch.zeros(24).long()), lambda: judged(broken, X)):
        with pytest.raises(FloatingPointError, match=r"model gives logits that are not a number for \d+ of 24 images"):
            call()
    later = Around(Rows(32, 3, 2), lambda inner, x: inner(x) + torch.where((x * 16 % 1).sum() > 0, torch.nan, 0.0))
    with pytest.raises(FloatingPointError, match="not a number for"):
        evaluate(later, X, torch.arange(24) % 3, lambda objective, x, *_, **__: (x + 0.01).clamp(0, 1), Linf(0.1))


@pytest.mark.parametrize("threat", [Linf(8 / 255), L2(0.5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_are_attacked_in_float32(threat: Any, dtype: torch.dtype) -> None:
    y = torch.arange(24) % 3
    narrow = evaluate(Rows(32, 3, 2), X.to(dtype), y, ATTACKS, threat)
    wide = evaluate(Rows(32, 3, 2), X, y, ATTACKS, threat)
    agree(narrow, wide)
    half = evaluate(Rows(32, 3, 2).to(dtype), X.to(dtype), y, ATTACKS, threat)
    assert half.x_adv is not None and half.x_adv.dtype == torch.float32
    assert adversarial_images(Rows(32, 3, 2).to(dtype), X.to(dtype), y, PGD(2), threat).dtype == torch.float32
    flat = Rows(32, 3, 2).to(dtype)
    nn.init.zeros_(flat.w)  # its gradient is exactly 0
    assert evaluate(flat, X.to(dtype), y * 0, PGD(2), threat).robust.value == 1
