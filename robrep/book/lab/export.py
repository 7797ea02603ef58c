"""Writes what the lab serves: a file for each recorded network, the digits, an index, a still picture, the scripts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copy2
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robrep import data
from robrep.book import comparison, results
from robrep.book.lab.describe import gaussian, layers, tensors
from robrep.encoders import (
    ConvEncoder,
    FlatConvEncoder,
    InfoMaxEncoder,
    InfoMaxHead,
    MaskedAutoEncoder,
    MeanCode,
    MLPHead,
)
from robrep.files import cache_root
from robrep.foundation import FrozenFoundation
from robrep.gaussians import Gaussian
from robrep.heads import encode

SCRIPTS = ("*.js", "*.css")
CHAPTERS = {
    "attacks": "Attacks",
    "judging_robustness": "Judging robustness",
    "vae_urkle": "VAE + Urkle",
    "smooth_encoders": "Smooth encoders",
    "simclr_urkle": "SimCLR + Urkle",
    "byorl": "BYORL",
    "worst_case_mi": "Worst-case mutual information",
    "cropd": "CRoPD",
    "comparison": "All methods under one protocol",
}
DATASETS = {
    "digits": "8 × 8 digits",
    "colour-digits": "8 × 8 colour digits",
    "mnist": "28 × 28 digits (MNIST)",
    "colour-mnist": "28 × 28 colour digits",
}
ROW_NAMES = {
    "standard": "Standard",
    "noisy": "Trained on noise",
    "se": "Smooth encoder",
    "worst_case": "Worst-case InfoMax",
    "identity": "FrozenFoundation encoder alone",
    "vanilla": "Plain auto-encoder + frozen encoder",
    "arae": "ARAE + frozen encoder",
    "uat_ft": "UAT-FT",
    "lora": "LoRA",
    "encoder_only": "Encoder only",
}
STILL = ("vae_urkle/demo-digits-standard-0", "vae_urkle/demo-digits-vae_urkle-0")  # on the still picture
PER_CLASS = {8: 20, 28: 10}  # images offered of each class, by their side


@dataclass(frozen=True)
class Offered:
    """A recorded network as the lab offers it.

    Attributes:
        run: its record.
        parts: the modules between image and code, by their names in the weights file, one after the other.
        head: the classifier's name in the file, and the classifier.
        samples: samples of the code that its probabilities are averaged over; 0 for the mean of the code.
    """

    run: results.Run
    parts: dict[str, nn.Module]
    head: tuple[str, nn.Module]
    samples: int = 0

    @property
    def id(self) -> str:
        """``<chapter>/<run>``, which names it in a link."""
        return f"{self.run.chapter}/{self.run.run}"

    @property
    def encoder(self) -> nn.Module:
        """Images (N, C, H, W) to codes: a ``Gaussian`` where there is one, also if its mean is what is classified."""
        last = list(self.parts.values())
        return nn.Sequential(*[p.encoder if isinstance(p, MeanCode) else p for p in last]).eval()

    @property
    def classes(self) -> int:
        """Number of classes of its head."""
        return [m.out_features for m in self.head[1].modules() if isinstance(m, nn.Linear)][-1]


Built = tuple[dict[str, nn.Module], tuple[str, nn.Module], int]


def _small(s: Mapping[str, Any], shape: tuple[int, int, int], gaussian: bool, samples: int) -> Built:
    extra = s.get("extra_convolutions", 0)
    widths, strides = (*s["widths"], *extra * s["widths"][-1:]), (*s["strides"], *extra * (1,))
    f = ConvEncoder(shape[0], s["dim"], gaussian=gaussian, widths=widths, strides=strides, groups=s.get("groups", 0))
    return {"encoder": f}, ("head", MLPHead(s["dim"])), samples


def _doubled(width: int, dim: int, channels: int, gaussian: bool, samples: int) -> Built:
    widths = (width, 2 * width, 2 * width)
    f = ConvEncoder(channels, dim, gaussian=gaussian, widths=widths, strides=(2, 2, 1), groups=0)
    return {"encoder": f}, ("head", nn.Linear(dim, 10)), samples


def _smooth(s: Mapping[str, Any], shape: tuple[int, int, int]) -> Built:
    f = FlatConvEncoder(shape, s["dim"], widths=s["channels"], strides=s["strides"])
    return {"encoder": f}, ("head_digit", nn.Linear(s["dim"], 10)), 0


def _infomax(s: Mapping[str, Any], shape: tuple[int, int, int]) -> Built:
    f = InfoMaxEncoder(shape, s["dim"], widths=s["widths"], hidden=s["hidden"])
    return {"encoder": f}, ("head_mlp_standard", InfoMaxHead(s["dim"])), 0


def _cropd(row: str, s: Mapping[str, Any], shape: tuple[int, int, int]) -> Built:
    f = ConvEncoder(shape[0], 64, gaussian=False, widths=s["foundation_widths"], strides=(2, 2, 1), groups=0)
    clean = {} if row == "identity" else {"autoencoder": MaskedAutoEncoder.named(s["autoencoder"], shape[1], shape[0])}
    return {**clean, "foundation": f}, ("head", nn.Linear(f.dim, 10)), 0


def _compared(row: str, s: Mapping[str, Any], shape: tuple[int, int, int]) -> Built:
    gaussian = comparison.ROWS[row].gaussian
    f = ConvEncoder(shape[0], s["dim"], gaussian=gaussian, widths=s["widths"], strides=s["strides"], groups=s["groups"])
    encoder: nn.Module = MeanCode(f) if gaussian else f
    if row == "cropd":
        cleaner = MaskedAutoEncoder.named(s["preprocessor"], shape[1], shape[0], pool=s["pool"])
        encoder = nn.Sequential(cleaner, FrozenFoundation(None, f))
    return {"encoder": encoder}, ("head", nn.Linear(s["dim"], 10)), 0


#: A chapter's networks from a record's row, settings and image shape, as its notebook makes them.
NETWORKS: dict[str, Callable[[str, Mapping[str, Any], tuple[int, int, int]], Built]] = {
    "attacks": lambda row, s, shape: _small(s, shape, False, 0),
    "judging_robustness": lambda row, s, shape: _small(s, shape, False, 0),
    "vae_urkle": lambda row, s, shape: _small(s, shape, row.startswith("vae"), 20 if row.startswith("vae") else 0),
    "smooth_encoders": lambda row, s, shape: _smooth(s, shape),
    "simclr_urkle": lambda row, s, shape: _doubled(
        s["width"], s["dim"], shape[0], row == "simclr_urkle", 20 if row == "simclr_urkle" else 0
    ),
    "byorl": lambda row, s, shape: _doubled(s["width"], 2 * s["width"], shape[0], False, 0),
    "worst_case_mi": lambda row, s, shape: _infomax(s, shape),
    "cropd": _cropd,
    "comparison": _compared,
}


def shape_of(dataset: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, without loading it."""
    side = 8 if dataset.endswith("digits") else 28
    return 3 if dataset.startswith("colour") else 1, side, side


