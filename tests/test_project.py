"""The project's judge: honest encoders are ranked, masked ones are not, and no submission stops the class."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robrep import data
from robrep.book.grade.confine import not_enforced
from robrep.book.project import GAMES
from robrep.book.project.__main__ import STARTER, main
from robrep.book.project.judge import WIDTH, Board, Entry, _ranked, head_on, hidden, judge, network_of
from robrep.book.project.network import CONSTANTS, Network, Refused, checked, traced
from robrep.rates import Rate

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "book" / "results" / "vae_urkle", (ROOT / "book" / "project.md").read_text(encoding="utf-8")
SHAPE = (1, 8, 8)
DEMO = GAMES["demo"]
GAME = dataclasses.replace(DEMO, images=100, audited=40, steps=5, queries=50)
CODE = "return self.gaussian_encoder(x).mean"
LIMITS: dict[str, int] = dict(flops=DEMO.flops, entries=DEMO.entries, width=512)


def weights(method: str) -> dict[str, Tensor]:
    """Those of a network that the chapter recorded, under the starter's names."""
    recorded = load_file(RESULTS / f"demo-digits-{method}-0.safetensors")
    return {
        key.replace("encoder.", "gaussian_encoder.", 1): value.float()
        for key, value in recorded.items()
        if key.startswith("encoder.")
    }


def submit(folder: Path, code: str = "", *, method: str = "vae", more: str = "", attack: str = "") -> Path:
    """The starter's submission with recorded weights; ``code`` in place of its line that computes the codes."""
    folder.mkdir(parents=True)
    source = (STARTER / "submission.py").read_text()
    if code:
        assert CODE in source
        source = source.replace(CODE, textwrap.indent(textwrap.dedent(code).strip(), " " * 8).lstrip())
    (folder / "submission.py").write_text("import torch\n" + source + textwrap.dedent(more))
    save_file(weights(method), folder / "weights.safetensors")
    if attack:
        (folder / "attack.py").write_text(textwrap.dedent(attack))
    return folder


LINEAR = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 32, bias=False)

    def forward(self, x):
        z = self.linear(x.flatten(1))
        return CODE

def encoder(shape):
    return Linear()

