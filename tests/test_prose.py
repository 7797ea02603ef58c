"""The voice of the book: no phrase that native readers stumbled over, and no misspelt word."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# regular expression -> what to write instead
STUMBLES = {
    r"\b(nobody|somebody|whoever)\b": "name the subject, or use the passive",
    r"\bnobody knows\b": "unknown",
    r"\b(meanwhile|lest|thereof|whereof)\b": "temporarily; so that not",
    r"\btold? apart\b|\btell\w* \w+ apart\b": "distinguish",
    r"\bhangs? on (?:the|its|how|what)\b|\bnot hang on\b": "depends on",
    r"\bminds\b(?! are)": "is sensitive to",
    r"\bthe prints?\b(?! (?:statement|button))|\bin print\b": "the paper; in the published papers",
    r"\bby heart\b|\bby the handful\b|\bhow-manieth\b": "memorised; small subsets; rank",
    r"\bis no (?:measurement|number|defence|robustness|module|result)\b|\bwhat is none\b": "is not a",
    r"\bis brought back\b": "is projected back",
    r"\bhas nowhere to go\b|\bis not a detail\b": "never moves; is essential",
    r"\bcompany (?:an|the) image\b": "depends on the rest of the batch",
    r"\banswers? an image with\b": "maps an image to",
    r"\bsilliest\b|\bhardly anything\b|\bkeeps? silent\b": "trivially; almost nothing",
    r"\btold worst\b|\bmay touch\b|\bmust touch\b": "hardest to match; frozen",
    r"\b(?:head|classifier) reads (?:\{|\d|off)": "a linear head classifies correctly",
    r"\bhave just been drawn\b|\bjust drawn networks?\b": "freshly initialised",
    r"\bmakes the points more\b": "increases n",
    r"\bis secrecy and no\b": "is secrecy, not",
    r"\bholds? the numbers\b|\bholds? (?:it|them) against\b": "compares with",
    r"(?-i:\bSo it is\b)|\bthat is all\b": "say what, in a full sentence",
    r"\bis at home\b|\bgoes without saying\b|\bto be had\b": "say it plainly",
    r"\bbad attack makes\b": "a weak attack inflates it",
    r"\btries to fool the model\b": "under attack",
}


def words_of_code(source: str) -> Iterator[str]:
    """The docstrings, messages and comments of Python source: whatever a reader may come to read."""
    for line in source.splitlines():
        if (comment := re.search(r"(?:^|\s)# (.*)", line)) and "noqa" not in line:
            yield comment.group(1)
    try:
        tree = ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.MULTILINE))
    except SyntaxError as error:
        raise AssertionError(f"not Python: {source[:80]!r}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def prose(path: Path) -> str:
    """What a page or a module says, in one line."""
    if path.suffix == ".ipynb":
        texts = []
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            texts += [source] if cell["cell_type"] == "markdown" else words_of_code(source)
            texts.append(cell["metadata"].get("mystnb", {}).get("figure", {}).get("caption", ""))
    elif path.suffix == ".py":
        texts = list(words_of_code(path.read_text()))
    else:
        texts = [path.read_text()]
    return re.sub(r"\s+", " ", "\n".join(texts))


PAGES = sorted(
    path
    for pattern in ("*.md", "book/*.md", "book/*.ipynb", "book/api/*.md", "book/settings/*.yaml", "robrep/**/*.py")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_phrase_that_readers_stumbled_over(path: Path) -> None:
    said = prose(path)
    found = [
        f"{said[max(0, at.start() - 40) : at.end() + 40]!r}: write instead: {instead}"
        for phrase, instead in STUMBLES.items()
        for at in re.finditer(phrase, said, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_the_phrases_are_found() -> None:
    """Each expression finds something: STYLE's examples, as they stood on the pages."""
    said = (
        "Nobody knows, whoever hangs on the print. Meanwhile they are told apart; the test minds it. By heart."
        " It is no measurement. The point is brought back, has nowhere to go, in the company an image is in. It"
        " answers an image with a Gaussian for the silliest of reasons; the model that nobody may touch. The head"
        " reads 79.6 %. Networks that have just been drawn. The slider makes the points more. It is secrecy and no"
        " robustness. It holds the numbers it obtains against them. So it is. It is at home. A bad attack makes it"
        " large, when somebody tries to fool the model."
    )
    assert [phrase for phrase in STUMBLES if not re.search(phrase, said, re.IGNORECASE)] == []
