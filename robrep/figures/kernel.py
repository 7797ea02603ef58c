"""What needs a running kernel: widgets, made only where somebody sees them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def _started_by() -> str:
    """Command line of the process that started this kernel; empty where the system does not tell."""
    try:
        return Path("/proc", os.environ.get("JPY_PARENT_PID") or str(os.getppid()), "cmdline").read_text(
            "utf8", "replace"
        )
    except OSError:  # no Linux, or a process of another user
        return ""


def live() -> bool:
    """Whether this code runs in a notebook that somebody sees: JupyterLab, Jupyter Notebook or Colab, and no batch run.

    Papermill, nbmake and nbconvert run notebooks without a front end; a widget made there can hang the run. They are
    known by the process that started the kernel (where the system tells it) or by ``ROBREP_BATCH`` in the environment.
    """
    if os.environ.get("ROBREP_BATCH") or "PYTEST_CURRENT_TEST" in os.environ:
        return False
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return False
    if any(tool in _started_by() for tool in ("papermill", "nbmake", "pytest", "nbconvert", "robrep.site")):
        return False
    return "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules


def control(fn: Callable[..., Any], /, **sliders: Sequence[Any]) -> Any:
    """In a live notebook, sliders that call ``fn`` and show what it returns; on a page or in a batch run nothing.

    Args:
        fn: called with one value for each slider; computes something and returns a figure, or anything to display.
        sliders: name -> the values to choose from, shown in order; the first is chosen at the start.

    Returns:
        A widget to leave as the last line of a cell, or None where no front end would show it.

    Raises:
        ValueError: a slider without values.
    """
    for name, values in sliders.items():
        if len(values) == 0:
            raise ValueError(f"slider {name!r} has no values, expected at least one")
    if not live():
        return None
    import ipywidgets
    from IPython.display import display

    output = ipywidgets.Output()
    handles = {
        name: ipywidgets.SelectionSlider(options=list(values), description=name, continuous_update=False)
        for name, values in sliders.items()
    }

    def show(_: Any = None) -> None:
        with output:
            output.clear_output(wait=True)
            display(fn(**{name: handle.value for name, handle in handles.items()}))

    for handle in handles.values():
        handle.observe(show, names="value")
    show()
    return ipywidgets.VBox([*handles.values(), output])
