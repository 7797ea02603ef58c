"""Who looks on: an open notebook or a batch run."""

from __future__ import annotations

import os
import sys

from robrep.progress import in_notebook

# Words in the command line of the process that started a kernel
BATCH = ("papermill", "nbmake", "pytest", "nbconvert", "jupyter-execute", "sphinx", "jcache", "robrep.book.site",
         "robrep.book.grade")  # fmt: skip
SERVERS = ("jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyter_server", "jupyterhub", "-m jupyterlab",
           "-m notebook")  # fmt: skip
# Environment variables of a kernel that JupyterLab 4, Notebook 7 and JupyterHub, or VS Code started
SESSIONS = ("JPY_SESSION_NAME", "VSCODE_PID", "VSCODE_CWD")


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
    if not in_notebook():
        return False
    started = started_by()
    if any(word in started for word in BATCH):
        return False
    open_in_code = hasattr(sys.modules.get("__main__"), "__vsc_ipynb_file__")  # where VS Code's kernel is remote
    signs = any(name in os.environ for name in SESSIONS) or any(word in started for word in SERVERS)
    return signs or open_in_code or "google.colab" in sys.modules
