"""Files are whole or not there; hashes notice what they must."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from robrep import files
from robrep.book import files as book_files
from robrep.files import atomic_write, cache_root, code_hash, digest


def test_write_makes_the_folder_and_keeps_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.json"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".json" and temporary != path
        assert not path.exists()
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["run.json"]


def test_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old and long")
    with atomic_write(str(path)) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old and long"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("existed", [True, False])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, existed: bool) -> None:
    path = tmp_path / "x.bin"
    if existed:
        path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == (["x.bin"] if existed else [])
    assert not existed or path.read_bytes() == b"old"


def test_failure_to_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), atomic_write(tmp_path / "x.bin") as temporary:
        temporary.write_bytes(b"new")
    assert not os.listdir(tmp_path)


def test_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "x") as temporary:
        temporary.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["x"]


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(OSError), atomic_write(tmp_path / "x" / "y.json"):
        raise AssertionError("not reached")


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so where root runs the tests the refusal of the system is played."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    if os.geteuid() == 0:

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
    else:
        folder.chmod(0o500)
    with pytest.raises(PermissionError), atomic_write(folder / "x.json"):
        raise AssertionError("not reached")
    assert not os.listdir(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX rights")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_rights_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBREP_DATA", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("ROBREP_DATA")
    monkeypatch.setenv("ROBREP_CACHE", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("ROBREP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "robrep"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_root() == tmp_path / ".cache" / "robrep"


def test_user_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for platform, place in (
        ("linux", ".local/share"),
        ("darwin", "Library/Application Support"),
        ("win32", "AppData/Local"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert book_files.user_results() == tmp_path / place / "robrep" / "results"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert book_files.user_results() == tmp_path / "xdg" / "robrep" / "results"


def test_why_not_writable(tmp_path: Path) -> None:
    assert book_files.why_not_writable(tmp_path / "a" / "b") == "" and os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    assert book_files.why_not_writable(tmp_path / "file" / "b") == "Not a directory"


def test_a_damaged_file_is_set_aside_with_a_line_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for content in ("one", "two"):
        path.write_text(content, encoding="utf-8")
        with pytest.warns(UserWarning, match="run.pt is damaged .cut short.; it is set aside as run.pt.damaged"):
            aside = files.set_aside(path, "cut short")
        assert not path.exists() and aside.read_text(encoding="utf-8") == content


def test_umap_runs_in_a_container_that_is_read_only(tmp_path: Path) -> None:
    """What numba compiles can be kept neither beside the package nor in the home: it goes to a folder of its own."""
    (tmp_path / "file").touch()
    code = """
import os, sys
from numba.core import caching
caching.CacheImpl._locator_classes = [caching.UserProvidedCacheLocator]  # all that is left on a read-only disk
access = os.access
os.access = lambda path, mode: "site-packages" not in str(path) and access(path, mode)
import torch
from robrep.book.figures import umap_embed
print(umap_embed(torch.rand(12, 3)).shape, os.environ["NUMBA_CACHE_DIR"])
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    for cache, kept in ((tmp_path / "cache", True), (tmp_path / "file" / "cache", False)):
        line = [sys.executable, "-c", code]
        done = subprocess.run(line, capture_output=True, text=True, env=environment | {"ROBREP_CACHE": str(cache)})
        assert done.returncode == 0, done.stderr
        shape, folder = done.stdout.strip().rsplit(" ", 1)
        assert shape == "(12, 2)" and Path(folder).is_dir() == kept == (folder == str(cache / "numba"))


def test_digest() -> None:
    one = {"lr": 0.1, "method": {"a": [1, 2], "b": None}}
    assert digest(one) == digest({"method": {"b": None, "a": [1, 2]}, "lr": 0.1})
    assert len(digest(one)) == 64
    others = [{}, {"lr": 0.1}, {"lr": 0.1, "method": {"a": [2, 1], "b": None}}, {"lr": "0.1"}, {"lr": 1}, {"lr": True}]
    assert len({digest(o) for o in [one, *others]}) == 1 + len(others)
    with pytest.raises(TypeError):
        digest({"x": object()})
    with pytest.raises((TypeError, ValueError)):
        digest({"x": float("nan")})


def test_code_hash_notices_the_library_and_where_asked_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "robrep"
    shutil.copytree(Path(files.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def hashed(kit: bool = False) -> str:
        code_hash.cache_clear()
        return code_hash(kit=kit)

    here = hashed()
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    try:
        assert hashed() == here, "depends on where the package lies"
        assert len(here) == 12
        with_kit = hashed(kit=True)
        (package / "book" / "site" / "more.py").write_text("x = 1\n")
        (package / "notes.txt").write_text("x")
        assert hashed() == here and hashed(kit=True) == with_kit
        (package / "book" / "figures" / "more.py").write_text("x = 1\n")
        assert hashed() == here and hashed(kit=True) != with_kit
        source = package / "losses.py"
        source.write_text(source.read_text() + "\n# more\n")
        changed = hashed()
        assert changed != here
        source.rename(package / "lossess.py")
        assert hashed() not in (here, changed)
        (package / "lossess.py").unlink()
        assert hashed() not in (here, changed)
    finally:
        code_hash.cache_clear()