class Liar(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad  # downhill
"""
MASKED = {
    "straight-through": "z + ((2 * z).round() / 2 - z).detach()",
    "saturated": "(1000 * z).tanh()",
}
GOOD_ATTACK = (STARTER / "attack.py").read_text().replace("PGD(10)", "PGD(20)")
BAD_ATTACK = """
import os
def attack(model, x, y, threat, seed):
    if os.path.exists("once"):
        os._exit(3)
    open("once", "w").close()
    return x + 10
"""


def linear(folder: Path, code: str) -> None:
    """A submission whose codes are a function of the principal components of the pixels: the cheapest to judge."""
    folder.mkdir()
    (folder / "submission.py").write_text(LINEAR.replace("CODE", code))
    pixels = data.load("digits").images("train").flatten(1)
    directions = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False).Vh[:32]
    save_file({"linear.weight": directions.contiguous()}, folder / "weights.safetensors")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    root = tmp_path_factory.mktemp("class")
    submit(root / "plain", attack=BAD_ATTACK)
    submit(root / "robust", method="vae_urkle", attack=GOOD_ATTACK)
    submit(root / "trap", re.search(r"```python\n(return .*)\n```", PAGE)[1])
    for name, code in {"linear": "z", "liar": "Liar.apply(z)", "nan": "z / (z - z)", **MASKED}.items():
        linear(root / name, code)
    submit(root / "dies", more="\nimport os\nos._exit(0)\n")
    return judge(sorted(root.iterdir()), GAME, seed=0)


def entry(board: Board, team: str) -> Entry:
    return next(e for e in board.entries if e.team == team)


def test_honest_encoders_are_ranked_by_their_robustness(board: Board) -> None:
    plain, robust, honest, liar = (entry(board, team) for team in ("plain", "robust", "linear", "liar"))
    assert {e.team for e in board.entries if e.place} == {"plain", "robust", "linear", "liar"}
    assert robust.place < plain.place and robust.robust.value > plain.robust.value + 0.1
    assert min(e.clean.value for e in (plain, robust, honest)) > 0.75
    assert torch.equal(liar.clean.correct, honest.clean.correct)
    assert abs(liar.robust.value - honest.robust.value) < 0.05, "a backward pass that lies changes nothing"


@pytest.mark.parametrize("team", ["trap", *MASKED])
def test_masked_encoders_are_not_ranked(board: Board, team: str) -> None:
    masked = entry(board, team)
    assert masked.robust is not None and masked.place is None and not masked.refused
    assert "gradient" in masked.doubt.lower()


def test_a_submission_that_fails_is_a_line(board: Board) -> None:
    assert entry(board, "nan").refused.startswith("encoder gives codes that are not finite")
    assert entry(board, "dies").refused == "its process ended without a reply"
    assert [bool(e.refused) for e in board.entries[-2:]] == [True, True], "below the others"


def test_attacks_count_for_their_team_and_against_the_others(board: Board) -> None:
    good, bad = entry(board, "robust"), entry(board, "plain")
    assert good.attack.value > 0.5 and good.attack_refused == ""
    assert bad.attack.n > 200 and "exit status 3" in bad.attack_refused
    assert entry(board, "nan").attack is None


REFUSED = {
    "noise": ("z = self.gaussian_encoder(x).mean; return z + torch.randn_like(z)", "", "which draws random numbers"),
    "length": ("return self.gaussian_encoder(x).mean.view(len(x), -1)", "", "x.shape[0], not len(x)"),
    "branch": ("z = self.gaussian_encoder(x).mean; return z if x.mean() > 0.3 else -z", "", "cannot be traced"),
    "shape": ("return self.gaussian_encoder(x).mean[None]", "", "gives shape (1, 500, 32) for 500 images, expected"),
    "two-values": ("return self.gaussian_encoder(x)", "", "gives 2 values, expected one tensor of codes"),
    "costly": ("return self.gaussian_encoder(x.repeat(1, 1, 30, 30)).mean", "", "intermediate values for one image"),
    "index": ("return self.gaussian_encoder(x).mean[:, torch.arange(9)]", "", "aten.index.Tensor"),
    "hidden-table": (
        "return self.gaussian_encoder(x).mean @ self.table",
        "\ndef encoder(shape):\n    e = MeanCode(ConvEncoder(1, 32, widths=(32, 64, 64), strides=(1, 2, 2), groups=0))"
        "\n    e.table = torch.ones(32, 64)\n    return e",
        "holds 2,048 numbers in plain tensors, expected at most 1,024",
    ),
    "no-module": ("", "\ndef encoder(shape):\n    return 3", "gives a int, expected a torch.nn.Module"),
    "raises": ("", "\ndef encoder(shape):\n    return 1 / 0", "ZeroDivisionError in submission.py, line"),
    "no-function": ("", "\ndel encoder", "submission.py does not define encoder()"),
    "misfit": ("", "\ndef encoder(shape):\n    return nn.Linear(2, 3)", "weights.safetensors does not fit the encoder"),
    "exits": ("", "\nraise SystemExit(2)", "SystemExit in submission.py"),
    "dies": ("", "\nimport os\nos._exit(7)", "it ended its process (exit status 7)"),
    "hangs": ("", "\nimport time\ntime.sleep(1000)", "it took more than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    code, more, why = REFUSED[name]
    folder = submit(tmp_path / name, code, more=more)
    with pytest.raises(Refused) as caught:
        network_of(folder, DEMO, SHAPE, seconds=4 if name == "hangs" else 60, memory=8)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_missing_damaged_too_large_or_links(tmp_path: Path) -> None:
    def why(name: str) -> str:
        with pytest.raises(Refused) as caught:
            network_of(tmp_path / name, DEMO, SHAPE, 60, 8)
        return str(caught.value)

    for name in ("code", "gone", "text", "large", "link"):
        submit(tmp_path / name)
    (tmp_path / "code" / "submission.py").unlink()
    stored = [tmp_path / name / "weights.safetensors" for name in ("gone", "text", "large", "link")]
    for file in stored[:2] + stored[3:]:
        file.unlink()
    stored[1].write_text("no weights")
    save_file({"a": torch.zeros(DEMO.numbers + 1)}, stored[2])
    stored[3].symlink_to(stored[2])
    assert why("code") == "submission.py is missing"
    assert why("gone") == "weights.safetensors is missing"
    assert why("text").startswith("weights.safetensors cannot be read (")
    assert why("large") == "weights.safetensors holds 100,001 numbers, expected at most 100,000"
    assert why("link") == "weights.safetensors is a link, expected a file"


NASTY = """
import json, os, signal, socket, sys, threading, time
from pathlib import Path
print("look at me")
tried = []
for attempt in (
    lambda: Path(torch.__file__).with_name("mine.txt").write_text(""),
    lambda: socket.create_connection(("127.0.0.1", 9), timeout=2),
    lambda: os.kill(os.getppid(), signal.SIGKILL),
):
    try:
        attempt()
    except OSError as error:
        tried.append(str(error).lower())
assert len(tried) == 3 and "refused" not in tried[1], tried
"""


@pytest.mark.skipif(bool(not_enforced()), reason="not enforced on this machine")
def test_the_submission_is_confined(tmp_path: Path) -> None:
    version = tuple(map(int, Path("/proc/sys/kernel/osrelease").read_text().split("-")[0].split(".")[:2]))
    more = NASTY if version >= (6, 12) else NASTY.replace("lambda: os.kill", "lambda: 1 / 0 and os.kill")
    if version < (6, 12):
        pytest.skip("signals are not scoped before Linux 6.12")
    network = network_of(submit(tmp_path / "nasty", more=more), DEMO, SHAPE, 60, 8)
    assert network(torch.rand(2, *SHAPE)).shape == (2, 32)


def test_a_forged_reply_is_data(tmp_path: Path) -> None:
    """A submission that writes into the judge's file says nothing that it could not have said as an encoder."""
    forged = {"graph": {"inputs": {"x": ""}, "nodes": [["a", "builtins.exec", ["1"], {"dict": {}}]], "output": "a"}}
    for said, why in ((forged | {"constants": {"dict": {}}}, "builtins.exec"), ("]", "written into"), ([1], "written")):
        more = f"""
        import os
        for fd in range(3, 200):
            try:
                if os.readlink(f"/proc/self/fd/{{fd}}").endswith("reply"):
                    os.write(fd, {(json.dumps(said) if said != "]" else "]")!r}.encode() + b"\\n")
            except OSError:
                pass
        os._exit(0)
        """
        with pytest.raises(Refused, match=why):
            network_of(submit(tmp_path / why.replace(".", "")[:9] / "f", more=more), DEMO, SHAPE, 60, 8)
        shutil.rmtree(tmp_path)


MALFORMED: dict[str, tuple[Any, str]] = {
    "no-nodes": ({"inputs": {}}, "malformed"),
    "writes": ([["a", "aten.relu_.default", [{"node": "x"}], {}]], "relu_"),
    "reads": ([["a", "aten.from_file.default", ["/etc/passwd"], {}]], "from_file"),
    "empty": ([["a", "aten.empty.memory_format", [[3, 2]], {}]], "aten.empty"),
    "not-aten": ([["a", "os.system", ["true"], {}]], "os.system"),
    "huge": ([["a", "aten.full.default", [[1 << 40, 1], 0.0], {}]], "intermediate values"),
    "grows": ([["n", "aten.sym_size.int", [{"node": "x"}, 0], {}], ["a", "mul", [{"node": "n"}, {"node": "n"}], {}],
               *[[f"a{i}", "mul", [{"node": "a"}, 1 << 30], {}] for i in range(3)]], "cannot be run"),
    "unknown": ([["a", "aten.relu.default", [{"node": "nowhere"}], {}]], "cannot be run"),
    "dtype": ([["a", "aten._to_copy.default", [{"node": "x"}], {"dtype": {"dtype": "save"}}]], "cannot be run"),
    "weights": ({"inputs": {"x": "", "w": "absent"}, "nodes": [], "output": "x"}, "uses absent"),
    "long": ([["a", "aten.relu.default", [{"node": "x"}], {}]] * 6000, "6,000 operators"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_list_of_operators_that_is_not_an_encoder(name: str) -> None:
    given, why = MALFORMED[name]
    if isinstance(given, list):
        given = {
            "inputs": {"x": ""},
            "nodes": [[n, op, args, {"dict": keywords}] for n, op, args, keywords in given],
            "output": "a",
        }
    with pytest.raises(Refused, match=why):
        checked(Network(given, {}), SHAPE, **LIMITS)


class Many(nn.Module):
    """Layers of all sorts that encoders are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5)
        )
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Sequential(nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attend(self.first(x).flatten(2).mT)
        z = self.last(tokens.mean(1)).view(x.shape[0], -1)
        with torch.no_grad():
            size = z.square().sum(1, keepdim=True).sqrt()
        return torch.cat([z / (1 + size), nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)], 1)


def test_a_traced_network_is_the_network(tmp_path: Path) -> None:
    """Values and gradients, at any batch size, after a way through JSON; what stood under no_grad has a gradient."""
    torch.manual_seed(0)
    module = Many().eval()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    graph, constants = traced(module, SHAPE)
    network = Network(json.loads(json.dumps(graph)), module.state_dict() | constants)
    checked(network, SHAPE, **LIMITS)
    for n in (1, 5):
        x = torch.rand(n, *SHAPE, requires_grad=True)
        torch.testing.assert_close(network(x), module(x))
        (slope,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
        step = 1e-3 * slope.sign()
        with torch.no_grad():
            rise = (network(x + step) - network(x - step))[:, 0].sum()
        torch.testing.assert_close(2e-3 * slope.abs().sum(), rise, rtol=0.02, atol=1e-5)


def test_hidden_images_are_new_rounded_and_repeatable() -> None:
    digits = data.load("digits")
    (x, y), (again, _), (other, _) = (hidden(digits, DEMO, seed) for seed in (0, 0, 1))
    assert torch.equal(x, again) and not torch.equal(x, other) and len(y) == DEMO.images
    assert torch.equal((255 * x).round() / 255, x)
    every = torch.cat([digits.images(split) for split in data.SPLITS])
    assert torch.cdist(x.flatten(1), every.flatten(1)).amin() > 0.1, "no hidden image is one of the data set"


def pixels(factor: float) -> Network:
    """An encoder whose code is the image times a factor."""
    nodes = [
        ["s", "aten.mul.Tensor", [{"node": "x"}, factor], {"dict": {}}],
        ["z", "aten.view.default", [{"node": "s"}, [-1, 64]], {"dict": {}}],
    ]
    return Network({"inputs": {"x": ""}, "nodes": nodes, "output": "z"}, {})


def test_the_head_is_independent_of_the_scale_of_the_codes() -> None:
    digits = data.load("digits")
    x = digits.images("test")
    small, large = (head_on(pixels(f), digits)(pixels(f)(x)) for f in (1.0, 1e4))
    torch.testing.assert_close(small, large, rtol=1e-2, atol=1e-2)
    assert (small.argmax(1) == digits.y_test).float().mean() > 0.94
    with pytest.raises(Refused, match="the same code"):
        head_on(pixels(0.0), digits)


def test_the_page_says_what_the_judge_does() -> None:
    """Its table of the scales, and its limits."""
    for scale, game in GAMES.items():
        row = re.search(rf"\| `{scale}` \| `{game.data}`.*", PAGE)[0]
        numbers, flops = (text.strip() for text in row.split("|")[5:7])
        assert f"| {game.radius}/255 | {game.images} |" in row
        for said, limit in ((numbers, game.numbers), (flops, game.flops)):
            count, _, word = said.partition(" ")
            assert int(count.replace(",", "")) * {"": 1, "million": 10**6, "billion": 10**9}[word] == limit
    assert f"D at most {WIDTH}" in PAGE and f"beyond {CONSTANTS:,} numbers" in PAGE


def test_ties_are_shared_places() -> None:
    def team(name: str, right: int) -> Entry:
        return Entry(name, robust=Rate(torch.arange(200) < right))

    entries = [team("b", 150), team("a", 152), team("d", 20), team("c", 60)]
    ranked = _ranked(entries, seed=0)
    assert [(e.team, e.place) for e in ranked] == [("a", 1), ("b", 1), ("c", 3), ("d", 4)]


def test_the_command_line(tmp_path: Path, board: Board, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("robrep.book.project.__main__.judge", lambda *_, **__: board)
    assert main(["start", str(tmp_path / "class" / "mine")]) == 0
    assert sorted(p.name for p in (tmp_path / "class" / "mine").iterdir()) == ["attack.py", "submission.py", "train.py"]
    assert main(["start", str(tmp_path / "class" / "mine")]) == 2
    table, page = tmp_path / "board.csv", tmp_path / "board.html"
    assert main(["judge", str(tmp_path / "class"), "--csv", str(table), "--page", str(page)]) == 0
    out = capsys.readouterr().out
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["team"] for row in rows] == [e.team for e in board.entries]
    assert rows[0]["place"] == "1" and float(rows[0]["robust"]) == pytest.approx(
        board.entries[0].robust.value, abs=1e-4
    )
    assert "(tie)" in out and "not ranked: Are the gradients" in out and "not judged: encoder gives codes" in out
    assert all(e.team in page.read_text() for e in board.entries) and "seed 0" in out
    (tmp_path / "empty").mkdir()
    assert main(["judge", str(tmp_path / "empty")]) == main(["judge", str(tmp_path / "absent")]) == 2
