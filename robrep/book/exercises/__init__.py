"""The checks behind the exercises: each tells what went wrong and gives a hint, not only a verdict.

Each chapter has two warm-ups, one *design* task, judged on models or data that the reader has not seen, one figure to
*interpret* in prose, and one *bug* to find in a plausible implementation.

In a chapter an exercise is three cells: the question in Markdown; the reader's function whose body is ``...`` (for a
bug, the faulty code; for a figure, an empty text), followed by ``check("vae_urkle.wilson", answer)``; then one folded
cell with the solution and the same check, tagged ``solution`` and ``hide-cell`` (and, for Colab and JupyterLab,
``"cellView": "form"`` and ``"jupyter": {"source_hidden": true}``). A figure's model answer and rubric are a Markdown
cell tagged ``solution``: a ``{dropdown}`` titled "Model answer and rubric (attacks.read_noise)", with lines such as
"- 2 points: ...". ``make book SOLUTIONS=no`` leaves every cell tagged ``solution`` out of the pages and of the
notebooks offered for download: that is the student's version, and the same notebook is the teacher's.

Answers are checked in float64 against an independent reference: the equation written out, a distribution of
``torch.distributions``, or a case whose answer is known exactly.
"""

from __future__ import annotations

from robrep.book.exercises import (  # noqa: F401  (each registers its exercises)
    attacks,
    byorl,
    comparison,
    cropd,
    judging_robustness,
    simclr_urkle,
    smooth_encoders,
    vae_urkle,
    worst_case_mi,
)
from robrep.book.exercises.core import EXERCISES, KINDS, Exercise, Verdict, Wrong, check, exercise, hint, interpret

__all__ = ["EXERCISES", "KINDS", "Exercise", "Verdict", "Wrong", "check", "exercise", "hint", "interpret"]