def row_name(row: str) -> str:
    """What a row is called on the page."""
    return ROW_NAMES[row] if row in ROW_NAMES else comparison.ROWS[row].name if row in comparison.ROWS else row


def load(run: results.Run) -> Offered:
    """A recorded network with its weights, in evaluation mode.

    Raises:
        FileNotFoundError: the run kept no weights.
        ValueError: the weights are not those of the record, or do not fit the networks.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in run.settings.items()}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and overwritten
        parts, (name, head), samples = NETWORKS[run.chapter](run.row, settings, shape_of(run.dataset))
    results.load_weights(run, **parts, **{name: head})
    for module in (*parts.values(), head):
        module.eval().requires_grad_(False)
    return Offered(run, parts, (name, head), samples)


def runs(folder: Path | None = None) -> tuple[list[Offered], list[tuple[results.Run, str]]]:
    """The networks that the lab offers, and the main runs of seed 0 that it does not, each with the reason."""
    offered: list[Offered] = []
    left_out: list[tuple[results.Run, str]] = []
    known: dict[str, str] = {}  # the sum of a weights file to the network that has it: two chapters may train the same
    for chapter in CHAPTERS:
        for run in results.runs(chapter, variant="", seed=0, folder=folder):
            try:
                if run.dataset not in DATASETS:
                    raise ValueError("its images are larger than the lab's")
                made = load(run)
                if (first := known.setdefault(run.weights_sha256 or "", made.id)) != made.id:
                    raise ValueError(f"the same network as {first}")
                for name, module in (*made.parts.items(), made.head):
                    layers(module, name)
            except (FileNotFoundError, ValueError) as error:
                if run.dataset != "gaussians":  # runs without images have nothing to attack
                    left_out.append((run, "recorded without weights" if run.weights is None else str(error)))
            else:
                offered.append(made)
    return offered, left_out


def available(dataset: str) -> bool:
    """Whether a data set's images are on this machine: the site is built without downloading anything."""
    return dataset.endswith("digits") or (cache_root() / "mnist.npz").is_file()


@dataclass(frozen=True)
class Images:
    """What a reader may pick: image 10 r + c is the r-th of class c.

    Attributes:
        shown: uint8, (10 R, C, H, W).
        x, y: all test images that the maps are made from, float32 in [0, 1], and their labels.
        note: where they are from, if that is not the network's own test set.
        colours: what strokes are tinted with, by name, as shares of red, green and blue; empty for grey images.
    """

    shown: Tensor
    x: Tensor
    y: Tensor
    note: str = ""
    colours: dict[str, list[float]] = field(default_factory=dict)


