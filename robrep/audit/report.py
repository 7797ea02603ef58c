"""What an audit says: findings in plain words, and the curves behind them."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from robrep.checks import one_of
from robrep.evaluation import Rate, wilson
from robrep.progress import printable

Verdict = Literal["fine", "suspicious", "broken"]
SIGNS: dict[Verdict, str] = {"broken": "✗", "suspicious": "?", "fine": "✓"}  # the worst first

QUESTIONS = {  # a sound evaluation says yes to all
    "finite": "Are outputs and gradients finite numbers?",
    "repeat": "Does the same call give the same answer?",
    "batch": "Does an image get the same answer in every batch?",
    "graph": "Does the gradient reach the image?",
    "zero-gradient": "Are the gradients other than zero?",
    "step": "Does the gradient beat a random direction?",
    "slope": "Is the gradient the slope?",
    "landscape": "Can the surface be climbed?",
    "noise": "Does a step follow the average and not the noise?",
    "steps": "Is the attack converged?",
    "loss": "Does another loss find hardly more?",
    "average": "Is the noise averaged over enough draws?",
    "black-box": "Does a black box find hardly more?",
    "radius": "Does the robustness end as the radius grows?",
}


class Limits(NamedTuple):
    """Above the first a number is suspicious, above the second broken."""

    suspicious: float
    broken: float

    def verdict(self, value: float) -> Verdict:
        return "broken" if value > self.broken else "suspicious" if value > self.suspicious else "fine"

    def share(self, count: int, n: int) -> Verdict:
        """The same of a share of images: by the lower end of its interval, so that a few images are no evidence."""
        return self.verdict(wilson(count, n)[0])


def worst(*verdicts: Verdict) -> Verdict:
    """The worst of them."""
    return min(verdicts, key=list(SIGNS).index)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name, a key of ``QUESTIONS``.
        verdict: "fine", "suspicious" (look closer before believing the number) or "broken" (the number is not a valid
            estimate).
        text: what was found, in plain words, with its numbers.
        numbers: the same numbers by name; shares are in [0, 1].
        advice: what to do next; "" where nothing needs to be done.
    """

    check: str
    verdict: Verdict
    text: str
    numbers: dict[str, float] = field(default_factory=dict)
    advice: str = ""

    def __post_init__(self) -> None:
        one_of("check", self.check, QUESTIONS)
        one_of("verdict", self.verdict, SIGNS)
        if self.verdict == "fine":
            object.__setattr__(self, "advice", "")

    @property
    def question(self) -> str:
        """What was asked; a sound evaluation says yes."""
        return QUESTIONS[self.check]

    def __str__(self) -> str:
        advice = f" Next: {self.advice}" if self.advice else ""
        return printable(f"{SIGNS[self.verdict]} {self.verdict:10} {self.question} {self.text}{advice}")


class Landscape(NamedTuple):
    """The margin around one image, on a plane: ``values[i, j]`` at ``a[j]`` along the gradient and ``b[i]`` beside it.

    Offsets are in the threat's norm; above 0 the image is misclassified. ``image`` is its row among the audited images.
    Where the gradient is zero (``blind``), ``a`` goes along another random direction.
    """

    a: Tensor
    b: Tensor
    values: Tensor
    image: int
    blind: bool = False


@dataclass(frozen=True)
class Audit:
    """The findings about one model, and the curves behind them (``figures.audit_figure`` draws them).

    Attributes:
        findings: one for each check made, in the order made.
        left_out: the checks that could not be made, and why, in words.
        clean: accuracy on the images as they are.
        stages: what is left of it after the attack that was audited, then after each further one as well, by name.
        curve: robust accuracy against the radius: lists x, y, low, high, as ``against_radius`` gives them.
        landscape: the margin around one image; None where there is no gradient.
        attack, threat: what was audited, in words.
        radius: the audited radius (its mean, where it varies with the image).
    """

    findings: list[Finding]
    left_out: dict[str, str]
    clean: Rate
    stages: dict[str, Rate]
    curve: dict[str, list[float]]
    landscape: Landscape | None
    attack: str
    threat: str
    radius: float

    @property
    def passed(self) -> bool:
        """Whether nothing is suspicious or broken."""
        return all(finding.verdict == "fine" for finding in self.findings)

    @property
    def robust(self) -> Rate:
        """Robust accuracy under the attack that was audited; the clean one if it could not be run."""
        return self.stages.get(self.attack, self.clean)

    @property
    def worst(self) -> Rate:
        """Robust accuracy that is left after every attack of the audit."""
        return [self.clean, *self.stages.values()][-1]

    def __getitem__(self, check: str) -> Finding:
        """The finding of one check.

        Raises:
            KeyError: the check was not made.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r} was not checked, only {', '.join(f.check for f in self.findings)}")

    def __str__(self) -> str:
        left = [f"– left out   {QUESTIONS[name]} {why}" for name, why in self.left_out.items()]
        return printable("\n".join([*self._summary(), *map(str, self._sorted()), *left]))

    def _sorted(self) -> list[Finding]:
        return sorted(self.findings, key=lambda f: list(SIGNS).index(f.verdict))

    def _summary(self) -> list[str]:
        """Two lines: the verdict, and the accuracies."""
        n, verdicts = len(self.findings), [f.verdict for f in self.findings]
        what = f"{self.attack} in the {self.threat}"
        if self.passed:
            told = f"Passed: {n} checks found nothing against {what}."
        else:
            broken, suspicious = verdicts.count("broken"), verdicts.count("suspicious")
            doubt = "Explain them before believing its number."
            end = "Its robust accuracy is not a valid estimate." if broken else doubt
            told = f"Not passed: {broken} broken and {suspicious} suspicious of {n} checks of {what}. {end}"
        after = "".join(f", {100 * rate.value:.0f} % after {name}" for name, rate in self.stages.items())
        return [told, f"Accuracy on {self.clean.n} images: {100 * self.clean.value:.0f} %{after}."]

    def _repr_html_(self) -> str:
        # no colours of its own: the page's theme has them
        rows = []
        for f in self._sorted():
            advice = f" <em>Next: {html.escape(f.advice)}</em>" if f.advice else ""
            text = f"<strong>{html.escape(f.question)}</strong> {html.escape(f.text)}{advice}"
            rows.append((f"{SIGNS[f.verdict]} {f.verdict}", text))
        rows += [("– left out", html.escape(f"{QUESTIONS[name]} {why}")) for name, why in self.left_out.items()]
        side, cell = "white-space:nowrap;text-align:left;vertical-align:top", "text-align:left;white-space:normal"
        body = "".join(
            f'<tr><th scope="row" style="{side}">{a}</th><td style="{cell}">{b}</td></tr>\n' for a, b in rows
        )
        head = "".join(f"<p>{html.escape(line)}</p>\n" for line in self._summary())
        return (
            f'{head}<div role="region" aria-label="Findings of the audit" tabindex="0" style="overflow-x:auto">\n'
            f'<table class="table robrep-table"><tbody>\n{body}</tbody></table></div>'
        )
