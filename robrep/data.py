"""Named image data sets as uint8 tensors: one ``.npz`` each, a fixed validation split, small labelled subsets.

``load(name)`` gives a :class:`Dataset`. ``digits`` and ``colour-digits`` come with scikit-learn and need no download;
every other set is kept as ``<root>/<name>.npz`` (``x_train, y_train, x_test, y_test``; images uint8, N x C x H x W;
labels uint8) and is made from torchvision's checked download the first time. ``<root>`` is the argument, else
``$ROBREP_DATA``, else a per-user cache folder. ``image_folder`` puts a folder of image files, such as ImageNet, behind
the same attributes without ever holding it in memory.

Every choice is made on the validation split, which is cut out of the original training images by a fixed seed; test
images are the original's and never mix with the others. STL-10's 100,000 unlabelled images are not loaded.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import http.client
import operator
import os
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from robrep.checks import check_labels, one_of, positive_int
from robrep.files import atomic_write, cache_root, set_aside, user_cache

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "val", "test")
KEYS = ("x_train", "y_train", "x_test", "y_test")
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
HASHED_BYTES = 2 << 30  # up to this size a folder is known by its contents, above it by its files' sizes
T = TypeVar("T")
IMAGENETTE_SIZE = 128  # pixels; the '160px' originals vary in shape, so they are resized and cropped once, when written

_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_IMAGENETTE = (
    "tench", "English springer", "cassette player", "chain saw", "church",
    "French horn", "garbage truck", "gas pump", "golf ball", "parachute",
)  # fmt: skip
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
# Colour digits: one channel or two at full strength and the rest at 0.2, so two colours differ by 0.8 in some channel.
_COLOURS = {
    "red": (1.0, 0.2, 0.2), "green": (0.2, 1.0, 0.2), "blue": (0.2, 0.2, 1.0),
    "yellow": (1.0, 1.0, 0.2), "magenta": (1.0, 0.2, 1.0), "cyan": (0.2, 1.0, 1.0),
}  # fmt: skip


class _Original(NamedTuple):
    """What is known of a data set: torchvision's class, class names, C x H x W, images, and our validation images."""

    torchvision: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    train: int
    test: int
    val: int


_ORIGINALS = {
    "mnist": _Original("MNIST", _DIGITS, (1, 28, 28), 60_000, 10_000, 5_000),
    "fashion-mnist": _Original("FashionMNIST", _FASHION, (1, 28, 28), 60_000, 10_000, 5_000),
    "cifar10": _Original("CIFAR10", _CIFAR10, (3, 32, 32), 50_000, 10_000, 5_000),
    "cifar100": _Original("CIFAR100", tuple(_CIFAR100.split()), (3, 32, 32), 50_000, 10_000, 5_000),
    "svhn": _Original("SVHN", _DIGITS, (3, 32, 32), 73_257, 26_032, 5_000),
    "stl10": _Original("STL10", _STL10, (3, 96, 96), 5_000, 8_000, 500),
    "imagenette": _Original("Imagenette", _IMAGENETTE, (3, IMAGENETTE_SIZE, IMAGENETTE_SIZE), 9_469, 3_925, 500),
}
# SHA-256 of the first n images or labels of an original, by n. MNIST's training images are compared with their values
# of 1 read as 0, since a widespread copy has them so.
_KNOWN = {
    "mnist": {
        "x_train": {60_000: "ee6f6a0d560ca423", 1_000: "1da75b6e139fa48b"},
        "y_train": {60_000: "1feba77c54802fa5", 1_000: "b03ead2884240483"},
        "x_test": {10_000: "6d87418db22cc802", 1_000: "f8f3c5a608a9f7d4"},
        "y_test": {10_000: "ddeff807876a9661", 1_000: "d14ba0a1a3818ede"},
    },
    "cifar10": {
        "x_train": {50_000: "9d5c2eddadb0deff", 1_000: "29afc5d98b6b245b"},
        "y_train": {50_000: "2b7cd2f244873176", 1_000: "b8cafe516962919f"},
        "x_test": {1_000: "f167149948fc8fe0"},
        "y_test": {1_000: "636a087e604331a0"},
    },
}
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
NAMES = ("digits", "colour-digits", "colour-mnist", *_ORIGINALS)


