"""The command line; see :mod:`robrep.book.project`."""

from __future__ import annotations

import argparse
import html
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from robrep.book import project
from robrep.book.files import write_csv
from robrep.book.grade.confine import not_enforced
from robrep.book.project import GAMES
from robrep.book.project.judge import MEMORY, SECONDS, Board, Entry, judge
from robrep.files import atomic_write
from robrep.progress import printable
from robrep.rates import Rate

STARTER = Path(__file__).with_name("starter")
COLUMNS = ("place", "team", "clean", "robust", "attack breaks", "numbers", "what the judge says")


def start(folder: Path) -> None:
    """Write a first submission: an encoder, its training and an attack.

    Raises:
        FileExistsError: the folder holds files already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already, expected a new folder")
    shutil.copytree(STARTER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def said(entry: Entry) -> str:
    """What a line of the leaderboard says beside its numbers."""
    if entry.refused:
        told = f"not judged: {entry.refused}"
    elif entry.doubt:
        told = f"not ranked: {entry.doubt}"
    else:
        suspicious = [f for f in entry.audit.findings if f.verdict == "suspicious"] if entry.audit else []
        told = "; ".join(f"suspicious: {f.question} {f.text}" for f in suspicious)
    attack = f"its attack failed on some encoders: {entry.attack_refused}" if entry.attack_refused else ""
    return " ".join(filter(None, (told, attack)))


def row(entry: Entry, board: Board) -> list[str]:
    """A line of the leaderboard, under ``COLUMNS``."""
    shared = sum(other.place == entry.place for other in board.entries) > 1
    place = "" if entry.place is None else f"{entry.place}{' (tie)' * shared}"
    rates = ["" if rate is None else _short(rate) for rate in (entry.clean, entry.robust, entry.attack)]
    return [place, entry.team, *rates, f"{entry.numbers:,}" if entry.numbers else "", said(entry)]


def _short(rate: Rate) -> str:
    return f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def about(board: Board) -> str:
    """What the numbers are, in two sentences."""
    return (
        f"{board.images} hidden images, {board.threat}; brackets hold 95 % intervals, and teams whose difference the "
        f"images cannot tell from zero tie. The seed {board.seed} draws the same images again."
    )


def write_page(board: Board, to: Path) -> None:
    """Write the leaderboard as a page."""
    cells = "\n".join(
        f'<tr class="{"ranked" if entry.place else "not"}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row(entry, board))
        + "</tr>"
        for entry in board.entries
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    with atomic_write(to) as temporary:
        temporary.write_text(
            f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Leaderboard</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; }}
td, th {{ padding: .4rem .8rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top; }}
td:nth-child(-n + 6) {{ white-space: nowrap; }} .not td {{ color: #666; }}
</style>
<h1>Leaderboard</h1>
<p>{html.escape(about(board))}</p>
<div role="region" aria-label="Leaderboard" tabindex="0"><table><thead><tr>{head}</tr></thead>
<tbody>
{cells}
</tbody></table></div>
</html>
""",
            encoding="utf-8",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a submission or judge a class; returns the exit status."""
    description = (project.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m robrep.book.project", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="write a first submission")
    starting.add_argument("folder", type=Path, metavar="FOLDER")
    judging = commands.add_parser("judge", help="judge the submissions of a class")
    judging.add_argument("folder", type=Path, metavar="SUBMISSIONS", help="a folder with one folder for each team")
    judging.add_argument("--scale", choices=GAMES, default="demo", help="what is played (%(default)s)")
    judging.add_argument("--csv", type=Path, metavar="FILE", help="write the leaderboard there too")
    judging.add_argument("--page", type=Path, metavar="FILE", help="write it there as a page (HTML)")
    judging.add_argument("--seed", type=int, help="draws the hidden images; by default a new one, which is printed")
    judging.add_argument(
        "--seconds", type=float, default=SECONDS, help="to build an encoder, and to attack one (%(default)s)"
    )
    judging.add_argument(
        "--memory", type=float, default=MEMORY, metavar="GIB", help="GiB a submission may use (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.command == "start":
            start(options.folder)
            print(f"{options.folder}: train.py writes the weights; then judge the folder that holds {options.folder}")
            return 0
        teams = sorted(path for path in options.folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    if not teams:
        print(f"{options.folder} holds no folder, expected one for each team", file=sys.stderr)
        return 2
    for line in not_enforced():
        print(f"project: not enforced on this machine: {line}", file=sys.stderr)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limits = {"seconds": options.seconds, "memory": options.memory}
    board = judge(teams, GAMES[options.scale], seed=options.seed, device=device, **limits)
    rows = [row(entry, board) for entry in board.entries]
    widths = [max(len(line[i]) for line in [list(COLUMNS), *rows]) for i in range(len(COLUMNS) - 1)]
    for cells in [list(COLUMNS), *rows]:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        print(printable("  ".join([*padded, cells[-1]]).rstrip()))
    print(about(board))
    if options.csv:
        write_csv(options.csv, CSV, [_numbers(entry) for entry in board.entries])
    if options.page:
        write_page(board, options.page)
    return 0


CSV = (
    "place", "team", "clean", "robust", "robust_low", "robust_high", "attack", "numbers", "seconds", "message",
)  # fmt: skip


def _numbers(entry: Entry) -> list[object]:
    """A line of the CSV file; a cell without a number is empty."""
    rate = entry.robust
    robust = [f"{v:.4f}" for v in (rate.value, rate.low, rate.high)] if rate else ["", "", ""]
    clean, attack = ("" if r is None else f"{r.value:.4f}" for r in (entry.clean, entry.attack))
    return [entry.place or "", entry.team, clean, *robust, attack, entry.numbers, f"{entry.seconds:.1f}", said(entry)]


if __name__ == "__main__":
    sys.exit(main())
