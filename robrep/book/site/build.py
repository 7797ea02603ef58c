"""Builds the site from the pages and the executed chapters, then makes it small and free of other hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path

import yaml

from robrep.book.site import slides
from robrep.book.site.run import file_hash, last_run, strip_ansi
from robrep.files import code_hash, digest

PACKAGES = (
    "jupyter-book",
    "sphinx",
    "myst-nb",
    "sphinx-book-theme",
    "pydata-sphinx-theme",
    "plotly",
    "sphinx-revealjs",
)
ROOT_FILES = ("_config.yml", "_toc.yml", "CHANGELOG.md", "README.md", "CITATION.cff", "LICENSE", "LICENSE-TEXT")
LAB = Path(__file__).parent.parent / "lab"  # its scripts, and what writes its networks
NOT_PAGES = {"__pycache__", ".ipynb_checkpoints", "results"}  # folders of book/ that hold no page and no asset

# MathJax's one-file build and what it may load later: its fonts and the rarer TeX macros
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2/", "input/tex/extensions/")
MATHJAX_LEFT_OUT = ("all-packages.js", "mhchem.js", "physics.js")

# Copied by the theme and its extensions, used by no page: maps for debuggers, the fonts' second format, MathJax's
# loader for another host, scripts for live kernels that are switched off.
UNUSED = ("*.map", "*.ttf", "*.LICENSE.txt", "sphinx-thebe.*", "webpack-macros.html", ".buildinfo*", "objects.inv")
REWRITTEN_HTML = (
    # sphinx-thebe's settings come twice on every page, which is a script error, and its other parts serve live kernels
    (re.compile(r"""<script[^>]*\bsrc="[^"]*sphinx-thebe[^"]*"[^>]*></script>\s*"""), ""),
    (re.compile(r"""<link[^>]*\bhref="[^"]*sphinx-thebe[^"]*"[^>]*/?>\s*"""), ""),
    (re.compile(r"""<script>const THEBE_JS_URL.*?</script>\s*""", re.DOTALL), ""),
    (re.compile(r"""<script type="text/x-thebe-config">.*?</script>\s*""", re.DOTALL), ""),
    (re.compile(r"""<script>kernelName = .*?</script>\s*""", re.DOTALL), ""),
    # what a screen reader needs: a name for the arrow that unfolds a part of the contents, items for a list
    (re.compile(r"""<summary>(?=<span class="toctree-toggle")"""), '<summary aria-label="Pages of this part">'),
    (re.compile(r'role="doc-biblioentry"'), 'role="listitem"'),
    # ... and a landmark around the title in the sidebar
    (
        re.compile(r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)'),
        '<div class="sidebar-primary-item" role="navigation" aria-label="Title page">',
    ),
    # folded code says what unfolds, to a screen reader too
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r"(Show|Hide) code cell content"), r"\1 the solution"),
    (re.compile(r"(Show|Hide) code cell source"), r"\1 the code"),
)

SOLUTION = re.compile(r"^```\{solution\}.*?^```\n", re.DOTALL | re.MULTILINE)  # on a page in Markdown

READING = re.compile(r"(<strong>Reading</strong>(?:(?!</p>).)*)", re.DOTALL)  # the last line of a chapter's objectives

# A number and its % stay on one line, but for code and scripts, which are to be copied as they are
VERBATIM = re.compile(r"(<(pre|script|style)\b.*?</\2>)", re.DOTALL)
PERCENT = re.compile(r"(?<=\d) %(?![\w%])")


class SiteError(Exception):
    """The site cannot be built; the message is ready to be shown."""


def pages(root: Path) -> list[Path]:
    """The files that the table of contents names, in order.

    Raises:
        SiteError: a page of the table of contents is missing.
    """
    found = []

    def walk(entry: object) -> None:
        if isinstance(entry, list):
            for each in entry:
                walk(each)
        elif isinstance(entry, dict):
            for name in [entry[key] for key in ("root", "file") if key in entry]:
                at = [root / f"{name}{suffix}" for suffix in (".ipynb", ".md") if (root / f"{name}{suffix}").is_file()]
                if not at:
                    raise SiteError(f"_toc.yml names {name}, but there is no {name}.md and no {name}.ipynb")
                found.append(at[0])
            for key in ("parts", "chapters", "sections"):
                walk(entry.get(key))

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return found


def notebooks(root: Path) -> dict[str, Path]:
    """Name and file of every notebook of the book, in the order of the table of contents."""
    return {path.stem: path for path in pages(root) if path.suffix == ".ipynb"}


def book_files(root: Path) -> list[Path]:
    """Every file of ``book`` that the site is made from."""
    files = (path for path in sorted((root / "book").rglob("*")) if path.is_file())
    return [path for path in files if not NOT_PAGES & set(path.relative_to(root).parts)]


def without_solutions(notebook: str) -> str:
    """A notebook's text without the cells tagged ``solution``."""
    nb = json.loads(notebook)
    nb["cells"] = [cell for cell in nb["cells"] if "solution" not in cell["metadata"].get("tags", [])]
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def with_every_figure(notebook: str) -> str:
    """A notebook's text in which every numbered figure has an output, so that references to it find their number.

    A chapter that has not run has no figures, and one that ran at a small scale may lack some.
    """
    nb = json.loads(notebook)
    for cell in nb["cells"]:
        shown = {output["output_type"] for output in cell.get("outputs", [])} & {"display_data", "execute_result"}
        if "figure" in cell["metadata"].get("mystnb", {}) and not shown:
            told = {"text/plain": "The figure appears here once the chapter has run."}
            cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": told})
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def copy_page(path: Path, target: Path, solutions: bool) -> None:
    """Copy a file of the book; a notebook or a page loses its solutions unless they are wanted."""
    if path.suffix == ".ipynb" and not solutions:
        target.write_text(without_solutions(path.read_text(encoding="utf-8")), encoding="utf-8")
    elif path.suffix == ".md" and not solutions:
        target.write_text(SOLUTION.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        shutil.copy2(path, target)


def site_key(root: Path, build: Path, solutions: bool = True) -> str:
    """Hash of all that the site is made from: pages, assets, settings, executed chapters, docstrings, the builder."""
    files = book_files(root) + [root / name for name in ROOT_FILES if (root / name).is_file()]
    files += sorted(Path(__file__).parent.glob("*.py"))
    files += sorted(path for path in LAB.rglob("*") if path.suffix in (".py", ".js", ".css"))
    files += sorted((root / "book" / "results").rglob("*.safetensors"))  # the lab's networks
    content = [[os.path.relpath(path, root), file_hash(path)] for path in files]
    done = [path.name for name, path in notebooks(root).items() if last_run(name, build)]
    runs = {name: file_hash(build / "runs" / name) for name in done}
    return digest([content, runs, solutions, code_hash(kit=True), {package: version(package) for package in PACKAGES}])


def assemble(root: Path, build: Path, source: Path, solutions: bool = True) -> None:
    """Fill ``source`` with what Sphinx reads: pages, executed chapters in place of notebooks, the scripts served.

    Solutions are left out here, of chapters that ran with them, so that both forms of the site share one run.
    """
    for name in ROOT_FILES:
        if (root / name).is_file():
            shutil.copy2(root / name, source / name)
    for path in book_files(root):
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        executed = path.suffix == ".ipynb" and last_run(path.stem, build) is not None
        copy_page(build / "runs" / path.name if executed else path, target, solutions)
        if path.suffix == ".ipynb":
            target.write_text(with_every_figure(target.read_text(encoding="utf-8")), encoding="utf-8")
    assets = source / "book" / "_assets"
    assets.mkdir(parents=True, exist_ok=True)
    import plotly

    from robrep.book.lab import export as lab

    lab.write(assets / "lab", root / "book" / "results")
    shutil.copy2(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", assets / "plotly.min.js")
    slides.copy_reveal(assets / "reveal")
    for file in distribution("sphinx-mathjax-offline").files or []:
        part = file.as_posix().partition("/static/mathjax/")[2]
        if part.startswith(MATHJAX_PARTS) and not part.endswith(MATHJAX_LEFT_OUT):
            target = assets / "mathjax" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(Path(str(file.locate())), target)


def sphinx(source: Path, output: Path) -> None:
    """Run Jupyter Book with warnings as errors.

    Raises:
        SiteError: with the warnings, their files named as in the repository.
    """
    jb = Path(sys.executable).parent / "jb"
    command = [str(jb), "build", str(source), "--path-output", str(output), "--all", "-W", "--keep-going", "-q"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    if done.returncode:
        text = strip_ansi(done.stdout + done.stderr)
        text = text.replace(f"{source.resolve()}/", "").replace(f"{source}/", "")
        lines = [line for line in text.splitlines() if re.search("WARNING|ERROR|CRITICAL|Error:", line)]
        raise SiteError(
            "the site has warnings, which count as errors:\n"
            + "\n".join(dict.fromkeys(lines or text.splitlines()[-30:]))
        )


def bound_percents(text: str) -> str:
    """A page with a no-break space between a number and its %."""
    parts = VERBATIM.split(text)  # text, verbatim, its tag, text, ...
    return "".join(PERCENT.sub("\u00a0%", part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 < 2)


def finish(html: Path, root: Path, solutions: bool = True) -> None:
    """Strip what no page uses, name what has no name, offer the notebooks for download as the repository has them."""
    for pattern in UNUSED:
        for path in html.rglob(pattern):
            path.unlink()
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for written, replacement in REWRITTEN_HTML:
            text = written.sub(replacement, text)
        path.write_text(bound_percents(text), encoding="utf-8")
    for path in (html / "_sources").rglob("*.ipynb"):
        copy_page(root / path.relative_to(html / "_sources"), path, solutions)


def write_decks(root: Path, build: Path, html: Path) -> None:
    """Write the decks of the chapters that have slides to ``html / "slides"``, and link each from its chapter.

    Raises:
        SiteError: a cell cannot be put on a slide.
    """
    bibliography = root / "book" / "references.bib"
    works = slides.cited(bibliography.read_text(encoding="utf-8")) if bibliography.is_file() else {}
    folder = html / "slides"
    folder.mkdir()
    for name, path in notebooks(root).items():
        if not slides.has_slides(path):
            continue
        page = html / path.relative_to(root).with_suffix(".html")
        text = page.read_text(encoding="utf-8")
        run = build / "runs" / path.name if last_run(name, build) else None
        try:
            deck = slides.deck(path, run, slides.page_numbers(text) | works)
        except slides.SlideError as error:
            raise SiteError(str(error)) from None
        (folder / f"{name}.html").write_text(bound_percents(deck), encoding="utf-8")
        link = rf'\1 <a href="../slides/{name}.html">Slides of this chapter</a>.'
        page.write_text(READING.sub(link, text, count=1), encoding="utf-8")


def weights(html: Path) -> dict[str, float]:
    """Megabytes of the site: plotly, MathJax, the lab, which loads what a reader asks for, and the rest."""
    size = {"plotly": 0.0, "MathJax": 0.0, "lab": 0.0, "pages": 0.0}
    for path in html.rglob("*"):
        if path.is_file():
            parts = path.relative_to(html).parts
            kind = "plotly" if path.name == "plotly.min.js" else "MathJax" if "mathjax" in parts else "pages"
            kind = "lab" if parts[:2] == ("_static", "lab") else kind
            size[kind] += path.stat().st_size / 1e6
    return size


def build_site(root: Path, build: Path, solutions: bool = True) -> bool:
    """Build ``build/html`` unless nothing it is made from has changed.

    Args:
        root: the repository.
        build: the build folder, with the executed chapters in ``runs``.
        solutions: whether the exercises' solutions are shown.

    Returns:
        Whether it was built now (False: unchanged).

    Raises:
        SiteError: a page is missing, Sphinx warned, or a cell cannot be put on a slide.
    """
    html, note = build / "html", build / "html.key"
    key = site_key(root, build, solutions)
    if note.is_file() and note.read_text(encoding="utf-8") == key and (html / "index.html").is_file():
        return False
    build.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix="site-") as folder:
        source, output = Path(folder) / "source", Path(folder) / "output"
        source.mkdir()
        assemble(root, build, source, solutions)
        sphinx(source, output)
        made = output / "_build" / "html"
        finish(made, root, solutions)
        write_decks(root, build, made)
        note.unlink(missing_ok=True)
        shutil.rmtree(html, ignore_errors=True)
        made.rename(html)
    note.write_text(key, encoding="utf-8")
    return True
