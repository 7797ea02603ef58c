"""Recorded runs, published numbers, and the table that holds one against the other.

A number on a page is either a published one (``book/published/<paper>.json``) or a recorded one
(``book/results/<chapter>/<run>.json``, with the weights beside it as ``.safetensors``). Both kinds are checked against
a schema when written and when read, and prose takes its numbers from them through :func:`say`, so it cannot go stale.

Recorded runs are looked for in two places: the live folder (``$ROBREP_RESULTS``, what this machine has run) and the
recorded one (``book/results`` of the checkout, or the copy shipped inside an installed robrep). Where both hold a
run of the same name, the live one wins.
"""

from __future__ import annotations

from robrep.book.results.origin import (
    check_writable,
    commit,
    hardware,
    live_folder,
    peak_memory,
    recorded_folder,
    versions,
)
from robrep.book.results.published import (
    COMPARABLE,
    Count,
    Ours,
    PublishedValue,
    command,
    count,
    ours,
    paper_against_ours,
    papers,
    published,
    published_folds,
    published_title,
    runs_behind,
    spread_meaning,
    status,
    within,
)
from robrep.book.results.records import (
    MAX_WEIGHTS,
    Run,
    data_facts,
    first_steps_table,
    load_run,
    load_weights,
    record,
    round_weights,
    run_name,
    runs,
)
from robrep.book.results.schema import SCALES, SCHEMA
from robrep.book.results.showing import Fold, Link, Metric, Prose, Stack, Table, say

__all__ = [
    "COMPARABLE",
    "MAX_WEIGHTS",
    "SCALES",
    "SCHEMA",
    "Count",
    "Fold",
    "Link",
    "Metric",
    "Ours",
    "Prose",
    "PublishedValue",
    "Run",
    "Stack",
    "Table",
    "check_writable",
    "command",
    "commit",
    "count",
    "data_facts",
    "first_steps_table",
    "hardware",
    "live_folder",
    "load_run",
    "load_weights",
    "ours",
    "paper_against_ours",
    "papers",
    "peak_memory",
    "published",
    "published_folds",
    "published_title",
    "record",
    "recorded_folder",
    "round_weights",
    "run_name",
    "runs",
    "runs_behind",
    "say",
    "spread_meaning",
    "status",
    "versions",
    "within",
]
