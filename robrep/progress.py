"""What is shown while something runs."""

from __future__ import annotations

import os
import sys
import time


def in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel, unless ``ROBREP_BATCH`` in the environment marks a batch run
    (papermill, CI)."""
    return bool({"ipykernel", "google.colab"} & set(sys.modules)) and not os.environ.get("ROBREP_BATCH")


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