class Labels(NamedTuple):
    """One set of labels of a data set: class names, and int64 class indices for each split."""

    classes: tuple[str, ...]
    train: Tensor
    val: Tensor
    test: Tensor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set: uint8 images N x C x H x W and int64 labels (N,) for train, validation and test.

    Attributes:
        name: as given to :func:`load`.
        classes: class names; label k is ``classes[k]``.
        x_train, x_val, x_test: uint8, N x C x H x W, 0 ... 255; a :class:`FolderImages` where images stay on disk.
        y_train, y_val, y_test: int64, (N,).
        note: what differs from the original data set, to be printed beside any number; "" if nothing does.
        tasks: the sets of labels, by name, where there is more than one (the colour sets: "digit", "colour").
    """

    name: str
    classes: tuple[str, ...]
    x_train: Tensor | FolderImages
    y_train: Tensor
    x_val: Tensor | FolderImages
    y_val: Tensor
    x_test: Tensor | FolderImages
    y_test: Tensor
    note: str = ""
    tasks: Mapping[str, Labels] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.x_train.shape
        return c, h, w

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits of a SHA-256 of all images and labels; images on disk give their own fingerprint.

        Raises:
            TypeError: the images are neither a tensor nor a container with a ``fingerprint``.
        """
        h = hashlib.sha256()
        for key in (f"{kind}_{split}" for split in SPLITS for kind in "xy"):
            value = getattr(self, key)
            if not isinstance(value, Tensor) and not hasattr(value, "fingerprint"):
                raise TypeError(f"{key} is a {type(value).__name__}, expected a tensor or an object with a fingerprint")
            h.update(f"{key}{tuple(value.shape)}".encode())
            h.update(value.contiguous().numpy().data if isinstance(value, Tensor) else str(value.fingerprint).encode())
        return h.hexdigest()[:12]

    def images(self, split: str, index: Tensor | slice = slice(None)) -> Tensor:
        """Images of ``split`` ("train", "val", "test"), float32 in [0, 1], N x C x H x W; ``index`` picks some.

        Raises:
            ValueError: unknown split.
        """
        return as_float(getattr(self, "x_" + one_of("split", split, SPLITS))[index])

    def labels(self, split: str, index: Tensor | slice = slice(None)) -> Tensor:
        """Labels of ``split`` ("train", "val", "test"), int64, (N,); ``index`` picks some.

        Raises:
            ValueError: unknown split.
        """
        labels: Tensor = getattr(self, "y_" + one_of("split", split, SPLITS))
        return labels[index]

    def subset(self, split: str, count: int, seed: int = 0) -> Tensor:
        """Indices of ``count`` random images of ``split``, sorted, int64, the same for the same seed.

        Raises:
            ValueError: unknown split, or ``count`` not in 1 ... its number of images.
        """
        return label_subset(self.labels(split), count, classes=self.classes, balanced=False, seed=seed)

    def resized(self, size: int) -> Dataset:
        """The same images at ``size`` x ``size`` pixels (bilinear, with antialiasing), for an encoder of that size.

        Raises:
            ValueError: ``size`` is not positive.
            TypeError: the images stay on disk.
        """
        from torchvision.transforms.v2 import functional as transforms

        positive_int("size", size)
        arrays = {f"x_{split}": getattr(self, f"x_{split}") for split in SPLITS}
        for name, x in arrays.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} is a {type(x).__name__}, expected a tensor of images to resize")
        note = f"{'; ' * bool(self.note)}resized to {size} x {size}" if self.shape[1:] != (size, size) else ""
        small = {name: transforms.resize(x, [size, size], antialias=True) for name, x in arrays.items()}
        return dataclasses.replace(self, note=self.note + note, **small)

    def task(self, name: str) -> Dataset:
        """The same images with another set of labels.

        Raises:
            ValueError: the data set has no such task.
        """
        if not self.tasks:
            raise ValueError(f"task is {name!r}, but {self.name} has one set of labels only")
        task = self.tasks[one_of("task", name, self.tasks)]
        return dataclasses.replace(self, classes=task.classes, y_train=task.train, y_val=task.val, y_test=task.test)

    def __repr__(self) -> str:
        sizes = f"{len(self.y_train)} train, {len(self.y_val)} validation, {len(self.y_test)} test"
        note = f"; {self.note}" if self.note else ""
        return f"Dataset({self.name}: {' x '.join(map(str, self.shape))}, {len(self.classes)} classes, {sizes}{note})"


