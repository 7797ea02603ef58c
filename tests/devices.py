"""Every method of the book, small, and two stand-ins for a GPU on a machine that has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kornia.enhance  # noqa: F401  (it makes tensors when it is imported, which a step would be blamed for)
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from robrep import methods as m
from robrep.attacks import APGD, FGSM, L2, PGD, Linf
from robrep.augmentations import Augment, digit_augmentation
from robrep.book.cropd import MaskedPretraining, new_vit_mae
from robrep.book.worst_case_mi import CriticOf, VectorCritic, WorstCaseCriticOf
from robrep.encoders import (
    ConvDecoder,
    ConvEncoder,
    Critic,
    InfoMaxEncoder,
    MaskedAutoEncoder,
    MLPHead,
    NormMLP,
    PreActResNet,
    Projector,
    ResNetEncoder,
)  # fmt: skip
from robrep.heads import AdversarialHead

PGD2, BALL = PGD(2), Linf(0.1)


def small(gaussian: bool = True, channels: int = 1) -> ConvEncoder:
    return ConvEncoder(channels, 4, gaussian=gaussian, widths=(4, 4, 4), groups=2)


def decoder() -> ConvDecoder:
    return ConvDecoder((1, 8, 8), 4, widths=(4, 4, 4))


def resnet(gaussian: bool = True, **options: Any) -> ResNetEncoder:
    return ResNetEncoder(18, width=4, gaussian=gaussian, **options)


def bootstrap(encoder: Any = None) -> tuple[nn.Module, ...]:
    encoder = encoder or PreActResNet((1,), base=8)
    return encoder, NormMLP(encoder.dim, 8, 6), NormMLP(6, 8, 6), Augment()


def infomax() -> tuple[nn.Module, nn.Module]:
    encoder = InfoMaxEncoder((1, 8, 8), 6)
    return encoder, Critic((1, 8, 8), 6)


def autoencoder() -> MaskedAutoEncoder:
    return MaskedAutoEncoder.named("digits", 8, 1)


#: name -> (a function that builds the method, channels of its 8 x 8 images)
METHODS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "supervised": (lambda: m.Supervised(small(False), MLPHead(4, 10)), 1),
    "augmented": (lambda: m.Augmented(m.Supervised(small(False), MLPHead(4, 10)), digit_augmentation(False)), 1),
    "at": (lambda: m.AdversarialTraining(resnet(False), nn.Linear(32, 10), PGD2, BALL), 3),
    "at, l2": (lambda: m.AdversarialTraining(small(False), MLPHead(4, 10), PGD(2), L2(0.5)), 1),
    "at, apgd": (lambda: m.AdversarialTraining(small(False), MLPHead(4, 10), APGD(3), BALL), 1),
    "trades": (lambda: m.TRADES(small(False), MLPHead(4, 10), PGD(2, restarts=2, keep="best"), BALL), 1),
    "ae_trades": (lambda: m.AETRADES(small(False), decoder(), PGD2, BALL), 1),
    "vae": (lambda: m.VAE(small(), decoder(), 0.1), 1),
    "vae_urkle": (lambda: m.VAEUrkle(small(), decoder(), PGD2, BALL, beta_vae=0.1), 1),
    "gaussian_vae": (lambda: m.GaussianVAE(small(), decoder()), 1),
    "smooth_encoder": (lambda: m.SmoothEncoder(small(), decoder(), PGD2, BALL, gamma=10.0), 1),
    "smooth_encoder, entropic": (lambda: m.SmoothEncoder(small(), decoder(), PGD2, BALL, distance="entropic"), 1),
    "simclr": (lambda: m.SimCLR(resnet(), Projector(32, 8, 6), Augment()), 3),
    "rocl": (lambda: m.RoCL(resnet(False, recompute=True), Projector(32, 8, 6), Augment(), PGD2, BALL), 3),
    "simclr_urkle": (lambda: m.SimCLRUrkle(resnet(), Projector(32, 8, 6), Augment(), PGD2, BALL), 3),
    "byol": (lambda: m.BYOL(*bootstrap()), 3),
    "byorl": (lambda: m.BYORL(*bootstrap(), PGD2, BALL), 3),
    "byorl, resnet, apgd": (lambda: m.BYORL(*bootstrap(PreActResNet((1, 1), base=8)), APGD(3), BALL), 3),
    "infomax": (lambda: m.InfoMax(*infomax()), 1),
    "worst_case_infomax": (lambda: m.WorstCaseInfoMax(*infomax(), PGD(2, random_start=False, keep="best"), BALL), 1),
    "critic": (lambda: CriticOf(VectorCritic(64, 6), torch.zeros(24, 6)), 1),
    "worst_case_critic": (lambda: WorstCaseCriticOf(*infomax(), PGD2, BALL, "nce"), 1),
    "vanilla": (lambda: m.Reconstruction(autoencoder(), digit_augmentation(False)), 1),
    "cropd": (lambda: m.CRoPD(autoencoder(), Projector(autoencoder().dim, 8, 6), FGSM(), BALL), 1),
    "arae": (lambda: m.AdversarialReconstruction(autoencoder(), Projector(autoencoder().dim, 8, 6), PGD2, BALL), 1),
    "mixed_head": (lambda: m.MixedHead(nn.Sequential(small(False), MLPHead(4, 10)), PGD2, BALL), 1),
    "masked_pretraining": (lambda: MaskedPretraining(new_vit_mae(8, 1, patch=2, width=12, decoder_width=12)), 1),
    "adversarial_head": (lambda: AdversarialHead(small(), MLPHead(4, 10), PGD2, BALL), 1),
}  # fmt: skip


class FromHost(TorchFunctionMode):
    """Refuses tensors made from Python's numbers, which a GPU would have to wait for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func in (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
        if made and not any(isinstance(a, Tensor) for a in (args[1:] if func is Tensor.new_tensor else args)):
            raise AssertionError(f"{func.__name__} copies from the host, and a GPU would wait")
        return func(*args, **(kwargs or {}))


