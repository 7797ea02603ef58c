"""What is shown while and after something runs: who looks on, what a console can show, and progress."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from typing import Literal

# Words in the command line of the process that started a kernel
BATCH = ("papermill", "nbmake", "pytest", "nbconvert", "jupyter-execute", "sphinx", "jcache", "robrep.book.site",
         "robrep.book.grade")  # fmt: skip
SERVERS = ("jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyter_server", "jupyterhub", "-m jupyterlab",
           "-m notebook")  # fmt: skip
# Environment variables of a kernel that JupyterLab 4, Notebook 7 and JupyterHub, or VS Code started
SESSIONS = ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD")
_PLAIN = {"✓": "+", "✗": "x", "–": "-", "−": "-", "±": "+-", "×": "x", "ε": "eps", "→": "->", "≤": "<=", "≥": ">="}


def started_by() -> str:
    """Command line of the process that started this kernel; empty where the system does not tell."""
    try:
        import psutil  # ipykernel brings it

        parent = os.environ.get("JPY_PARENT_PID") if os.name != "nt" else None  # on Windows it is no process number
        return " ".join(psutil.Process(int(parent or os.getppid())).cmdline())
    except (ImportError, ValueError, OSError, psutil.Error):  # a process of another user, or one that has ended
        return ""


def watched() -> bool:
    """Whether this code runs in an open notebook (Jupyter, VS Code or Colab) and not in a batch run.

    Batch runs (papermill, nbmake, nbconvert) are known by the process that started the kernel, or by ``ROBREP_BATCH``
    in the environment.
    """
    if os.environ.get("ROBREP_BATCH") or not {"ipykernel", "google.colab"} & set(sys.modules):
        return False
    started = started_by()
    if any(word in started for word in BATCH):
        return False
    open_in_code = hasattr(sys.modules.get("__main__"), "__vsc_ipynb_file__")  # where VS Code's kernel is remote
    signs = any(name in os.environ for name in SESSIONS) or any(word in started for word in SERVERS)
    return signs or open_in_code or "google.colab" in sys.modules


def front_end() -> Literal["terminal", "notebook", "batch"]:
    """Where output goes: a terminal, an open notebook, or a log (papermill, nbmake, CI)."""
    return "notebook" if watched() else "terminal" if sys.stderr.isatty() else "batch"


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
        if show and front_end() != "batch":
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