def load(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name, downloading and converting it the first time.

    * ``digits``: 1,797 real handwritten digits bundled with scikit-learn, 1 x 8 x 8, values 0 ... 16 rescaled to
      0 ... 255; 1,097 train, 200 validation and 500 test images. The split is random, so writers are shared.
    * ``colour-digits``: the digits and their split, tinted: each image draws one of six colours with equal chance,
      independently of the digit, and pixel = grey value * colour, so that strokes are tinted and the background stays
      dark; 3 x 8 x 8. Tasks "digit" (the default) and "colour".
    * ``colour-mnist``: ``mnist`` tinted by the same recipe, 3 x 28 x 28, made from ``mnist.npz`` when asked for. The
      colours of each split are one seeded stream, so they are the same on every machine.
    * ``mnist``, ``fashion-mnist`` (1 x 28 x 28), ``cifar10``, ``cifar100`` (fine labels), ``svhn`` (without "extra";
      3 x 32 x 32): 5,000 validation images. ``stl10`` (3 x 96 x 96): 500, labelled images only.
    * ``imagenette``: the '160px' version, shorter side resized to 128 pixels, centre-cropped to 3 x 128 x 128; 500
      validation images; its folder ``val`` is the test split.

    Args:
        name: one of ``NAMES``.
        root: folder of the ``.npz`` files; default ``$ROBREP_DATA``, else a per-user cache folder. It may be read-only
            if the file is there.

    Raises:
        ValueError: unknown name, or a file that is corrupt or holds something else; one in the per-user cache is
            set aside with a warning and downloaded anew.
        ConnectionError: the download failed.
        OSError: the folder cannot be written or its disk is full.
    """
    one_of("name", name, NAMES)
    if name == "colour-mnist":
        return _tinted(name, load("mnist", root))
    if name not in _ORIGINALS:
        return _bundled(name)
    original, folder = _ORIGINALS[name], Path(root if root is not None else cache_root()).expanduser()
    path = folder / f"{name}.npz"
    if path.exists():
        try:
            arrays = _read(path, original)
        except ValueError as error:
            if root is not None or folder != user_cache():  # a folder of the user's own is left alone
                raise
            set_aside(path, error)
    if not path.exists():
        arrays = _download(name, original, folder, path)
    x, y, x_test, y_test = (arrays[key] for key in KEYS)
    changed, notes = _changed(name, arrays), []
    for split, have, all_of_them in (("train", len(x), original.train), ("test", len(x_test), original.test)):
        if have < all_of_them:
            known = min(_KNOWN.get(name, {}).get(f"x_{split}", {}), default=all_of_them)
            notes.append(f"{'first ' * (known <= have and not changed)}{have:,} of {all_of_them:,} {split} images")
    if name == "mnist" and len(x) == original.train and not (x == 1).any():  # the original has about 1 in 2,000
        notes.append("train pixels of value 1 read 0")
    if changed:
        notes = [f"{', '.join(changed)} not the original's", *notes]
        warnings.warn(f"{path} is not the original {name}: {', '.join(changed)} differ from it", stacklevel=2)
    train, val = (_tensors(x[index], y[index]) for index in _split(len(x), original.val))
    return Dataset(name, original.classes, *train, *val, *_tensors(x_test, y_test), note="; ".join(notes))


def as_float(x: Tensor) -> Tensor:
    """uint8 images 0 ... 255 as float32 in [0, 1], same shape.

    Raises:
        TypeError: ``x`` is not a uint8 tensor (an image that is divided twice is black).
    """
    if not isinstance(x, Tensor) or x.dtype != torch.uint8:
        came = f"has dtype {x.dtype}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise TypeError(f"x {came}, expected a torch.uint8 tensor of images in 0 ... 255")
    return x.to(torch.float32).div_(255)


def floats(x: Tensor) -> Tensor:
    """What a network is fed: uint8 images by :func:`as_float`, everything else as it is."""
    return as_float(x) if x.dtype == torch.uint8 else x


def label_subset(
    y: Tensor, count: int, *, classes: int | Sequence[str], balanced: bool = True, seed: int = 0
) -> Tensor:
    """Indices of ``count`` examples whose labels may be used, sorted, int64, (count,).

    With the same seed and ``y``, a smaller subset is contained in a larger one, so that accuracies at 10, 100 and all
    labels differ by added labels only.

    Args:
        y: int64 labels, (N,).
        count: how many, 1 ... N.
        classes: number of classes, or their names.
        balanced: equally many of each class (up to one, where ``count`` does not divide); otherwise drawn at random
            without looking at the labels, as in BYORL's 1 % of CIFAR-10.
        seed: at least 0.

    Raises:
        ValueError: ``count`` out of range, labels out of range, or a class with too few examples, by name.
    """
    names = list(classes if isinstance(classes, Sequence) else range(positive_int("classes", classes)))
    labels = check_labels(y, classes=len(names)).cpu().numpy()
    if positive_int("count", count) > len(labels):
        raise ValueError(f"count is {count}, but there are only {len(labels)} labels")
    order = _random(seed, 0).permutation(len(labels))
    if balanced:
        place = _random(seed, 1).permutation(len(names))  # which classes get one more where count does not divide
        need = count // len(names) + (place < count % len(names))
        have = np.bincount(labels, minlength=len(names))
        for k in np.flatnonzero(have < need):
            raise ValueError(f"class {names[k]!r} has {have[k]} examples, a balanced subset of {count} needs {need[k]}")
        rank = np.empty_like(order)  # rank of each example within its class, in the random order
        rank[np.argsort(labels[order], kind="stable")] = np.arange(len(order)) - np.repeat(np.cumsum(have) - have, have)
        order = order[np.lexsort((place[labels[order]], rank))]  # one of each class, then a second of each, ...
    return torch.from_numpy(np.sort(order[:count]))


class FolderImages:
    """Images of a folder, decoded when indexed: ``x[index]`` is a uint8 tensor N x 3 x size x size.

    Stands where a uint8 tensor would: it has ``shape``, ``dtype``, ``len`` and takes an integer, slice, list, or
    integer or boolean tensor as index. Files are decoded in threads; nothing is kept.

    Grey images give three equal channels, and 16-bit ones are scaled to 8 bits. The orientation that a camera wrote
    down (EXIF) is applied, a transparent image is composited on black, and CMYK is converted as Pillow does. Images
    whose range of values is unknown (32-bit integers and floats) and animations are refused, by the file's name.

    Args:
        root: the folder.
        files: paths of images, relative to ``root``.
        size: pixels of the square that is cropped from the centre.
        resize: pixels that the shorter side is resized to before; default ``size``.
    """

    dtype = torch.uint8

    def __init__(self, root: Path, files: Sequence[str], size: int, resize: int | None = None) -> None:
        self.root, self.files, self.size, self.resize = root, list(files), size, resize or size
        self.shape = (len(self.files), 3, size, size)
        self._all = torch.arange(len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Decode some images: uint8, N x 3 x size x size, or 3 x size x size for one integer.

        Raises:
            IndexError: out of range.
            OSError: a file is missing or is no readable image, by name.
        """
        chosen = self._all[index]
        out = torch.empty(chosen.numel(), *self.shape[1:], dtype=torch.uint8)
        with _threads() as pool:
            for row, image in zip(out, pool.map(self._decode, chosen.flatten().tolist()), strict=True):
                row.copy_(torch.from_numpy(image))
        return out.reshape(*chosen.shape, *self.shape[1:])

    def check(self) -> None:
        """Look at every file's header, so that a file which cannot be used is found before a training, not in it.

        Raises:
            OSError: a file is missing, is no image or is one that cannot be read, by name. A file that is cut short
                after its header is found when it is decoded.
        """
        with _threads() as pool:
            for _ in pool.map(lambda file: _opened(self.root / file, lambda image: None), self.files):
                pass

    def _decode(self, i: int) -> np.ndarray:
        return _opened(self.root / self.files[i], lambda image: _square(image, self.size, self.resize))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a SHA-256 of the crop and of all files' names and contents; caches are keyed on it.

        Of more than ``HASHED_BYTES`` of files, the sizes stand for the contents.
        """
        paths = [self.root / file for file in self.files]
        with _threads() as pool:
            sizes = list(pool.map(lambda path: path.stat().st_size, paths))
            content = map(str, sizes) if sum(sizes) > HASHED_BYTES else pool.map(_file_hash, paths)
            lines = [f"{self.size} {self.resize}", *map("\0".join, zip(self.files, content, strict=True))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def image_folder(
    root: str | os.PathLike[str],
    size: int = 224,
    *,
    resize: int | None = None,
    val: int = 10_000,
    test: str = "val",
    check: bool = True,
) -> Dataset:
    """A data set of image files, decoded when indexed: ImageNet at full scale.

    Expects ``<root>/train/<class>/<image>`` and ``<root>/<test>/<class>/<image>``. Classes are the folders' names,
    sorted; files without the suffix of an image and hidden files and folders are ignored. :class:`FolderImages` says
    how an image is read. The validation split is cut out of train, since papers report on ImageNet's own ``val``. Index
    before asking for floats: ``d.images("train")`` decodes everything.

    Args:
        root: the folder.
        size: images are centre-cropped to ``size`` x ``size`` pixels, RGB.
        resize: pixels of the shorter side before that, at least ``size``; default ``size`` (ImageNet usually 256).
        val: validation images, at most a sixth of the training images.
        test: name of the folder with the test images.
        check: look at every file's header now (see :meth:`FolderImages.check`): for ImageNet, some minutes.

    Raises:
        FileNotFoundError: a folder is missing, or has no classes, or a class has no images.
        ValueError: the two folders are one, or hold different classes, or one class only, or there are fewer than 6
            training images.
        OSError: a file that has the suffix of an image cannot be read as one, by name.
    """
    positive_int("size", size), positive_int("val", val)
    if resize is not None and positive_int("resize", resize) < size:
        raise ValueError(f"resize is {resize}, expected at least size, {size}")
    root = Path(root).expanduser()
    if test == "train":
        raise ValueError("test is 'train', expected another folder, whose images are not trained on")
    for part in ("train", test):
        if not (root / part).is_dir():
            raise FileNotFoundError(f"{root} has no folder {part!r}, expected {part}/<class>/<image>")
    train, held = _listed(root, "train"), _listed(root, test)
    if differ := sorted(set(train) ^ set(held)):
        raise ValueError(f"{root}: folders 'train' and {test!r} hold different classes, among them {differ[0]!r}")
    if len(train) == 1:
        raise ValueError(
            f"{root} has the class {next(iter(train))!r} only, expected at least two, since every classifier would be "
            "right (data.FolderImages reads images without labels)"
        )

    def cut(listed: Mapping[str, list[str]], index: np.ndarray | None = None) -> tuple[FolderImages, Tensor]:
        files = [file for some in listed.values() for file in some]
        y = torch.arange(len(listed)).repeat_interleave(torch.tensor([len(some) for some in listed.values()]))
        chosen = range(len(files)) if index is None else index.tolist()
        images = FolderImages(root, [files[i] for i in chosen], size, resize)
        if check:
            images.check()
        return images, y[list(chosen)]

    kept, chosen = _split(sum(map(len, train.values())), val)
    return Dataset(root.name, tuple(train), *cut(train, kept), *cut(train, chosen), *cut(held))


def _listed(root: Path, part: str) -> dict[str, list[str]]:
    """The image files of each class in ``root / part``, relative to ``root``, all sorted."""
    found = {}
    for folder in sorted(path for path in (root / part).iterdir() if path.is_dir() and path.name[0] != "."):
        files = [Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names]
        names = [file.relative_to(root) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        found[folder.name] = sorted(n.as_posix() for n in names if not any(p.startswith(".") for p in n.parts))
        if not found[folder.name]:
            raise FileNotFoundError(f"{folder} holds no image, expected files such as 1.png or 1.jpg in every class")
    if not found:
        raise FileNotFoundError(f"{root / part} has no folder of a class, expected {part}/<class>/<image>")
    return found


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # image decoders release the interpreter lock


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path, use: Callable[[Image], T]) -> T:
    """What ``use`` makes of the image in ``path``; whatever Pillow finds wrong with it becomes one OSError."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if problem := _unreadable(image):
                raise ValueError(problem)
            return use(image)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise a dozen types
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def _unreadable(image: Image) -> str:
    """What keeps an opened image from being used, in words; "" if nothing does."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # what cameras write: a photograph, then its smaller copies
        return f"it has {frames} frames, expected one image"
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point values" if image.mode == "F" else "32-bit integers"
        return f"it holds {kind}, whose range is unknown; save it with 8 or 16 bits a channel"
    return ""


def _rgb(image: Image) -> Image:
    """An image of any mode that :func:`_unreadable` lets through as 8-bit RGB, turned as its camera was held."""
    from PIL import Image as PIL
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, under one of several names; 65535 = 255 * 257
        return PIL.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = PIL.alpha_composite(PIL.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return image.convert("RGB")


def _random(*key: int) -> np.random.RandomState:
    # numpy promises never to change this stream, so that a split is the same with every version of every package
    key = tuple(map(operator.index, key))  # a numpy integer of 32 bits cannot be shifted by as many
    if min(key) < 0:
        raise ValueError(f"seed is {min(key)}, expected at least 0")
    return np.random.RandomState([part >> shift & 0xFFFFFFFF for part in key for shift in (0, 32)])


def _split(n: int, val: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices of the train and validation images among ``n``; a shortened set gives at most a sixth."""
    val = min(val, n // 6)
    if val < 1:
        raise ValueError(f"there are {n} training images, expected at least 6, to hold a sixth out for validation")
    order = _random(0).permutation(n)
    return np.sort(order[val:]), np.sort(order[:val])


def _tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))


