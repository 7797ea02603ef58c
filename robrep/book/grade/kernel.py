"""A Jupyter kernel that the grader talks to: confined, with a clock, and allowed to die."""

from __future__ import annotations

import ast
import os
import queue
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import robrep
from robrep.book.grade.confine import command

STARTING = 120  # seconds
LEAVING = 10  # seconds that an interrupted cell has to end in


class Lost(BaseException):  # not an Exception: no check shall take it for the participant's
    """The kernel gave no answer: it ran out of time, or is gone."""


class Kernel:
    """A kernel in a scratch folder of its own, for a ``with`` statement.

    Args:
        memory: what it may use, GiB.
        environment: variables beside those of this process.
    """

    def __init__(self, memory: float, environment: dict[str, str]) -> None:
        self.memory, self.environment = memory, environment

    def __enter__(self) -> Kernel:
        from jupyter_client import KernelManager
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

        self._folder = tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True)
        scratch = Path(self._folder.name).resolve()
        quiet = ["--log-level=CRITICAL"]  # the kernel's own warnings are not the participant's
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", *quiet]

        class Ours(KernelSpecManager):
            def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
                return KernelSpec(argv=command(scratch, memory, launch), language="python", display_name=kernel_name)

        memory = self.memory
        own = {name: str(scratch) for name in ("HOME", "TMPDIR", "IPYTHONDIR", "XDG_CACHE_HOME", "ROBREP_CACHE")}
        self.manager = KernelManager(
            kernel_spec_manager=Ours(), transport="ipc", ip=str(scratch / "k"), connection_file=str(scratch / "k.json")
        )
        path = os.pathsep.join(
            [str(Path(robrep.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        own["PYTHONPATH"] = path  # this robrep, wherever the grader was started
        self.manager.start_kernel(cwd=str(scratch), env={**os.environ, **own, **self.environment})
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=STARTING)
        except RuntimeError as error:
            self.__exit__()
            raise Lost(f"the kernel did not start: {error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self._folder.cleanup()

    def run(self, code: str, seconds: float, expression: str = "") -> tuple[str, str]:
        """Execute code; the text of an expression evaluated after it, and the first line of an error ("" if none).

        Raises:
            Lost: the time is over, or the kernel is gone.
        """
        asked = {"it": expression} if expression else {}
        sent = self.client.execute(
            code, store_history=False, user_expressions=asked, allow_stdin=False, stop_on_error=False
        )
        try:
            reply = self._reply(sent, seconds)
        except queue.Empty:
            self.manager.interrupt_kernel()
            try:
                self._reply(sent, LEAVING)
            except (queue.Empty, Lost):
                self.manager.shutdown_kernel(now=True)
            raise Lost(f"it took more than {seconds:g} seconds") from None
        if reply["status"] != "ok":
            return "", f"{reply.get('ename', 'error')}: {reply.get('evalue', '')}".splitlines()[0]
        found = reply["user_expressions"].get("it", {})
        if expression and found.get("status") != "ok":
            return "", f"{found.get('ename', 'error')}: {found.get('evalue', '')}".splitlines()[0]
        return found.get("data", {}).get("text/plain", ""), ""

    def ask(self, expression: str, seconds: float) -> str:
        """The text that an expression gives.

        Raises:
            Lost: as :meth:`run`, or the expression gives no text.
        """
        text, error = self.run("", seconds, expression)
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if not isinstance(value, str):
            raise Lost(error or "the notebook has changed how the grader asks")
        return value

    def _reply(self, sent: str, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while True:
            if not self.manager.is_alive():
                raise Lost("the notebook has ended its kernel")
            left = end - time.monotonic()
            try:
                message = self.client.get_shell_msg(timeout=max(0.01, min(1.0, left)))
            except queue.Empty:
                if left <= 0:
                    raise
                continue
            if message["parent_header"].get("msg_id") == sent:
                return message["content"]
