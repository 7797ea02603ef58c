"""The commands behind the make targets.

python -m robrep.book.site book [CHAPTER ...] [NAME=value ...]    run the chapters that changed, then build the site
python -m robrep.book.site run [CHAPTER ...] [NAME=value ...]     only run
python -m robrep.book.site build                                  only build
python -m robrep.book.site course [NAME=value ...]                book, then what a teacher hands out
python -m robrep.book.site sweeps [CHAPTER ...]                   run the recorded sweeps

NAME is a parameter of the chapters, or SOLUTIONS (yes or no; of book and build), which leaves the exercises' solutions
out of the site: the pages, and the notebooks offered for download; or COURSE_URL (of course), the address of the folder
that students open their notebooks from.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path

from robrep.book.files import why_not_writable
from robrep.book.site import course
from robrep.book.site.build import SiteError, build_site, notebooks, weights
from robrep.book.site.run import (
    INTERRUPTED,
    SIGNALS,
    SMALL,
    ChapterError,
    Run,
    in_worker,
    listen,
    memory_settings,
    parameters,
    read_notebook,
    run_chapter,
)

SWEEP_SECONDS = 30 * 60


def choose(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """The notebooks asked for (all, if none is named).

    Raises:
        ChapterError: a name that is no notebook of the table of contents.
    """
    every = notebooks(root)
    for name in names:
        if name not in every:
            raise ChapterError(f"unknown chapter {name}; the notebooks of the book are {', '.join(every)}")
    return {name: every[name] for name in names or every}


def run(root: Path, names: Sequence[str], given: Mapping[str, str]) -> None:
    """Run chapters, two side by side at the small scales; one progress line each, when it ends.

    A parameter must be known to every chapter that is named; when none is named, to one at least, and a page without
    it runs as it is.
    """
    chosen = choose(root, names)
    known = {name: parameters(read_notebook(path), name) for name, path in chosen.items()}
    for parameter in given:
        if not names and not any(parameter in each for each in known.values()):
            every = sorted({each for defaults in known.values() for each in defaults})
            raise ChapterError(f"unknown parameter {parameter}; the chapters' parameters are {', '.join(every)}")
    values = {name: {k: v for k, v in given.items() if names or k in known[name]} for name in chosen}
    scales = {values[name].get("SCALE", known[name].get("SCALE", "")) for name in chosen}
    width = max((len(name) for name in chosen), default=0)
    for number, (name, found) in enumerate(finished(chosen, values, root / "_build", workers(scales)), 1):
        print(f"chapter {number}/{len(chosen)}  {name:<{width}}  ", end="", flush=True)
        if isinstance(found, ChapterError):
            print("FAILED", flush=True)
            raise found
        done, now = found
        state = f"{done.seconds:.1f} s" if now else f"unchanged (took {done.seconds:.1f} s)"
        print(f"{done.scale:<5}  {done.cells:>3} cells  {state}", flush=True)


def workers(scales: Collection[str]) -> int:
    """How many chapters run side by side: two, where each of them computes on one thread and there are two cores."""
    small = set(scales) <= {"", *SMALL}
    return 2 if small and (os.cpu_count() or 1) > 1 else 1


def finished(
    chosen: Mapping[str, Path], values: Mapping[str, Mapping[str, str]], build: Path, side_by_side: int
) -> Iterator[tuple[str, tuple[Run, bool] | ChapterError]]:
    """Run chapters and give each one's name and outcome as it ends. After an error no other chapter begins."""
    if side_by_side == 1 or len(chosen) == 1:
        for name, path in chosen.items():
            try:
                yield name, run_chapter(path, build, values[name])
            except ChapterError as error:
                yield name, error
        return
    with ProcessPoolExecutor(side_by_side, mp_context=get_context("spawn"), initializer=listen) as pool:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a worker inherits it until it listens
        names = {pool.submit(in_worker, path, build, values[name]): name for name, path in chosen.items()}
        signal.signal(signal.SIGINT, before)
        try:
            for future in as_completed(names):
                problem = future.exception()
                if problem is not None and not isinstance(problem, ChapterError):
                    raise problem
                yield names[future], problem or future.result()
        except KeyboardInterrupt:
            for worker in active_children():  # a terminal signals them too; a signal to one process does not
                if worker.pid:
                    os.kill(worker.pid, signal.SIGINT)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def check_words(command: str, names: Sequence[str], given: dict[str, str]) -> bool:
    """Take ``SOLUTIONS`` out of ``given``; refuse what ``command`` would ignore.

    Returns:
        Whether the site shows the solutions.

    Raises:
        ChapterError: another value than yes or no, or a word that says nothing to this command.
    """
    if "SOLUTIONS" in given and command not in ("book", "build"):
        raise ChapterError(f"SOLUTIONS is a setting of the site: it goes with book or build, not with {command}")
    text = given.pop("SOLUTIONS", "yes")
    if text not in ("yes", "no"):
        raise ChapterError(f"SOLUTIONS={text}: expected yes or no")
    if (given and command in ("build", "sweeps")) or (names and command == "build"):
        raise ChapterError(f"{command} takes no {next(iter(given), None) or names[0]}")
    return text == "yes"


