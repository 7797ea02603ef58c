"""What a console can show: signs that it lacks become plain ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robrep
from robrep.progress import printable

ROOT = Path(robrep.__file__).parent
CODE = """
import torch
from robrep import data
from robrep.book import results
from robrep.attacks import PGD, Linf
from robrep.audit import audit
from robrep.book.exercises import check, hint
from robrep.evaluation import evaluate, wilson
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
x = data.load("digits").images("test")[:20]
found = audit(net, x, net(x).argmax(1), Linf(0.1))
print(found)
print(found.findings[0])
print(evaluate(net, x, net(x).argmax(1), PGD(2, relative_step=0.5), Linf(0.1)))
check("vae_urkle.wilson", lambda k, n: (0.0, 1.0))
check("vae_urkle.wilson", wilson)
print(check("vae_urkle.wilson", None))
hint("vae_urkle.wilson")
print(results.Table([["98.0 ± 0.1", "3 × 3"]], ["–", "ε ≤ 1"], caption="→"))
print(results.say("{:.1%} ± 1", 0.5), results.published("nguyen2022")[0], results.Fold("…", "²"))
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_everything_that_is_printed_degrades_to_what_the_console_has(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    said = done.stdout.decode(encoding)
    signs = {"ascii": "+x", "cp1252": "+x", "utf-8": "✓✗"}[encoding]
    assert f"{signs[0]} vae_urkle.wilson: passed" in said and f"{signs[1]} vae_urkle.wilson: not yet" in said
    assert f"{signs[0]} fine " in said
    assert {"ascii": "98.0 +- 0.1  3 x 3", "cp1252": "98.0 ± 0.1  3 × 3"}.get(encoding, "98.0 ± 0.1  3 × 3") in said
    assert {"utf-8": "step 0.5 ε"}.get(encoding, "step 0.5 eps") in said
    assert {"ascii": "50.0 % +- 1"}.get(encoding, "50.0\xa0% ± 1") in said


def test_text_that_can_be_shown_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Console:
        encoding: str | None = "ascii"

    monkeypatch.setattr(sys, "stdout", Console())
    assert printable("naïve ε ² … 漢") == "naive eps 2 ... ?"
    Console.encoding = "cp1252"
    assert printable("naïve ε ² … 漢") == "naïve eps ² … ?"
    for encoding in ("utf-8", None):  # None: something that is no file, as a notebook's
        Console.encoding = encoding
        assert printable("naïve ε ² … 漢") == "naïve ε ² … 漢"


def test_every_file_is_read_and_written_as_utf_8() -> None:
    """Text files name their encoding, so that a machine's own one decides nothing."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        calls = re.finditer(r"(?<!\bos)\.(?:read_text|write_text|open)\(|(?<![.\w])open\(|\bsubprocess\.run\(", text)
        for call in calls:
            depth, end = 1, call.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                end += 1
            said = text[call.start() : end]
            binary = '"rb"' in said or '"wb"' in said or "Image.open" in text[call.start() - 5 : end]
            captures = "capture_output" in said or not call[0].endswith("run(")
            if captures and not binary and "encoding=" not in said and "direct_url.json" not in said:
                found.append(f"{path.relative_to(ROOT)}: {said}")
    assert found == []
