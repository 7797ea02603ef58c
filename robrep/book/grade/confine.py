"""Run a command with little freedom: ``python confine.py FOLDER MEMORY -- COMMAND ...``

The command, and whatever it starts, may write below FOLDER only, may use MEMORY (GiB), and reaches no network. What
this machine cannot enforce is named on stderr, one line each, and the command runs all the same. No privilege is
needed: Linux's Landlock, a network namespace and resource limits.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FILE_GIB = 1  # the largest file that may be written
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the system calls of Landlock
_WRITE_FILE, _TRUNCATE, _REFER = 1 << 1, 1 << 14, 1 << 13
_SIGNALS_AND_SOCKETS = 3  # scopes: of other processes
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))


def command(folder: Path, memory: float, argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` so; ``memory`` is in GiB."""
    return [sys.executable, __file__, str(folder), f"{memory:g}", "--", *argv]


def not_enforced() -> list[str]:
    """What this machine cannot enforce, in words."""
    with tempfile.TemporaryDirectory() as folder:
        nothing = command(Path(folder), 8, [sys.executable, "-c", ""])
        done = subprocess.run(nothing, capture_output=True, encoding="utf-8", errors="replace", check=False)
        return done.stderr.splitlines()


def limit_memory(gib: float) -> None:
    import resource

    for what, size in ((resource.RLIMIT_DATA, gib), (resource.RLIMIT_FSIZE, FILE_GIB)):
        resource.setrlimit(what, (int(size * 2**30),) * 2)


def cut_network() -> None:
    """A network namespace of its own, in which not even the loopback is up."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(line, encoding="utf-8")


def write_below(folder: Path) -> None:
    """From now on files are made, changed and removed below ``folder`` only (and the null device).

    From Linux 6.12 on, signals reach this process and its own children only.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    version = call(_CREATE, None, ctypes.c_size_t(0), 1)
    rights = _WRITE_FILE | _MAKE_AND_REMOVE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = [rights, 0, _SIGNALS_AND_SOCKETS] if version >= 6 else [rights]  # files, network, scopes
    ruleset = b"".join(right.to_bytes(8, sys.byteorder) for right in handled)
    rules = call(_CREATE, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    for place, allowed in ((folder, rights), (Path(os.devnull), rights & (_WRITE_FILE | _TRUNCATE))):
        at = os.open(place, os.O_PATH)
        below = allowed.to_bytes(8, sys.byteorder) + at.to_bytes(4, sys.byteorder)
        call(_ADD, rules, 1, below, 0)
        os.close(at)
    if libc.prctl(38, 1, 0, 0, 0):  # no new privileges
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    call(_RESTRICT, rules, 0)
    os.close(rules)


def confine(folder: Path, memory: float) -> None:
    """Limit this process; ``memory`` is in GiB."""
    steps = (
        (lambda: limit_memory(memory), "memory is not limited"),
        (cut_network, "the network is not cut"),
        (lambda: write_below(folder), "files can be written anywhere"),
    )
    for step, otherwise in steps:
        try:
            step()
        except (OSError, ImportError, AttributeError, ValueError) as error:
            print(f"{otherwise}: {error}", file=sys.stderr)


def main(arguments: Sequence[str]) -> None:
    """Limit this process, then become the command."""
    folder, memory, _, *argv = arguments
    confine(Path(folder), float(memory))
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