def _bundled(name: str) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey, y = np.rint(digits.images * (255 / 16))[:, None], digits.target
    order = _random(0).permutation(len(y))
    parts = [np.sort(part) for part in (order[700:], order[500:700], order[:500])]  # train, validation, test
    x, tasks = grey, {}
    if name == "colour-digits":
        colour = _random(1).randint(len(_COLOURS), size=len(y))
        x = np.rint(grey * np.array(list(_COLOURS.values()))[colour][:, :, None, None])
        for task, classes, labels in (("digit", _DIGITS, y), ("colour", tuple(_COLOURS), colour)):
            tasks[task] = Labels(classes, *(torch.from_numpy(labels[i].astype(np.int64)) for i in parts))
    train, val, test = (_tensors(x[i].astype(np.uint8), y[i]) for i in parts)
    return Dataset(name, _DIGITS, *train, *val, *test, tasks=tasks)


def _tinted(name: str, grey: Dataset) -> Dataset:
    """Grey images with each one's strokes in one of the six colours, independently of its label."""
    palette = np.array(list(_COLOURS.values()))
    shades = np.rint(np.arange(256)[:, None, None] * palette).astype(np.uint8)  # grey value, colour, channel
    images: dict[str, Any] = {}
    colours = []
    for number, split in enumerate(SPLITS):
        x = getattr(grey, f"x_{split}").numpy()[:, 0]
        colour = _random(2, number).randint(len(_COLOURS), size=len(x))
        tinted = np.stack([shades[x, colour[:, None, None], channel] for channel in range(3)], axis=1)
        colours.append(torch.from_numpy(colour.astype(np.int64)))
        images[f"x_{split}"] = torch.from_numpy(tinted)
    digit = Labels(grey.classes, *(getattr(grey, f"y_{split}") for split in SPLITS))
    tasks = {"digit": digit, "colour": Labels(tuple(_COLOURS), *colours)}
    return dataclasses.replace(grey, name=name, tasks=tasks, **images)