class HostWaits(TorchDispatchMode):
    """Refuses, on any device, what makes the host wait for a GPU: reading a value, a copy from the host, a mask."""

    def __enter__(self) -> HostWaits:
        self.made = FromHost()
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, leaves = func.overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            raise AssertionError(f"{func} makes the host wait, or copies from it")
        if name in ("index", "index_put_", "index_put") and any(t.dtype == torch.bool for t in tree_flatten(args[1])[0]
                                                               if isinstance(t, Tensor)):  # fmt: skip
            raise AssertionError(f"{func} with a mask makes the host wait")
        devices = {t.device.type for t in tensors if t.ndim}
        if len(devices) > 1:
            raise AssertionError(f"{func} mixes devices: {devices}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A CUDA graph without CUDA: notes what is computed, on which memory, and computes it again when replayed.

    As with a graph, whatever Python decided while it was noted is baked in: numbers, branches, addresses. Unlike a
    graph, the operations also run when they are noted; :func:`tape` undoes that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal"):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **kwargs)
        self.calls.append((torch.is_grad_enabled(), func, args, kwargs, result))
        return result

    def replay(self) -> None:
        """Below autograd, as the calls were noted; some kernels are chosen by whether gradients are wanted."""
        for grad, func, args, kwargs, result in self.calls:
            with torch.set_grad_enabled(grad), torch._C._AutoDispatchBelowAutograd():
                again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


class Watched(TorchDispatchMode):
    """Changes nothing; but on a CPU some kernels in bf16 round differently when operations are watched at all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def tape(body: Callable[[], None], state: Callable[[], list[Tensor]]) -> Callable[[], None]:
    """Capture ``body`` on a tape and put ``state`` (all tensors that outlive a step) back as it was before."""
    before = [(t, t.detach().clone()) for t in state()]
    recorder = Tape()
    with FromHost(), recorder:
        body()
    with torch.no_grad():
        for t, value in before:
            t.copy_(value)
    return recorder.replay


def images(n: int, channels: int, device: str = "cpu") -> Tensor:
    if device == "meta":
        return torch.empty(n, channels, 8, 8, dtype=torch.uint8, device=device)
    return (255 * torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
