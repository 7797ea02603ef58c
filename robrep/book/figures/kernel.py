"""What needs a running kernel: widgets, made only in an open notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from robrep.progress import watched


def live() -> bool:
    """Whether this code runs in an open notebook (Jupyter, VS Code or Colab) and not in a batch run.

    Papermill, nbmake and nbconvert run notebooks without a front end; a widget made there can hang the run.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and "PYTEST_CURRENT_TEST" not in os.environ and watched()


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
