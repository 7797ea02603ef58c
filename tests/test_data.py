from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import http.client
import os
import pickle
import stat
import struct
import subprocess
import sys
import urllib.error
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image

from robrep import data
from robrep.data import FolderImages, as_float, image_folder, label_subset, load


def arrays_of(name: str, train: int = 30, test: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    known = data._ORIGINALS[name]
    out = {}
    for split, n in (("train", train), ("test", test)):
        out[f"x_{split}"] = rng.integers(0, 256, (n, *known.shape), dtype=np.uint8)
        out[f"y_{split}"] = rng.integers(0, len(known.classes), n, dtype=np.uint8)
    return out


def real_file(name: str) -> Path:
    path = Path(os.environ.get("ROBREP_DATA", "missing")) / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs {name}.npz in the folder that ROBREP_DATA names")
    return path


def sha(*tensors: torch.Tensor) -> str:
    h = hashlib.sha256()
    for t in tensors:
        h.update(t.contiguous().numpy().tobytes())
    return h.hexdigest()[:12]


# ---- the bundled sets


def test_digits_are_sklearns_rescaled_with_rounding():
    from sklearn.datasets import load_digits

    d = load("digits")
    assert d.shape == (1, 8, 8) and d.classes == tuple("0123456789") and d.note == "" and not d.tasks
    assert [len(d.labels(s)) for s in data.SPLITS] == [1097, 200, 500]
    for split in data.SPLITS:
        x = getattr(d, f"x_{split}")
        assert x.dtype == torch.uint8 and x.is_contiguous() and d.labels(split).dtype == torch.int64
        assert x.min() == 0 and x.max() == 255
    original = load_digits()
    expected = {(round(v * 255 / 16)) for v in range(17)}
    assert set(d.x_train.unique().tolist()) == expected
    x = torch.cat([d.x_train, d.x_val, d.x_test]).numpy()
    y = torch.cat([d.y_train, d.y_val, d.y_test]).tolist()
    scaled = np.rint(original.images * 255 / 16).astype(np.uint8)
    ours = sorted(zip((row.tobytes() for row in x), y, strict=True))
    assert ours == sorted(zip((row.tobytes() for row in scaled), original.target.tolist(), strict=True))


def test_digits_splits_are_disjoint_and_hold_every_class():
    d = load("digits")
    seen = [{x.numpy().tobytes() for x in d.__dict__[f"x_{s}"]} for s in data.SPLITS]
    assert not seen[0] & seen[2] and not seen[0] & seen[1] and not seen[1] & seen[2]
    assert all(torch.bincount(d.labels(s), minlength=10).min() > 0 for s in data.SPLITS)


def test_splits_are_the_same_for_ever():
    d, c = load("digits"), load("colour-digits")
    assert sha(d.y_val, d.y_test) == "52ae77c5fefa"
    assert d.fingerprint == "e8d0591afee5" and c.fingerprint == "67b1ad90dae3"
    known = [(60_000, 5_000, "a51295403409"), (50_000, 5_000, "e2cbf18246c7"), (73_257, 5_000, "e1c9937e5c05")]
    for n, val, expected in [*known, (5_000, 500, "f53363cb6ca2"), (9_469, 500, "815324e5fef9")]:
        train, held = data._split(n, val)
        assert len(held) == val and sorted([*train, *held]) == list(range(n))
        assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()
        assert hashlib.sha256(held.astype("<i8").tobytes()).hexdigest()[:12] == expected, n


def test_colour_is_independent_of_the_digit_and_tints_the_strokes_only():
    d, grey = load("colour-digits"), load("digits")
    assert d.shape == (3, 8, 8) and set(d.tasks) == {"digit", "colour"}
    colour, digit = d.task("colour"), d.task("digit")
    assert digit.classes == grey.classes and len(colour.classes) == 6
    assert digit.fingerprint == d.fingerprint != colour.fingerprint
    assert colour.task("digit").fingerprint == d.fingerprint
    palette = torch.tensor([data._COLOURS[c] for c in colour.classes])
    counts = torch.zeros(10, 6)
    for split in data.SPLITS:
        y, c = digit.labels(split), colour.labels(split)
        assert torch.equal(y, grey.labels(split)) and torch.equal(d.labels(split), y)
        g = getattr(grey, f"x_{split}").double()
        expected = g * palette[c].double()[:, :, None, None]
        assert (getattr(d, f"x_{split}").double() - expected).abs().max() <= 1.01  # grey values are unrounded inside
        assert torch.equal(d.images(split).amax(1), grey.images(split)[:, 0])  # the strongest channel is the digit
        counts.index_put_((y, c), torch.ones(len(y)), accumulate=True)
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 70  # 45 degrees of freedom: the 99 % quantile
    assert counts.sum(0).min() > 0.8 * 1797 / 6


def test_colour_mnist_is_mnist_tinted(tmp_path):
    rng, arrays = np.random.RandomState(0), {}
    for split, n in (("train", 60), ("test", 12)):
        arrays[f"x_{split}"] = rng.randint(256, size=(n, 1, 28, 28)).astype(np.uint8)
        arrays[f"y_{split}"] = rng.randint(10, size=n).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", **arrays)
    d, grey = load("colour-mnist", tmp_path), load("mnist", tmp_path)
    assert d.name == "colour-mnist" and d.shape == (3, 28, 28) and d.note == grey.note and d.classes == grey.classes
    assert d.task("colour").classes == load("colour-digits").task("colour").classes
    palette = torch.tensor([data._COLOURS[c] for c in d.task("colour").classes])
    for split in data.SPLITS:
        assert torch.equal(d.labels(split), grey.labels(split))
        assert torch.equal(d.task("digit").labels(split), grey.labels(split))
        colour = d.task("colour").labels(split)
        expected = getattr(grey, f"x_{split}").double() * palette[colour].double()[:, :, None, None]
        x = getattr(d, f"x_{split}")
        assert x.dtype == torch.uint8 and (x.double() - expected).abs().max() <= 0.5001
    again = load("colour-mnist", tmp_path)
    assert again.task("colour").fingerprint == d.task("colour").fingerprint != d.fingerprint
    assert d.task("colour").labels("test").tolist() == [5, 0, 5, 3, 1, 2, 5, 1, 3, 2, 5, 0]


def test_colours_of_mnist_are_balanced_and_independent():
    """The labels alone: the colours of 55,000 training images against a chi-squared of 45 degrees of freedom."""
    y = data._random(3).randint(10, size=55_000)
    colour = data._random(2, 0).randint(6, size=55_000)
    counts = np.zeros((10, 6))
    np.add.at(counts, (y, colour), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 80
    assert abs(counts.sum(0) / counts.sum() - 1 / 6).max() < 0.006


def test_loading_again_gives_new_tensors():
    a = load("digits")
    a.x_train.zero_()
    assert load("digits").x_train.max() == 255


# ---- Dataset


def test_images_and_labels():
    d = load("digits")
    x = d.images("val")
    assert x.dtype == torch.float32 and x.shape == (200, 1, 8, 8) and x.min() == 0 and x.max() == 1
    assert torch.equal(d.images("test", torch.tensor([3, 1])), d.images("test")[[3, 1]])
    assert torch.equal(d.labels("test", slice(4)), d.y_test[:4])
    with pytest.raises(ValueError, match="split is 'validation', expected one of 'train', 'val', 'test'"):
        d.images("validation")
    with pytest.raises(ValueError, match="split is 'tset'.*did you mean 'test'"):
        d.labels("tset")


def test_subset_is_seeded_sorted_and_nested():
    d = load("digits")
    a = d.subset("test", 50)
    assert torch.equal(a, d.subset("test", 50)) and (a.diff() > 0).all() and a.max() < 500
    assert not torch.equal(a, d.subset("test", 50, seed=1))
    assert set(d.subset("test", 20).tolist()) < set(a.tolist())
    with pytest.raises(ValueError, match="count is 501, but there are only 500"):
        d.subset("test", 501)


def test_unknown_task_is_refused_by_name():
    with pytest.raises(ValueError, match="task is 'color', expected one of 'digit', 'colour'.*did you mean 'colour'"):
        load("colour-digits").task("color")
    with pytest.raises(ValueError, match="task is 'colour', but digits has one set of labels only"):
        load("digits").task("colour")


def test_dataset_is_frozen_prints_in_a_line_and_pickles():
    d = load("digits")
    with pytest.raises(AttributeError):
        d.name = "other"  # type: ignore[misc]
    assert repr(d) == "Dataset(digits: 1 x 8 x 8, 10 classes, 1097 train, 200 validation, 500 test)"
    assert pickle.loads(pickle.dumps(d)).fingerprint == d.fingerprint


def test_fingerprint_sees_images_labels_and_splits(tmp_path):
    base = arrays_of("mnist")
    seen = set()
    for key in (None, *data.KEYS):
        changed = {k: v.copy() for k, v in base.items()}
        if key:
            changed[key].flat[0] = (changed[key].flat[0] + 1) % 10
        np.savez(tmp_path / "mnist.npz", **changed)
        seen.add(load("mnist", tmp_path).fingerprint)
    assert len(seen) == 5 and all(len(f) == 12 for f in seen)


def test_as_float():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(x), torch.arange(256, dtype=torch.float32) / 255)
    assert x[255] == 255
    with pytest.raises(TypeError, match="x has dtype torch.float32, expected a torch.uint8"):
        as_float(torch.rand(3))
    with pytest.raises(TypeError, match="x is a ndarray"):
        as_float(np.zeros(3, np.uint8))  # type: ignore[arg-type]


# ---- label subsets


@pytest.mark.parametrize("count", [1, 5, 10, 13, 100, 137])
@pytest.mark.parametrize("seed", [0, 1])
def test_balanced_subset_is_balanced(count, seed):
    y = load("digits").y_train
    index = label_subset(y, count, classes=10, seed=seed)
    assert index.dtype == torch.int64 and index.shape == (count,) and (index.diff() > 0).all()
    per_class = torch.bincount(y[index], minlength=10)
    assert per_class.max() - per_class.min() <= 1
    assert torch.equal(index, label_subset(y, count, classes=tuple("0123456789"), seed=seed))


@pytest.mark.parametrize("balanced", [True, False])
def test_subsets_are_nested(balanced):
    y = load("digits").y_train
    last: set[int] = set()
    for count in range(1, 300):
        now = set(label_subset(y, count, classes=10, balanced=balanced, seed=3).tolist())
        assert last < now and len(now) == count
        last = now


def test_random_subset_does_not_look_at_labels():
    y = load("digits").y_train
    a = label_subset(y, 500, classes=10, balanced=False)
    assert torch.equal(a, label_subset((y + 1) % 10, 500, classes=10, balanced=False))
    per_class = torch.bincount(y[a], minlength=10)
    assert per_class.max() - per_class.min() > 1
    assert torch.equal(label_subset(y, len(y), classes=10, balanced=False), torch.arange(len(y)))


def test_subset_leaves_the_global_random_states_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    label_subset(load("colour-digits").y_train, 20, classes=10)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


def test_label_subset_refuses():
    y = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    with pytest.raises(ValueError, match="count is 8, but there are only 7 labels"):
        label_subset(y, 8, classes=3)
    with pytest.raises(ValueError, match="class 'one' has 1 examples, a balanced subset of 6 needs 2"):
        label_subset(y, 6, classes=("zero", "one", "two"))
    with pytest.raises(ValueError, match="class 1 has 1 examples"):
        label_subset(y, 6, classes=3)
    assert len(label_subset(y, 7, classes=3, balanced=False)) == 7
    with pytest.raises(ValueError, match="labels from 0 to 2, expected labels in 0 ... 1"):
        label_subset(y, 2, classes=2)
    with pytest.raises(ValueError, match="count is 0"):
        label_subset(y, 0, classes=3)
    with pytest.raises(TypeError, match="count is 2.0"):
        label_subset(y, 2.0, classes=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="torch.float32"):
        label_subset(y.float(), 2, classes=3)
    with pytest.raises(ValueError, match="seed is -1"):
        label_subset(y, 2, classes=3, seed=-1)


# ---- names, roots and files


def test_unknown_name_is_refused_with_the_list_and_a_close_match():
    with pytest.raises(ValueError, match="name is 'cifar-10', expected one of 'digits'.*did you mean 'cifar10'"):
        load("cifar-10")


def test_class_names():
    for name, known in data._ORIGINALS.items():
        assert len(set(known.classes)) == len(known.classes) == (100 if name == "cifar100" else 10)
    imagenette = torchvision.datasets.Imagenette._WNID_TO_CLASS
    assert list(data._IMAGENETTE) == [imagenette[wnid][0] for wnid in sorted(imagenette)]
    fashion = torchvision.datasets.FashionMNIST.classes
    assert [c.lower() for c in fashion] == [c.lower() for c in data._FASHION]
    assert tuple(sorted(data._ORIGINALS["cifar100"].classes)) == data._ORIGINALS["cifar100"].classes


@pytest.mark.parametrize("name", data._ORIGINALS)
def test_a_file_is_used_where_there_is_one(name, tmp_path, monkeypatch):
    stored = arrays_of(name)
    np.savez_compressed(tmp_path / f"{name}.npz", **stored)
    monkeypatch.setenv("ROBREP_DATA", str(tmp_path))
    monkeypatch.setattr(data, "_download", lambda *_: pytest.fail("downloaded"))
    d = load(name)
    assert d.name == name and d.shape == stored["x_train"].shape[1:]
    assert (len(d.y_train), len(d.y_val), len(d.y_test)) == (25, 5, 7)
    known = data._ORIGINALS[name]
    assert d.note == f"30 of {known.train:,} train images; 7 of {known.test:,} test images", "which ones is not known"
    train, val = data._split(30, 500)
    assert torch.equal(d.x_train, torch.from_numpy(stored["x_train"][train]))
    assert torch.equal(d.x_val, torch.from_numpy(stored["x_train"][val]))
    assert torch.equal(d.x_test, torch.from_numpy(stored["x_test"]))
    assert d.y_val.tolist() == stored["y_train"][val].tolist() and d.y_test.tolist() == stored["y_test"].tolist()


def test_root_argument_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBREP_DATA", str(tmp_path / "empty"))
    np.savez(tmp_path / "svhn.npz", **arrays_of("svhn"))
    assert len(load("svhn", str(tmp_path)).y_test) == 7


def test_a_read_only_folder_with_the_file_works(tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays_of("mnist"))
    (tmp_path / "mnist.npz").chmod(stat.S_IRUSR)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        before = sorted(tmp_path.iterdir())
        assert load("mnist", tmp_path).shape == (1, 28, 28)
        assert sorted(tmp_path.iterdir()) == before
    finally:
        tmp_path.chmod(0o700)


def edit(**changes):
    return lambda arrays: {k: v for k, v in {**arrays, **changes}.items() if v is not None}


U8 = np.uint8
BAD = {
    "missing": (edit(y_test=None, x_test=None), "lacks x_test, y_test"),
    "float images": (lambda a: {**a, "x_train": a["x_train"] / 255}, "holds x_train of dtype float64, expected uint8"),
    "int64 labels": (lambda a: {**a, "y_test": a["y_test"].astype(int)}, "holds y_test of dtype int64, expected uint8"),
    "channels last": (edit(x_test=np.zeros((7, 28, 28, 1), U8)), r"\(7, 28, 28, 1\), expected N x 1 x 28 x 28"),
    "no channel": (edit(x_test=np.zeros((7, 28, 28), U8)), "x_test of shape"),
    "labels short": (edit(y_train=np.zeros(29, U8)), r"y_train of shape \(29,\), expected \(30,\)"),
    "one-hot": (edit(y_train=np.zeros((30, 10), U8)), r"y_train of shape \(30, 10\)"),
    "label range": (edit(y_test=np.full(7, 10, U8)), "holds a label 10 in y_test, expected 0 ... 9"),
    "no test": (edit(x_test=np.zeros((0, 1, 28, 28), U8), y_test=np.zeros(0, U8)), "holds 0 test images, expected 1"),
    "tiny": (edit(x_train=np.zeros((5, 1, 28, 28), U8), y_train=np.zeros(5, U8)), "holds 5 train images, expected 6"),
    "too many": (
        edit(x_test=np.zeros((10_001, 1, 28, 28), U8), y_test=np.zeros(10_001, U8)),
        "holds 10,001 test images, expected 1 to 10,000",
    ),
    "objects": (lambda a: {**a, "y_test": np.array([None] * 7)}, "corrupt or no .npz file .*allow_pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_with_other_content_is_refused(case, tmp_path):
    change, message = BAD[case]
    path = tmp_path / "mnist.npz"
    np.savez(path, **change(arrays_of("mnist")))
    with pytest.raises(ValueError, match=message) as error:
        load("mnist", tmp_path)
    assert str(path) in str(error.value) and "delete the file" in str(error.value)
    assert path.exists()  # never deleted by us


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **arrays_of("mnist"))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    np.save(tmp_path / "one.npy", np.zeros(3))
    contents = [b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[100:], bytes(flipped)]
    for content in [*contents, (tmp_path / "one.npy").read_bytes(), pickle.dumps({"x_train": 1})]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="mnist.npz is corrupt or no .npz file"):
            load("mnist", tmp_path)


def test_a_damaged_file_in_the_users_cache_is_set_aside_and_made_anew(tmp_path, monkeypatch):
    monkeypatch.delenv("ROBREP_DATA", raising=False)
    monkeypatch.setenv("ROBREP_CACHE", str(tmp_path))
    path = tmp_path / "mnist.npz"
    path.write_bytes(b"cut short")
    monkeypatch.setattr(data, "_convert", lambda original, folder: arrays_of("mnist"))
    with pytest.warns(UserWarning, match="mnist.npz is damaged .* it is set aside as mnist.npz.damaged and made anew"):
        d = load("mnist")
    assert len(d.x_test) == 7 and (tmp_path / "mnist.npz.damaged").read_bytes() == b"cut short"
    assert load("mnist").fingerprint == d.fingerprint


def test_any_flipped_byte_gives_an_answer_or_a_value_error(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **arrays_of("mnist", 6, 1))
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    places = [*range(0, 200, 3), *range(len(whole) - 300, len(whole), 3), *rng.integers(0, len(whole), 60)]
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        try:
            assert load("mnist", tmp_path).shape == (1, 28, 28)
        except ValueError as error:
            assert "mnist.npz" in str(error)


# ---- converting what torchvision downloads


class Fake:
    """Stands for a torchvision data set: the same attributes and types, a few images."""

    def __init__(self, name: str, calls: list | None = None):
        self.name, self.arrays, self.calls = name, arrays_of(name), calls if calls is not None else []

    def __call__(self, root, train=None, split=None, size=None, download=False):
        assert Path(root).is_dir()
        (Path(root) / "archive.tar").write_bytes(b"the original")
        self.calls.append(SimpleNamespace(train=train, split=split, size=size, download=download))
        which = "train" if train or split == "train" else "test"
        x, y = self.arrays[f"x_{which}"], self.arrays[f"y_{which}"]
        if self.name in ("mnist", "fashion-mnist"):
            return SimpleNamespace(data=torch.from_numpy(x[:, 0]), targets=torch.from_numpy(y).long())
        if self.name in ("cifar10", "cifar100"):
            return SimpleNamespace(data=x.transpose(0, 2, 3, 1), targets=y.tolist())
        if self.name == "imagenette":
            return [(Image.fromarray(i.transpose(1, 2, 0)), int(k)) for i, k in zip(x, y, strict=True)]
        column = np.asfortranarray(x)  # SVHN and STL-10 are transposed views
        return SimpleNamespace(data=column, labels=y.astype(np.int64 if self.name == "svhn" else np.uint8))


@pytest.mark.parametrize("name", data._ORIGINALS)
def test_conversion_of_every_original(name, tmp_path, monkeypatch):
    fake = Fake(name)
    monkeypatch.setattr(torchvision.datasets, data._ORIGINALS[name].torchvision, fake)
    root = tmp_path / "new" / "folder"
    first = load(name, root)
    assert [p.name for p in root.iterdir()] == [f"{name}.npz"]  # the download is gone
    with np.load(root / f"{name}.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == sorted(data.KEYS)
        for key in data.KEYS:
            assert stored[key].dtype == np.uint8 and (stored[key] == fake.arrays[key]).all()
    calls = len(fake.calls)
    assert calls == 2 and fake.calls[0].download
    assert load(name, root).fingerprint == first.fingerprint and len(fake.calls) == calls
    if name in ("svhn", "stl10"):
        assert [c.split for c in fake.calls] == ["train", "test"]
    if name == "imagenette":
        assert [(c.split, c.size) for c in fake.calls] == [("train", "160px"), ("val", "160px")]


def test_conversion_through_torchvisions_own_mnist_reader(tmp_path, monkeypatch):
    """idx files as the original has them, read by torchvision itself; only the download is replaced."""
    arrays = arrays_of("mnist")

    def download(self):
        Path(self.raw_folder).mkdir(parents=True, exist_ok=True)
        for prefix, split in (("train", "train"), ("t10k", "test")):
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
            images = struct.pack(">IIII", 0x803, len(x), 28, 28) + x.tobytes()
            labels = struct.pack(">II", 0x801, len(y)) + y.tobytes()
            for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
                file = Path(self.raw_folder) / f"{prefix}-{kind}-ubyte"
                file.write_bytes(content)
                Path(f"{file}.gz").write_bytes(gzip.compress(content))

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    d = load("mnist", tmp_path)
    assert (d.x_test.numpy() == arrays["x_test"]).all() and (d.y_test.numpy() == arrays["y_test"]).all()
    assert [p.name for p in tmp_path.iterdir()] == ["mnist.npz"]


def test_imagenette_is_resized_and_centre_cropped():
    wide = np.zeros((160, 320, 3), np.uint8)
    wide[:, 80:240] = 200  # the middle square
    out = data._square(Image.fromarray(wide), 128, 128)
    assert out.shape == (3, 128, 128) and out.dtype == np.uint8 and (out[:, :, 2:-2] == 200).all()
    assert data._square(Image.fromarray(wide[:, :, 0]), 128, 128).shape == (3, 128, 128)  # grey images become RGB
    assert data._square(Image.fromarray(wide[:33, :49]), 24, 32).shape == (3, 24, 24)


def test_a_converted_set_is_checked_before_it_is_written(tmp_path, monkeypatch):
    fake = Fake("cifar10")
    fake.arrays["y_test"][0] = 77
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    with pytest.raises(ValueError, match="cifar10, as torchvision's CIFAR10 gives it, holds a label 77"):
        load("cifar10", tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Name or service not known"),
        RuntimeError("Error downloading train.gz:\nTried a mirror, got:\nno route"),
        RuntimeError("File not found or corrupted."),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        TimeoutError("timed out"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
        http.client.IncompleteRead(b"abc", 10),
        EOFError("Compressed file ended before the end-of-stream marker was reached"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_missing_network_says_what_to_do_and_leaves_nothing(failure, tmp_path, monkeypatch):
    def fail(root, **_):
        (Path(root) / "half").write_bytes(b"half a file")
        raise failure

    monkeypatch.setattr(torchvision.datasets, "STL10", fail)
    with pytest.raises(ConnectionError, match="^stl10 is not in .* and could not be downloaded") as error:
        load("stl10", tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message and "ROBREP_DATA" in message and "stl10.npz" in message and "\n" not in message
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def run(match):
        with pytest.raises(OSError, match=match) as error:
            load("mnist", tmp_path)
        assert error.value.errno == errno.ENOSPC and not isinstance(error.value, ConnectionError)
        assert "mnist" in str(error.value) and str(tmp_path) in str(error.value)
        assert not any(tmp_path.iterdir())

    def fail(*_, **__):
        raise full

    def half(file, **_):
        file.write(b"half")
        raise full

    message = "cannot be written there .No space left on device.; make room"
    with monkeypatch.context() as m:  # while downloading
        m.setattr(torchvision.datasets, "MNIST", fail)
        run(message)
    monkeypatch.setattr(torchvision.datasets, "MNIST", Fake("mnist"))
    with monkeypatch.context() as m:  # while writing
        m.setattr(np, "savez", half)
        run(message)
    with monkeypatch.context() as m:  # at the very end
        m.setattr(os, "replace", fail)
        run(message)
    assert load("mnist", tmp_path).shape == (1, 28, 28)  # and then there is room again


def test_an_unwritable_folder_without_the_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", lambda *_, **__: pytest.fail("downloaded"))

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as m:  # tests may run as root, who may write anywhere
        m.setattr(data.tempfile, "TemporaryDirectory", refuse)
        with pytest.raises(PermissionError, match="mnist is not in .* and cannot be written there .Permission denied"):
            load("mnist", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="mnist is not in .*file and cannot be written there"):
        load("mnist", tmp_path / "file")


# ---- folders of images


def paint(root: Path, part: str, label: str, count: int, size=(20, 30), mode="RGB") -> None:
    rng = np.random.default_rng(hash_of(part, label))
    folder = root / part / label
    folder.mkdir(parents=True)
    for i in range(count):
        shape = size if mode == "L" else (*size, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")


def hash_of(*parts: str) -> int:
    return int(hashlib.sha256("/".join(parts).encode()).hexdigest()[:8], 16)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    paint(root, "train", "cat", 7)
    paint(root, "train", "dog", 6, size=(24, 16), mode="L")
    paint(root, "val", "cat", 2)
    paint(root, "val", "dog", 3)
    return root


def test_image_folder_has_the_attributes_of_a_dataset(folder):
    d = image_folder(folder, 16)
    assert d.name == "pictures" and d.classes == ("cat", "dog") and d.shape == (3, 16, 16)
    assert (len(d.x_train), len(d.x_val), len(d.x_test)) == (11, 2, 5) == (len(d.y_train), len(d.y_val), len(d.y_test))
    assert d.y_test.tolist() == [0, 0, 1, 1, 1] and d.y_train.dtype == torch.int64
    assert not set(d.x_train.files) & set(d.x_val.files)
    x = d.images("train")
    assert x.dtype == torch.float32 and x.shape == (11, 3, 16, 16) and x.max() <= 1
    assert d.labels("val").shape == (2,) and len(d.subset("test", 3)) == 3
    assert repr(d) == "Dataset(pictures: 3 x 16 x 16, 2 classes, 11 train, 2 validation, 5 test)"
    image = Image.open(folder / d.x_test.files[0])
    assert torch.equal(d.x_test[0], torch.from_numpy(data._square(image, 16, 16)))


def test_folder_images_take_every_kind_of_index(folder):
    x = image_folder(folder, 8, resize=12).x_test
    everything = x[:]
    assert everything.shape == x.shape == (5, 3, 8, 8) and everything.dtype == x.dtype == torch.uint8
    for index in (slice(1, 3), [4, 0], torch.tensor([2, 2]), torch.tensor([True, False, False, True, False]), 3, -1):
        assert torch.equal(x[index], everything[index])
    assert x[torch.zeros(0, dtype=torch.int64)].shape == (0, 3, 8, 8)
    assert torch.equal(torch.stack(list(x)), everything)
    with pytest.raises(IndexError):
        x[5]


def test_folder_images_are_decoded_on_demand_only(folder, monkeypatch):
    decoded = []
    decode = FolderImages._decode
    monkeypatch.setattr(FolderImages, "_decode", lambda self, i: decoded.append(self.files[i]) or decode(self, i))
    d = image_folder(folder, 8)
    assert d.fingerprint and not decoded
    d.images("train", torch.tensor([1, 5]))
    assert sorted(decoded) == sorted([d.x_train.files[1], d.x_train.files[5]])


def test_fingerprint_of_a_folder_sees_files_and_crop(folder):
    first = image_folder(folder, 8).fingerprint
    assert first == image_folder(folder, 8).fingerprint
    assert len({first, image_folder(folder, 9).fingerprint, image_folder(folder, 8, resize=9).fingerprint}) == 3
    Image.new("RGB", (50, 50)).save(folder / "val" / "cat" / "0.png")
    assert image_folder(folder, 8).fingerprint != first


def test_image_folder_refuses(folder):
    with pytest.raises(FileNotFoundError, match="has no folder 'test', expected test/<class>/<image>"):
        image_folder(folder, test="test")
    with pytest.raises(FileNotFoundError, match="has no folder 'train'"):
        image_folder(folder / "nowhere")
    with pytest.raises(ValueError, match="size is 0"):
        image_folder(folder, 0)
    with pytest.raises(ValueError, match="resize is 7, expected at least size, 8"):
        image_folder(folder, 8, resize=7)
    broken = folder / "val" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(OSError, match="1.png cannot be read as an image"):
        image_folder(folder, 8).images("test")
    paint(folder, "val", "owl", 1)
    with pytest.raises(ValueError, match="hold different classes, among them 'owl'"):
        image_folder(folder, 8)


def test_a_folder_too_small_for_a_validation_split_is_refused(tmp_path):
    for name, count in (("cat", 3), ("dog", 2)):
        paint(tmp_path, "train", name, count)
        paint(tmp_path, "val", name, 1)
    with pytest.raises(ValueError, match="there are 5 training images, expected at least 6"):
        image_folder(tmp_path, 8)


# ---- files that people have

RAMP = np.linspace(0, 1, 32)[None].repeat(32, 0)  # dark on the left, bright on the right


def transparent() -> np.ndarray:
    """Noise hidden under full transparency, around an opaque red square."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[8:24, 8:24] = (200, 30, 30, 255)
    return pixels


def seen_through_alpha() -> np.ndarray:
    out = np.zeros((32, 32, 3), np.uint8)
    out[8:24, 8:24] = (200, 30, 30)
    return out


def palette(alpha: bool = False) -> Image.Image:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 255, 255, 10, 20, 30])
    image.paste(0, (0, 0, 16, 32))
    if alpha:
        image.info["transparency"] = 0
    return image


def turned(orientation: int = 6) -> dict:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


BIG_ENDIAN = (RAMP * 65535).astype(">u2").tobytes()
GREY8 = np.rint(RAMP * 255)
GREY = np.stack([GREY8] * 3, -1)
LEFT = np.zeros((32, 32, 3)) + np.array([10, 20, 30])
LEFT[:, :16] = 255
RIGHT = {  # name of the file -> how it is written, and what it should be read as
    "grey.png": (lambda p: Image.fromarray(GREY8.astype(np.uint8)).save(p), GREY),
    "grey16.png": (lambda p: Image.fromarray((RAMP * 65535).astype(np.uint16)).save(p), GREY),
    "grey16.tif": (lambda p: Image.fromarray((RAMP * 65535).astype(np.uint16)).save(p), GREY),
    "big_endian.tif": (lambda p: Image.frombytes("I;16B", (32, 32), BIG_ENDIAN).save(p), GREY),
    "grey16.pgm": (lambda p: p.write_bytes(b"P5 32 32 65535\n" + BIG_ENDIAN), GREY),
    "black_and_white.png": (lambda p: Image.fromarray(RAMP > 0.5).save(p), np.stack([255 * (RAMP > 0.5)] * 3, -1)),
    "rgba.png": (lambda p: Image.fromarray(transparent()).save(p), seen_through_alpha()),
    "rgba.webp": (lambda p: Image.fromarray(transparent()).save(p, lossless=True, exact=True), seen_through_alpha()),
    "grey_alpha.png": (
        lambda p: Image.fromarray(transparent()).convert("LA").save(p),
        np.array(Image.fromarray(seen_through_alpha()).convert("L").convert("RGB")),
    ),
    "palette.png": (lambda p: palette().save(p), LEFT),
    "still.gif": (lambda p: palette().save(p), LEFT),
    "palette_alpha.png": (lambda p: palette(alpha=True).save(p, transparency=0), np.where(LEFT == 255, 0, LEFT)),
    "colour_key.png": (
        lambda p: Image.fromarray(LEFT.astype(np.uint8)).save(p, transparency=(255, 255, 255)),
        np.where(LEFT == 255, 0, LEFT),
    ),
    "turned.png": (lambda p: Image.fromarray(GREY.astype(np.uint8)).save(p, **turned()), GREY.transpose(1, 0, 2)),
    "mirrored.tif": (lambda p: Image.fromarray(GREY.astype(np.uint8)).save(p, **turned(2)), GREY[:, ::-1]),
    "turned16.tif": (
        lambda p: Image.fromarray((RAMP * 65535).astype(np.uint16)).save(p, **turned()),
        GREY.transpose(1, 0, 2),
    ),
    "cmyk.tif": (lambda p: Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(p), np.zeros((32, 32, 3)) + (255, 0, 0)),
    "wrong_suffix.jpeg": (lambda p: Image.fromarray(GREY.astype(np.uint8)).save(p, format="PNG"), GREY),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_file_is_read_as_it_looks(name, folder):
    write, pixels = RIGHT[name]
    write(folder / "val" / "cat" / name)
    images = image_folder(folder, 32).x_test
    got = images[images.files.index(f"val/cat/{name}")].numpy().transpose(1, 2, 0).astype(int)
    assert np.abs(got - pixels).max() <= 1  # 16 bits are rounded to 8


def frames(path: Path, **more: object) -> None:
    first, second = Image.new("L", (32, 32), 0), Image.new("L", (32, 32), 255)
    first.save(path, save_all=True, append_images=[second], **more)


WRONG = {
    "floats.tif": (lambda p: Image.fromarray(RAMP.astype(np.float32)).save(p), "floating-point values, whose range"),
    "integers.tif": (lambda p: Image.fromarray((RAMP * 1e6).astype(np.int32)).save(p), "32-bit integers, whose range"),
    "moving.gif": (frames, "it has 2 frames, expected one image"),
    "moving.png": (frames, "it has 2 frames"),
    "pages.tiff": (frames, "it has 2 frames"),
    "empty.png": (lambda p: p.write_bytes(b""), "cannot identify image file"),
    "text.jpg": (lambda p: p.write_text("no image", encoding="utf-8"), "cannot identify image file"),
    "phone.heic": (lambda p: p.write_bytes(b"\0\0\0\x18ftypheic" + bytes(50)), "cannot identify image file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_read_is_refused_by_name_before_anything_is_decoded(name, folder, monkeypatch):
    write, words = WRONG[name]
    write(folder / "train" / "dog" / name)
    monkeypatch.setattr(FolderImages, "_decode", lambda self, i: pytest.fail("decoded"))
    with pytest.raises(OSError, match=f"{name} cannot be read as an image: .*{words}"):
        image_folder(folder, 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".bmp"])
def test_a_file_cut_short_is_refused_by_name(suffix, folder):
    path = folder / "val" / "cat" / f"cut{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(OSError, match=f"cut{suffix} cannot be read as an image"):
        image_folder(folder, 8).images("test")


def test_hidden_files_are_ignored_and_classes_without_images_refused(folder):
    before = image_folder(folder, 8).fingerprint
    (folder / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (folder / "train" / "cat" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    assert image_folder(folder, 8).fingerprint == before
    for part in ("train", "val"):
        (folder / part / "owl").mkdir()
    with pytest.raises(FileNotFoundError, match="owl holds no image"):
        image_folder(folder, 8)


def test_one_class_and_one_folder_for_both_parts_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="test is 'train', expected another folder"):
        image_folder(folder, 8, test="train")
    paint(tmp_path / "one", "train", "cat", 7)
    paint(tmp_path / "one", "val", "cat", 2)
    with pytest.raises(ValueError, match="has the class 'cat' only, expected at least two"):
        image_folder(tmp_path / "one", 8)


def test_the_fingerprint_of_images_on_disk_sees_their_contents(folder, monkeypatch):
    x = image_folder(folder, 8).x_train
    first, path = x.fingerprint, folder / x.files[0]
    assert len(first) == 16 and first == x.fingerprint
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # as long as before, and as old
    assert x.fingerprint != first
    monkeypatch.setattr(data, "HASHED_BYTES", 100)
    by_size = x.fingerprint
    path.write_bytes(path.read_bytes() + b"?")
    assert len({first, by_size, x.fingerprint}) == 3
    unknown = dataclasses.replace(load("digits"), x_train=[1, 2])
    with pytest.raises(TypeError, match="x_train is a list, expected a tensor or an object with a fingerprint"):
        unknown.fingerprint  # noqa: B018


def test_folders_are_cached_and_audited(folder, tmp_path):
    from robrep.attacks import Linf
    from robrep.audit import audit
    from robrep.methods import Supervised
    from robrep.training import fit

    d = image_folder(folder, 8)

    def trained(**where):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        history = fit(Supervised(net, torch.nn.Identity()), d.x_train, d.y_train, epochs=2, batch_size=4, **where)
        return net, [row["loss"] for row in history]

    net, losses = trained()
    assert trained(cache=tmp_path / "cache")[1] == losses == trained(cache=tmp_path / "cache")[1]
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 1
    y = net.eval()(as_float(d.x_test[:])).argmax(1)  # whatever it says is right
    assert str(audit(net, d.x_test, y, Linf(0.1))) == str(audit(net, as_float(d.x_test[:]), y, Linf(0.1)))


def changed_mnist(change) -> dict[str, np.ndarray]:
    with np.load(real_file("mnist")) as stored:
        arrays = {key: stored[key] for key in data.KEYS}
    change(arrays)
    return arrays


def permute(arrays):
    arrays["y_train"] = np.random.default_rng(0).permutation(arrays["y_train"])


def train_as_test(arrays):
    arrays["x_test"], arrays["y_test"] = arrays["x_train"][:10_000], arrays["y_train"][:10_000]


def shorten(arrays):
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][:2_000], arrays["y_test"][:2_000]


def shorten_at_random(arrays):
    chosen = np.random.default_rng(0).permutation(10_000)[:2_000]
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][chosen], arrays["y_test"][chosen]


@pytest.mark.parametrize(
    ("change", "differ", "note"),
    [
        (permute, "y_train", "y_train not the original's"),
        (train_as_test, "x_test, y_test", "x_test, y_test not the original's"),
        (shorten, None, "first 2,000 of 10,000 test images"),
        (shorten_at_random, "x_test, y_test", "x_test, y_test not the original's; 2,000 of 10,000 test images"),
    ],
)
def test_a_changed_original_is_used_with_a_warning_that_a_record_carries(change, differ, note, tmp_path):
    from robrep.book import results

    np.savez(tmp_path / "mnist.npz", **changed_mnist(change))
    for name in ("mnist", "colour-mnist"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            d = load(name, tmp_path)
        said = [str(w.message) for w in caught if "not the original" in str(w.message)]
        assert len(said) == (differ is not None) and all(f"{differ} differ from it" in text for text in said)
        without = d.note.replace("; train pixels of value 1 read 0", "").replace("train pixels of value 1 read 0; ", "")
        assert without == note and results.data_facts(d)["note"] == d.note


def test_numpy_integers_are_integers(folder):
    d = load("digits")
    for seed in (np.int64(3), np.int32(3), np.uint8(3)):
        assert torch.equal(d.subset("test", 40, seed=seed), d.subset("test", 40, seed=3))
    x = image_folder(folder, 8).x_test
    assert torch.equal(x[np.int64(1)], x[1]) and torch.equal(x[np.array([0, 2])], x[[0, 2]])


# ---- costs and real files


def test_import_loads_no_heavy_package():
    heavy = "torchvision sklearn scipy PIL lightning_fabric"
    code = f"import sys, robrep.data; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_real_mnist():
    d = load("mnist", real_file("mnist").parent)
    assert (len(d.y_train), len(d.y_val), len(d.y_test)) == (55_000, 5_000, 10_000) and d.shape == (1, 28, 28)
    assert torch.bincount(d.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (torch.bincount(d.y_train) + torch.bincount(d.y_val)).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert d.note == ("" if (d.x_train == 1).any() else "train pixels of value 1 read 0")


def test_real_cifar10():
    d = load("cifar10", real_file("cifar10").parent)
    assert (len(d.y_train), len(d.y_val)) == (45_000, 5_000) and d.shape == (3, 32, 32)
    assert d.note == ("" if len(d.y_test) == 10_000 else f"first {len(d.y_test):,} of 10,000 test images")


def test_resized_images_are_averages_of_the_old_ones() -> None:
    digits = data.load("digits")
    small = digits.resized(4)
    assert small.shape == (1, 4, 4) and small.note.endswith("resized to 4 x 4") and small.x_train.dtype == torch.uint8
    assert torch.equal(small.y_test, digits.y_test) and digits.shape == (1, 8, 8)
    old, new = digits.images("test"), small.images("test")
    triangle = torch.tensor([1.0, 3.0, 3.0, 1.0])  # bilinear with antialiasing, at half the size, inside the image
    inside = torch.einsum("ncij,i,j->nc", old[:, :, 1:5, 1:5], triangle, triangle) / 64
    assert (new[:, :, 1, 1] - inside).abs().max() <= 1.01 / 255
    same = digits.resized(8)
    assert torch.equal(same.x_val, digits.x_val) and same.note == digits.note
    with pytest.raises(ValueError, match="size is 0"):
        digits.resized(0)