def images(dataset: str) -> Images:
    """The test images of a data set, a seeded choice of each class; digits enlarged where MNIST is not at hand."""
    side, note = shape_of(dataset)[1], ""
    if available(dataset):
        found = data.load(dataset)
    else:
        small = data.load("digits" if dataset == "mnist" else "colour-digits")
        note = (
            "These are the 8 × 8 digits, enlarged: MNIST was not at hand when this site was built. The networks, which "
            "were trained on MNIST, recognise fewer of them."
        )
        found = small.resized(20)
    x, y = found.x_test, found.labels("test")
    assert isinstance(x, Tensor)
    index = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1000]
    x, y = x[index], y[index]
    margin = (side - x.shape[-1]) // 2
    x = nn.functional.pad(x, (margin,) * 4)
    colours = {}
    if tints := found.tasks.get("colour"):
        for k, name in enumerate(tints.classes):
            colours[name] = (found.x_test[tints.test == k].amax((0, 2, 3)) / 255).tolist()
    chosen = [(y == c).nonzero().flatten()[: PER_CLASS[side]] for c in range(10)]
    return Images(x[torch.stack(chosen, dim=1).flatten()], data.as_float(x), y, note, colours)


def fixed_map(encoder: nn.Module, pictures: Images) -> tuple[dict[str, Tensor], float]:
    """The plane on which codes are drawn, and the mean distance between the means of two classes.

    The plane goes through the mean of the classes' mean codes and spans the two directions in which these differ most.
    """

    def mean(x: Tensor) -> Tensor:
        code = encode(encoder, x)
        return code.mean if isinstance(code, Gaussian) else code

    z = mean(pictures.x)
    means = torch.stack([z[pictures.y == c].mean(0) for c in range(10)])
    centre = means.mean(0)
    axes = torch.linalg.svd(means - centre, full_matrices=False).Vh[:2]
    points = (mean(pictures.shown) - centre) @ axes.T
    found = {"map.axes": axes, "map.centre": centre, "map.means": means, "map.points": points}
    return {k: v.contiguous() for k, v in found.items()}, torch.pdist(means).mean().item()


def model_file(offered: Offered, pictures: Images) -> bytes:
    """One network as a safetensors file that describes itself: layers as metadata, the tensors they name, the map.

    The tensors are those of the record, in float16.
    """
    run, (head_name, head) = offered.run, offered.head
    encoder = [layer for name, part in offered.parts.items() for layer in layers(part, name)]
    classifier = layers(head, head_name)
    state = {f"{n}.{k}": v for n, m in (*offered.parts.items(), offered.head) for k, v in m.state_dict().items()}
    kept = {name: state[name].half().contiguous() for name in tensors(encoder + classifier)}
    plane, distance = fixed_map(offered.encoder, pictures)
    about = {
        "id": offered.id,
        "name": row_name(run.row),
        "chapter": CHAPTERS[run.chapter],
        "dataset": run.dataset,
        "shape": shape_of(run.dataset),
        "classes": offered.classes,
        "eps": run.settings["eps"],
        "samples": offered.samples,
        "encoder": encoder,
        "gaussian": gaussian(list(offered.parts.values())[-1]),
        "head": classifier,
        "distance": distance,
    }
    return save({**kept, **plane}, metadata={"model": json.dumps(about, separators=(",", ":"))})


def digits_file(pictures: Images) -> bytes:
    """The images that a reader may pick, as a safetensors file."""
    return save({"images": pictures.shown.contiguous()}, metadata={"note": pictures.note})


def files(folder: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Every data file of the lab, by its path below the lab's folder; the index last."""
    offered, left_out = runs(folder)
    needed = [name for name in DATASETS if any(each.run.dataset == name for each in offered)]
    sets = {name: images(name) for name in needed}
    index: dict[str, Any] = {"datasets": {}, "models": [], "leftOut": []}

    def entry(path: str, content: bytes) -> dict[str, Any]:
        return {"file": path, "bytes": len(content), "crc32": zlib.crc32(content)}

    for name, pictures in sets.items():
        path, content = f"digits/{name}.safetensors", digits_file(pictures)
        yield path, content
        facts = {
            "name": DATASETS[name],
            "shape": shape_of(name),
            "count": len(pictures.shown),
            "colours": pictures.colours,
        }
        index["datasets"][name] = facts | entry(path, content)
    for each in offered:
        path = f"models/{each.id.replace('/', '-')}.safetensors"
        content = model_file(each, sets[each.run.dataset])
        yield path, content
        about: dict[str, Any] = {"id": each.id, "name": row_name(each.run.row), "chapter": CHAPTERS[each.run.chapter]}
        about |= {"dataset": each.run.dataset, "eps": each.run.settings["eps"], "samples": each.samples}
        index["models"].append(about | entry(path, content))
    index["leftOut"] = [
        {
            "name": row_name(run.row),
            "chapter": CHAPTERS[run.chapter],
            "scale": run.scale,
            "dataset": run.dataset,
            "why": why,
        }
        for run, why in left_out
    ]
    pair = [each for name in STILL for each in offered if each.id == name]
    if len(pair) == len(STILL):
        from robrep.book.lab.still import picture

        yield "still.svg", picture(pair, sets["digits"], pair[0].run.settings["eps"]).encode()
    yield "index.json", json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode()


def write(target: Path, folder: Path | None = None) -> None:
    """Write the lab's scripts and data into ``target``.

    Args:
        target: the folder; made if missing.
        folder: the recorded runs; None for the live and the recorded ones.

    Raises:
        OSError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    for pattern in SCRIPTS:
        for path in sorted(Path(__file__).parent.glob(pattern)):
            copy2(path, target / path.name)
    for name, content in files(folder):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