def take_address(command: str, given: dict[str, str]) -> str:
    """Take ``COURSE_URL`` out of ``given``.

    Raises:
        ChapterError: it is not an address, or says nothing to this command.
    """
    if "COURSE_URL" in given and command != "course":
        raise ChapterError(f"COURSE_URL is a setting of the course: it goes with course, not with {command}")
    return course.check_address(given.pop("COURSE_URL", ""))


def site(root: Path, solutions: bool) -> None:
    """Build the site and say what it weighs and where it is."""
    start = time.perf_counter()
    built = build_site(root, root / "_build", solutions)
    size = ", ".join(f"{kind} {megabytes:.1f} MB" for kind, megabytes in weights(root / "_build" / "html").items())
    print(f"site  {f'{time.perf_counter() - start:.1f} s' if built else 'unchanged'}  ({size})", flush=True)


def sweeps(root: Path, names: Sequence[str]) -> None:
    """Run the recorded sweeps of every chapter that has one."""
    for name, path in choose(root, names).items():
        if "SWEEP" not in parameters(read_notebook(path), name):
            continue
        print(f"sweep  {name}", flush=True)
        command = [sys.executable, "-m", "robrep.book.reproduce", name, "SWEEP=yes"]
        try:
            environment = os.environ | memory_settings()
            code = subprocess.run(command, cwd=root, env=environment, timeout=SWEEP_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            raise ChapterError(f"{name}: the sweep took more than {SWEEP_SECONDS // 60} minutes") from None
        if code:
            raise ChapterError(f"{name}: the sweep failed (exit status {code})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m robrep.book.site", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["book", "run", "build", "course", "sweeps"])
    parser.add_argument("words", nargs="*", metavar="CHAPTER or NAME=value")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository (default: here)")
    parser.add_argument("--started", type=float, help="when make started, in seconds since 1970, to time the set-up")
    options = parser.parse_args(arguments)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    try:
        return carry_out(options)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept, and the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def carry_out(options: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit status."""
    begin = time.time()
    given = dict(word.split("=", 1) for word in options.words if "=" in word)
    names = [word for word in options.words if "=" not in word]
    times = {"set-up": begin - options.started} if options.started else {}
    try:
        address = take_address(options.command, given)
        solutions = check_words(options.command, names, given)
        if options.command == "sweeps":
            sweeps(options.root, names)
            return 0
        build = options.root / "_build"
        if why := why_not_writable(build):
            raise ChapterError(f"{build}, where all is made, cannot be written ({why}); copy the book to where it can")
        if options.command in ("book", "run", "course"):
            run(options.root, names, given)
            times["chapters"] = time.time() - begin
        if options.command in ("book", "build", "course"):
            mark = time.time()
            site(options.root, solutions)
            times["site"] = time.time() - mark
        if options.command == "course":
            mark = time.time()
            course.build_course(options.root, build, address)
            times["course"] = time.time() - mark
    except (ChapterError, SiteError) as error:
        print(error, file=sys.stderr)
        return 1
    print("  ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    if options.command == "course":
        print(f"Open {options.root / '_build' / 'course' / 'README.md'}")
    elif options.command != "run":
        print(f"Open {options.root / '_build' / 'html' / 'index.html'} (its lab needs a server: make serve)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
