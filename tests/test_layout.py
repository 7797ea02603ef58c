"""The repository keeps its own rules: imports go one way, one address, clean notebooks, nothing of a machine."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))

# A module may import those of earlier lines and of its own line.
ORDER = [
    {"checks", "random", "files", "progress", "identity"},
    {"data", "augmentations", "rates"},
    {"gaussians"},
    {"losses", "contrastive"},
    {"information"},
    {"attacks"},
    {"objectives"},
    {"encoders"},
    {"foundation"},
    {"methods"},
    {"optimizers", "checkpoints", "steps"},
    {"training"},
    {"passes"},
    {"heads"},
    {"suites"},
    {"evaluation"},
    {"audit"},
    {"book"},
]
KIT = [  # the same, within robrep.book
    {"files"},
    {"cropd", "early_stopping", "results", "smooth_encoders", "smoothing", "vae_urkle", "worst_case_mi"},
    {"parameters"},
    {"experiment"},
    {"comparison", "costs", "figures"},
    {"exercises"},
    {"lab"},
    {"reproduce", "site"},
    {"grade", "queue"},
    {"project"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


KIT_LEVEL = {name: level for level, names in enumerate(KIT) for name in names}
PAGES_ONLY = {"plotly", "ipywidgets", "umap", "nbformat", "IPython", "papermill", "yaml", "jupyter_book"}
SOURCES = sorted((ROOT / "robrep").rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.relative_to(ROOT / "robrep").parts[0] != "book"]


def imports(path: Path) -> set[str]:
    """The full names of the modules, or of what is taken from them, that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out (from robrep.x import y)"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def imported(path: Path, package: str) -> set[str]:
    """Rooms of ``package`` that a file imports."""
    inside = {name.removeprefix(f"{package}.") for name in imports(path) if name.startswith(f"{package}.")}
    return {name.split(".")[0] for name in inside if not name.startswith("__")}


@pytest.mark.parametrize(("folder", "order"), [("robrep", LEVEL), ("robrep/book", KIT_LEVEL)])
def test_every_room_has_a_level(folder: str, order: dict[str, int]) -> None:
    rooms = {p.parent.name for p in (ROOT / folder).glob("*/*.py")} | {p.stem for p in (ROOT / folder).glob("*.py")}
    rooms.discard("__init__")
    assert rooms == set(order), f"say in the order where these stand: {sorted(rooms ^ set(order))}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT / "robrep").with_suffix("").parts
    if parts == ("__init__",):
        assert not imported(path, "robrep"), "robrep itself imports none of its rooms"
        return
    wrong = {other for other in imported(path, "robrep") if LEVEL[other] > LEVEL[parts[0]]}
    assert not wrong, f"robrep.{parts[0]} imports {sorted(wrong)}, which come after it"
    if parts[0] == "book" and parts[1] != "__init__":
        wrong = {other for other in imported(path, "robrep.book") if KIT_LEVEL[other] > KIT_LEVEL[parts[1]]}
        assert not wrong, f"robrep.book.{parts[1]} imports {sorted(wrong)}, which come after it"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_needs_nothing_that_pages_are_made_with(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & PAGES_ONLY
    assert "importlib" not in path.read_text() or not re.search("|".join(PAGES_ONLY - {"yaml"}), path.read_text())


def test_import_time() -> None:
    """Every room together costs at most one second beyond torch (best of three)."""
    rooms = sorted({path.relative_to(ROOT / "robrep").with_suffix("").parts[0] for path in LIBRARY} - {"__init__"})
    code = (
        "import time, torch, torch.utils.data\nstart = time.perf_counter()\n"
        + "".join(f"import robrep.{room}\n" for room in rooms)
        + "print(time.perf_counter() - start)"
    )
    seconds = 99.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds = min(seconds, float(done.stdout))
        if seconds <= 1:
            break
        time.sleep(1)
    assert seconds <= 1, f"import of robrep's modules takes {seconds:.2f} s beyond torch"


def test_one_repository_address() -> None:
    """_config.yml holds it; everything else that must repeat it agrees."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    address = config["repository"]["url"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Repository"] == address
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == address
    for path in [*NOTEBOOKS, *sorted((ROOT / "book").rglob("*.md")), ROOT / "README.md"]:
        text = path.read_text() if path.exists() else ""
        for found in re.findall(r"git\+(https?://[^\s\"'`\\)@]+)", text):
            assert found.removesuffix(".git") == address, f"{path.name} installs from {found}"
        if path.suffix == ".ipynb" and "git+" in text:
            assert "robrep[book] @ git+" in text, f"{path.name} installs the library without what the pages need"
        for image in re.findall(r'og:image": "([^"]+)"', text):
            place = f"{address}/raw/{config['repository']['branch']}/"
            assert image.startswith(place) and (ROOT / image.removeprefix(place)).is_file()


def test_one_version() -> None:
    import robrep

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == robrep.__version__
    assert f"## {robrep.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_requirements() -> None:
    """Lower bounds only, but for jupyter-book and the grammar checker; the library's own as in pyproject.toml."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    lines = [line for line in lines if line]
    for line in lines:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+(,<2)?", line) or line.startswith("harper-py=="), line
        assert line.endswith(",<2") == line.startswith("jupyter-book"), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*project["dependencies"], *extras["book"]} <= set(lines)
    assert {*extras["autoattack"], *extras["foundation"]} <= set(extras["book"]), "the chapters use both"
    assert len(project["dependencies"]) <= 9, "the library stays thin"