def _square(image: Image, size: int, resize: int) -> np.ndarray:
    """Shorter side to ``resize`` pixels (bilinear, antialiased), centre crop: uint8, 3 x size x size, RGB."""
    from PIL.Image import Resampling

    image = _rgb(image)
    scale = resize / min(image.size)
    width, height = (max(resize, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.array(image).transpose(2, 0, 1)


def _changed(name: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Which arrays do not begin as those of the original do, as far as it is known here."""
    changed = []
    for key, known in _KNOWN.get(name, {}).items():
        for n in (n for n in known if n <= len(arrays[key])):
            part = arrays[key][:n]
            part = np.where(part == 1, np.uint8(0), part) if (name, key) == ("mnist", "x_train") else part
            if hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()[:16] != known[n]:
                changed.append(key)
            break  # the longest beginning says all
    return changed


def _read(path: Path, original: _Original) -> dict[str, np.ndarray]:
    hint = "delete the file to have it downloaded again"
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in KEYS if key in stored.files}
    except Exception as error:  # a damaged archive makes zipfile, zlib, tokenize and numpy raise a dozen types, and
        if isinstance(error, (OSError, MemoryError)) and getattr(error, "errno", 0) != errno.EINVAL:  # seek before 0
            raise
        raise ValueError(f"{path} is corrupt or no .npz file ({error}); {hint}") from error
    if problem := _problem(arrays, original):
        raise ValueError(f"{path} {problem}; {hint}")
    return arrays


def _problem(arrays: Mapping[str, np.ndarray], original: _Original) -> str:
    """What keeps these arrays from being this data set, in words; "" if nothing does."""
    if missing := [key for key in KEYS if key not in arrays]:
        return f"lacks {', '.join(missing)}"
    for key, value in arrays.items():
        if value.dtype != np.uint8:
            return f"holds {key} of dtype {value.dtype}, expected uint8"
    for split, known in (("train", original.train), ("test", original.test)):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.shape[1:] != original.shape:
            return f"holds x_{split} of shape {x.shape}, expected N x {' x '.join(map(str, original.shape))}"
        if y.shape != x.shape[:1]:
            return f"holds y_{split} of shape {y.shape}, expected ({len(x)},), one label for each image"
        least = 6 if split == "train" else 1
        if not least <= len(x) <= known:
            return f"holds {len(x):,} {split} images, expected {least} to {known:,}"
        if y.max() >= len(original.classes):
            return f"holds a label {y.max()} in y_{split}, expected 0 ... {len(original.classes) - 1}"
    return ""


def _download(name: str, original: _Original, folder: Path, path: Path) -> dict[str, np.ndarray]:
    """Have torchvision download and check the original, convert it, and write ``path`` in one step."""
    what = f"{name} is not in {folder} and"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:  # same disk: /tmp may be small
            arrays = _convert(original, temporary)
        if problem := _problem(arrays, original):
            raise ValueError(f"{name}, as torchvision's {original.torchvision} gives it, {problem}")
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    # a dead line is an OSError without one of the local numbers, a dead mirror or a wrong checksum a RuntimeError
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL:
            raise OSError(
                error.errno,
                f"{what} cannot be written there ({error.strerror}); make room or choose another folder by ROBREP_DATA",
            ) from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConnectionError(
            f"{what} could not be downloaded ({reason}); connect to the network and try again, or point ROBREP_DATA at "
            f"a folder that holds {path.name}"
        ) from error
    return arrays


def _convert(original: _Original, folder: str) -> dict[str, np.ndarray]:
    """The original's four arrays, through torchvision; downloads into ``folder``."""
    import torchvision.datasets

    source: Any = getattr(torchvision.datasets, original.torchvision)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        if original.torchvision == "Imagenette":  # image files of many shapes; some versions refuse to download twice
            train = split == "train"
            part = source(folder, split="train" if train else "val", size="160px", download=train)
            pairs = [(_square(image, IMAGENETTE_SIZE, IMAGENETTE_SIZE), label) for image, label in part]
            x, y = np.stack([image for image, _ in pairs]), [label for _, label in pairs]
        else:
            which = {"split": split} if original.torchvision in ("SVHN", "STL10") else {"train": split == "train"}
            part = source(folder, **which, download=True)
            x, y = np.asarray(part.data), part.labels if hasattr(part, "labels") else part.targets
            if x.ndim == 3:  # N x H x W
                x = x[:, None]
            elif x.shape[-1] == 3:  # N x H x W x 3
                x = x.transpose(0, 3, 1, 2)
        arrays[f"x_{split}"] = np.ascontiguousarray(x)
        arrays[f"y_{split}"] = np.asarray(y).astype(np.uint8)
    return arrays
