"""What is shown while something runs, and what a console can show."""

from __future__ import annotations

import os
import sys
import time
import unicodedata

_PLAIN = {"✓": "+", "✗": "x", "–": "-", "−": "-", "±": "+-", "×": "x", "ε": "eps", "→": "->", "≤": "<=", "≥": ">="}


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel, unless ``ROBREP_BATCH`` in the environment marks a batch run
    (papermill, CI)."""
    return bool({"ipykernel", "google.colab"} & set(sys.modules)) and not os.environ.get("ROBREP_BATCH")


def printable(text: str) -> str:
    """``text`` as standard output can show it: signs that its encoding lacks become plain ones, "✓" a "+" in ASCII."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return "".join(_shown(sign, encoding) for sign in text)


def _shown(sign: str, encoding: str) -> str:
    for candidate in (sign, _PLAIN.get(sign, ""), unicodedata.normalize("NFKD", sign)):
        kept = candidate.encode(encoding, "ignore").decode(encoding)
        if kept:
            return kept
    return "?"


class Progress:
    """A bar in a terminal or an open notebook; in a log, one line on stderr every ten seconds and one at the end.

    Args:
        what: what is under way.
        total: number of units.
        unit: their name.
        show: False for silence.
    """

    def __init__(self, what: str, total: int, unit: str = "step", show: bool = True) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.began, self.spoke, self.bar, self.show = 0, time.monotonic(), time.monotonic(), None, show
        if show and (in_notebook() or sys.stderr.isatty()):
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, n: int = 1, text: str = "") -> None:
        """``n`` more units are done; ``text`` is shown beside the count."""
        self.done += n
        if not self.show:
            return
        if self.bar is not None:
            if text:
                self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(n)
            return
        now = time.monotonic()
        if self.done >= self.total or now - self.spoke > 10:
            self.spoke = now
            line = f"{self.what}: {self.unit} {self.done}/{self.total}, {now - self.began:.0f} s"
            print(f"{line}, {text}" if text else line, file=sys.stderr, flush=True)