def test_the_library_declares_what_it_imports() -> None:
    """A package that only an extra brings is imported by ``checks.optional``, which says what to install."""
    names = {"scikit-learn": "sklearn", "lightning-fabric": "lightning_fabric"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    own = {"robrep", "PIL", "psutil"} | {names.get(name, name) for name in declared}  # torchvision brings Pillow
    for path in LIBRARY:
        others = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - own
        assert not others, f"{path} imports {sorted(others)}, which pyproject.toml does not list"


@pytest.mark.slow
def test_wheel_carries_the_records(tmp_path: Path) -> None:
    """What ``pip install`` from a git address gives (as in Colab): typed, with the runs and the published numbers."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than 77: pip install --upgrade setuptools")
    copy, wheels, installed = (tmp_path / name for name in ("copy", "wheels", "installed"))  # a build leaves traces
    for name in ("robrep", "book/results", "book/published"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "LICENSE-TEXT"):
        shutil.copy2(ROOT / name, copy / name)
    run = copy / "book" / "results" / "another" / "demo-digits-row-0"
    run.parent.mkdir()
    run.with_suffix(".safetensors").write_bytes(b"weights")
    some = next((ROOT / "book" / "results").rglob("*.json"), None)
    if some:
        shutil.copy2(some, run.with_suffix(".json"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--disable-pip-version-check", "--wheel-dir", str(wheels), str(copy)], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    assert (installed / "robrep" / "py.typed").is_file()
    for kind in ("results", "published"):
        carried, own = installed / "robrep" / "_recorded" / kind, copy / "book" / kind
        assert {path.relative_to(carried): path.read_bytes() for path in carried.rglob("*") if path.is_file()} == {
            path.relative_to(own): path.read_bytes()
            for path in own.rglob("*")
            if path.suffix in (".json", ".safetensors")
        }
    code = (
        "import robrep\nfrom robrep.book import results\n"
        "print(robrep.__file__, results.recorded_folder(), *results.papers(), "
        "len(results.runs('vae_urkle')), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("ROBREP_RESULTS", None)
    environment |= {"ROBREP_DATA": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "share")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    file, folder, *papers, count = done.stdout.split("\n")[:-1]
    assert Path(file).is_relative_to(installed) and Path(folder).is_relative_to(installed)
    assert papers == sorted(path.stem for path in (ROOT / "book" / "published").glob("*.json"))
    assert int(count) == len(list((copy / "book" / "results" / "vae_urkle").glob("*.json")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(path: Path) -> None:
    """No outputs, one cell of parameters that nbmake turns to smoke scale, the kernel that papermill is given."""
    nb = json.loads(path.read_text())
    ids = [cell.get("id") for cell in nb["cells"]]
    assert all(ids) and len(set(ids)) == len(ids), "every cell has an id of its own"
    code = [cell for cell in nb["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        assert not cell["outputs"] and cell["execution_count"] is None, "committed with outputs"
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged 'parameters'"
    if re.search(r"^SCALE\b", "".join(tagged[0]["source"]), re.MULTILINE):
        assert tagged[0]["metadata"].get("nbmake", {}).get("mock", {}).get("SCALE") == "smoke"
    assert nb["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_reader_sees_at_most_250_lines_of_code(path: Path) -> None:
    """Cells that are folded, or that the page leaves out, do not count."""
    seen = 0
    for cell in json.loads(path.read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and not any(tag.startswith(("hide-", "remove-")) for tag in tags):
            seen += sum(bool(line.strip()) for line in "".join(cell["source"]).splitlines())
    assert seen <= 250


def test_nothing_of_a_machine() -> None:
    """No file names a folder of somebody's machine, or a package index."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    wrong = re.compile(r"(?<![\w.])/(?:home|Users|work|root|tmp|opt|mnt)/\w|index-url|files\.pythonhosted\.org")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name == "tests/test_layout.py" or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        assert not (found := wrong.search(text)), f"{name}: {text[max(0, found.start() - 40) : found.end() + 40]!r}"
