"""The lab's panel in a headless browser: loads nothing before it is asked, computes, explains what is wrong."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load, save
from test_pages import ROOT

from robrep.book.lab import export
from robrep.book.site.chromium import MISSING, chromium, executable

STANDARD, URKLE = "vae_urkle/demo-digits-standard-0", "vae_urkle/demo-digits-vae_urkle-0"
PAGE = """<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>The lab</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<link rel="stylesheet" href="_static/robrep.css"><script src="_static/robrep-lab.js" defer></script>
<style>html { --pst-color-background: #fff; --pst-color-surface: #f5f5f5; --pst-color-text-base: #222;
--pst-color-text-muted: #48566b; color: #222; background: #fff; }</style></head>
<body><main><h1>The lab</h1><div class="robrep-lab" data-lab="set=digits&amp;a=STANDARD&amp;b=URKLE">
<p><img src="_static/lab/still.svg" alt="One digit under the same attack on two networks"></p>
<p>The picture shows what the lab does.</p></div></main></body></html>"""
DARK = """html { --pst-color-background: #14181e; --pst-color-surface: #1c222a; --pst-color-text-base: #ced6dd;
--pst-color-text-muted: #9ca4af; color: #ced6dd; background: #14181e; }"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason=MISSING),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with the lab in it, and what the site serves for it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "book" / "_assets", folder / "_static")
    export.write(folder / "_static" / "lab", ROOT / "book" / "results")
    (folder / "index.html").write_text(PAGE.replace("STANDARD", STANDARD).replace("URKLE", URKLE))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


class Visit:
    """The page in a window of its own, with what it asked for and what it complained of."""

    def __init__(self, browser: Any, address: str, hash_: str = "", **context: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | context))
        self.context.set_default_timeout(120_000)  # ms: a busy machine is slow, not wrong
        self.page = self.context.new_page()
        self.asked: dict[str, int] = {}
        self.complaints: list[str] = []
        self.page.on("response", lambda response: self.asked.update({response.url: self._size(response)}))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.address = address
        self.prepare: Callable[[], None] = lambda: None
        self.hash = hash_

    @staticmethod
    def _size(response: Any) -> int:
        return int(response.headers.get("content-length", 0))

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def go(self) -> Visit:
        self.page.goto(self.address + self.hash)
        self.page.wait_for_load_state("load")
        return self

    def open(self) -> Visit:
        """Go there, press the button unless the link opens the lab, and wait for the first attack."""
        self.go()
        if not self.hash:
            self.page.click(".robrep-lab-open")
        return self.attacked()

    def attacked(self) -> Visit:
        """Wait until the attack that was asked for is shown."""
        self.page.wait_for_function("document.querySelector('.lab > [role=status]')?.textContent.startsWith('After')")
        return self

    def change(self, control: str, value: str) -> Visit:
        """Set a list or a slider, and wait until the attack is shown."""
        self.page.evaluate(
            """([id, value]) => {
                document.querySelector('.lab > [role=status]').textContent = '';
                const control = document.getElementById(`lab-${id}`);
                control.value = value;
                control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input'));
            }""",
            [control, value],
        )
        return self.attacked()

    @property
    def verdicts(self) -> list[str]:
        return self.page.locator(".lab-verdict").all_inner_texts()

    @property
    def problem(self) -> str:
        return self.page.locator(".lab > .lab-problem").inner_text()

    def check(self) -> None:
        """No complaint, no other host."""
        assert not self.complaints
        assert all(url.startswith((self.address, "data:", "blob:")) for url in self.asked)


def test_nothing_is_loaded_before(browser: Any, address: str) -> None:
    """Before a reader acts: the page, its style, one small script, the picture; after it, two networks."""
    with Visit(browser, address) as visit:
        visit.go()
        names = {url.rsplit("/", 1)[-1] for url in visit.asked}
        assert names == {"", "robrep.css", "robrep-lab.js", "still.svg"}
        assert not [url for url in visit.asked if url.endswith(("safetensors", "json"))]
        before = set(visit.asked)
        visit.page.click(".robrep-lab-open")
        visit.attacked()
        kilobytes = sum(size for url, size in visit.asked.items() if url not in before) / 1000
        scripts = [url for url in visit.asked if url.endswith(".js")]
        print(f"{kilobytes:.0f} kB when the lab is opened, {len(scripts)} scripts")
        assert len([url for url in visit.asked if "/models/" in url]) == 2 and kilobytes < 600
        visit.check()


def test_attack_in_the_page(browser: Any, address: str) -> None:
    """Standard is fooled, VAE + Urkle is not, at the digit and radius that the page opens with; both change with ε."""
    with Visit(browser, address) as visit:
        visit.open()
        assert visit.page.locator(".lab-title").all_inner_texts() == ["A: Standard", "B: VAE + Urkle"]
        fooled = visit.page.locator(".lab-verdict").evaluate_all(
            "all => all.map(e => e.classList.contains('lab-fooled'))"
        )
        assert fooled == [True, False], visit.verdicts
        visit.change("eps", "0")
        assert all("moved 0 distances" in verdict for verdict in visit.verdicts)
        visit.change("eps", "0.4")
        assert all("moved 0 distances" not in verdict for verdict in visit.verdicts)
        for objective in ("kl", "wasserstein", "cosine"):
            visit.change("maximise", objective).change("start", "image")
            assert all("moved 0 distances" in verdict for verdict in visit.verdicts), "a start that never moves"
            visit.change("start", "random")
            assert all("moved 0 distances" not in verdict for verdict in visit.verdicts)
        visit.change("norm", "l2").change("steps", "5")
        assert visit.page.locator("output[for=lab-step]").inner_text() == "5 of 5"
        visit.page.click("text=One step")
        assert visit.page.locator("output[for=lab-step]").inner_text() == "0 of 5"
        assert all("moved 0 distances" not in verdict for verdict in visit.verdicts), "a random start"
        visit.check()


@pytest.mark.parametrize("name", ["digits", "colour-digits", "mnist", "colour-mnist"])
def test_every_network_in_the_page(browser: Any, address: str, folder: Path, name: str) -> None:
    """Each one can be chosen and attacked, and the table of all encoders has a row for each."""
    index = json.loads((folder / "_static" / "lab" / "index.json").read_text())
    models = [model["id"] for model in index["models"] if model["dataset"] == name]
    with Visit(browser, address) as visit:
        visit.open().change("set", name).change("steps", "3")
        for model in models:
            visit.change("b", model)
            assert not visit.page.locator(".lab-side .lab-problem:visible").count()
        visit.page.click("summary:has-text('all encoders')")
        visit.page.click("text=Attack all")
        status = ".lab-fold [role=status]"
        visit.page.wait_for_function(f"/leaves first|No code/.test(document.querySelector('{status}').textContent)")
        assert visit.page.locator(".lab-table tbody tr").count() == len(models)
        visit.check()


def test_link_holds_the_state(browser: Any, address: str) -> None:
    """A link opens the lab as it was; the address follows what is set; another link can be pasted over it."""
    link = f"#lab?set=digits&a={STANDARD}&b={URKLE}&maximise=kl&norm=l2&eps=1.5&steps=7&start=random&seed=4&image=13"
    with Visit(browser, address, link) as visit:
        visit.open()
        read = lambda name: visit.page.locator(f"#lab-{name}").input_value()  # noqa: E731
        assert [read(name) for name in ("maximise", "norm", "eps", "steps", "start")] == [
            "kl",
            "l2",
            "1.5",
            "7",
            "random",
        ]
        assert visit.page.locator("[aria-pressed=true]").get_attribute("aria-label") == "A 3, example 2"
        first = visit.verdicts
        visit.change("steps", "9")
        assert "steps=9" in visit.page.evaluate("location.hash") and "image=13" in visit.page.evaluate("location.hash")
        visit.page.evaluate(f"location.hash = '{link}'")
        visit.page.wait_for_function("document.getElementById('lab-steps').value === '7'")
        visit.page.wait_for_function("document.querySelector('output[for=lab-step]').textContent === '7 of 7'")
        assert visit.verdicts == first, "the same link, the same attack"
        visit.check()


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("eps=much", "eps = “much”, expected a number from 0 to 0.5"),
        ("eps=9", "expected a number from 0 to 0.5"),
        ("a=no/such-network", "a = “no/such-network”, expected one of attacks/demo-digits-at-0"),
        ("set=cats", "set = “cats”, expected one of digits"),
        ("image=-1", "expected a whole number from 0 to 199"),
        ("steps=2.5", "expected a whole number from 1 to 100"),
        ("drawing=%%%", "pixels in base 64"),
        ("drawing=AAAA", "expected 64 pixels in base 64"),
        ("colour=red", "“colour”, which the lab does not know"),
        ("maximise=__proto__", "maximise = “__proto__”, expected one of loss"),
    ],
)
def test_link_that_does_not_parse(browser: Any, address: str, link: str, words: str) -> None:
    """A sentence names what the link says and what was expected; the lab opens all the same."""
    with Visit(browser, address, f"#lab?{link}") as visit:
        visit.open()
        assert words in visit.problem
        assert len(visit.verdicts) == 2 and all(visit.verdicts)
        visit.check()


THREE = [
    (0.3, 0.25),
    (0.5, 0.2),
    (0.65, 0.3),
    (0.6, 0.45),
    (0.45, 0.5),
    (0.62, 0.55),
    (0.68, 0.7),
    (0.5, 0.85),
    (0.3, 0.8),
]
SAYS = "document.querySelectorAll('.lab-verdict')[{}].textContent".format  # what the first or the second network says


def test_drawing(browser: Any, address: str) -> None:
    """A 3 with the mouse, a 1 with the keys, a 1 with a finger; an empty pad is named; a link holds the drawing."""
    with Visit(browser, address) as visit:
        visit.open()
        visit.page.click("text=Draw a digit")
        visit.page.click("button:text-is('Clear')")
        visit.page.wait_for_selector(".lab > .lab-problem:visible")
        assert visit.problem.startswith("The drawing is empty")
        pad = visit.page.locator(".lab-pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        for i, (x, y) in enumerate(THREE):
            visit.page.mouse.move(box["x"] + 224 * x, box["y"] + 224 * y, steps=6)
            if not i:
                visit.page.mouse.down()
        visit.page.mouse.up()
        visit.page.wait_for_function(f"{SAYS(0)}.startsWith('Says 3')")
        drawn = visit.page.evaluate("location.hash")
        assert "drawing=" in drawn and not visit.page.locator(".lab > .lab-problem:visible").count()
        pad.press("Delete")
        visit.page.wait_for_selector(".lab > .lab-problem:visible")
        pad.press("Space")
        for _ in range(9):
            pad.press("ArrowDown")
        visit.page.wait_for_function(f"{SAYS(1)}.startsWith('Says 1')")
        assert "Drawing, row 13" in visit.page.locator(".lab-drawing [role=status]").inner_text()
        visit.check()
    with Visit(browser, address, drawn) as visit:
        assert visit.open().verdicts[0].startswith("Says 3")
    with Visit(browser, address) as visit:  # 28 x 28, with a finger
        visit.open().change("set", "mnist")
        visit.page.click("text=Draw a digit")
        visit.page.locator(".lab-pad").evaluate(
            """pad => { const box = pad.getBoundingClientRect();
                const send = (kind, y) => pad.dispatchEvent(new PointerEvent(kind, { pointerId: 1, pointerType: 'touch',
                    clientX: box.left + 112, clientY: box.top + y, bubbles: true }));
                pad.setPointerCapture = () => {};
                send('pointerdown', 30);
                for (let y = 40; y < 190; y += 10) send('pointermove', y);
                send('pointerup', 190); }"""
        )
        visit.page.wait_for_function(f"{SAYS(0)}.startsWith('Says 1')")


def damaged(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def unknown_layer(path: Path) -> bytes:
    with safe_open(path, "pt") as file:
        model = json.loads(file.metadata()["model"])
    model["encoder"][1]["op"] = "maxPool"
    return save(load(path.read_bytes()), metadata={"model": json.dumps(model)})


@pytest.mark.parametrize("problem", ["damaged", "cut", "missing", "not a file", "unknown layer"])
def test_bad_weights(browser: Any, address: str, folder: Path, problem: str) -> None:
    """A sentence in the network's own half; the other half works, and so does another network in its place."""
    lab = folder / "_static" / "lab"
    path, index = (
        lab / "models" / f"{STANDARD.replace('/', '-')}.safetensors",
        json.loads((lab / "index.json").read_text()),
    )
    content = path.read_bytes()
    body = {"damaged": damaged(content), "cut": content[:1000], "not a file": b"<html>"}.get(
        problem, unknown_layer(path)
    )
    with Visit(browser, address) as visit:
        if problem == "unknown layer":  # a whole file, of a later version of the book
            (entry,) = (model for model in index["models"] if model["id"] == STANDARD)
            entry |= {"bytes": len(body), "crc32": zlib.crc32(body)}
            visit.context.route("**/index.json", lambda route: route.fulfill(body=json.dumps(index)))
        answer = {"status": 404} if problem == "missing" else {"body": body}
        visit.context.route(f"**/{path.name}", lambda route: route.fulfill(**answer))
        visit.open()
        said = visit.page.locator(".lab-side .lab-problem").nth(0).inner_text()
        assert {
            "missing": f"The weights of Standard could not be loaded (models/{path.name}: 404).",
            "unknown layer": 'The lab cannot compute Standard: the lab does not know the layer "maxPool".',
        }.get(problem, "The weights of Standard are damaged:") in said
        assert visit.page.locator(".lab-verdict:visible").count() == 1
        visit.change("a", "vae_urkle/demo-digits-at-0")
        assert visit.page.locator(".lab-verdict:visible").count() == 2
        if problem != "missing":  # of which the browser itself speaks
            visit.check()


@pytest.mark.parametrize(
    ("file", "answer", "words"),
    [
        ("index.json", {"status": 404}, "The list of networks could not be loaded (index.json: 404)."),
        ("index.json", {"body": "{"}, "The list of networks is damaged: index.json is not JSON."),
        ("panel.js", {"status": 404}, "The lab's scripts could not be loaded."),
        ("worker.js", {"status": 404}, "The lab's background script could not be started."),
    ],
)
def test_lab_that_does_not_load(browser: Any, address: str, file: str, answer: dict[str, Any], words: str) -> None:
    """A sentence below the button, which can be pressed again; the picture stays."""
    with Visit(browser, address) as visit:
        visit.context.route(f"**/{file}", lambda route: route.fulfill(**answer))
        visit.go()
        visit.page.click(".robrep-lab-open")
        assert visit.page.locator(".robrep-lab-problem").inner_text() == words
        assert visit.page.locator(".robrep-lab img:visible").count() == 1
        assert visit.page.locator(".robrep-lab-open").is_enabled()


def test_opened_as_a_file(browser: Any, folder: Path) -> None:
    """Where a browser allows no module and no worker, a sentence says what to do, and nothing is complained of."""
    with Visit(browser, (folder / "index.html").as_uri()) as visit:
        visit.go()
        visit.page.click(".robrep-lab-open")
        assert "python -m http.server" in visit.page.locator(".robrep-lab-problem").inner_text()
        assert not visit.complaints


def test_without_javascript(browser: Any, address: str) -> None:
    """The picture and its text."""
    with Visit(browser, address, java_script_enabled=False) as visit:
        visit.go()
        assert visit.page.locator(".robrep-lab img").evaluate("image => image.naturalWidth") > 300
        assert "The picture shows" in visit.page.locator(".robrep-lab").inner_text()
        assert not visit.page.locator(".robrep-lab button").count()


def test_reduced_motion(browser: Any, address: str) -> None:
    """The attack runs step by step; where motion is not wanted, its end is shown at once."""
    step = "document.querySelector('output[for=lab-step]').textContent"
    for motion, first in (("no-preference", "0 of 20"), ("reduce", "20 of 20")):
        with Visit(browser, address, reduced_motion=motion) as visit:
            visit.open()
            assert visit.page.evaluate(f"document.querySelector('.lab-main').click(), {step}") == first
            visit.page.wait_for_function(f"{step} === '20 of 20'")


def test_with_the_keyboard_alone(browser: Any, address: str) -> None:
    """Open, pick a digit, change the radius and run, by keys; every control has a name."""
    with Visit(browser, address) as visit:
        visit.go()
        visit.page.keyboard.press("Tab")
        visit.page.keyboard.press("Enter")
        visit.attacked()
        focused = "document.activeElement"
        seen = set()
        for _ in range(40):
            visit.page.keyboard.press("Tab")
            name = visit.page.evaluate(f"{focused}.getAttribute('aria-label') || {focused}.labels?.[0]?.textContent || "
                                       f"{focused}.textContent")  # fmt: skip
            assert name.strip()
            seen.add(name.strip())
            if name.startswith("A 7"):
                visit.page.keyboard.press("Enter")
                visit.page.wait_for_function("document.querySelector('.lab-verdict').textContent.startsWith('Says 7')")
        assert {"Run the attack", "Network A", "The attack maximises", "Draw a digit", "What is not here"} <= seen
        assert visit.page.locator("[aria-pressed=true]").get_attribute("aria-label") == "A 7, example 1"
        visit.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_accessible(browser: Any, address: str, theme: str, width: int) -> None:
    """axe-core finds nothing, with everything unfolded; nothing makes the page scroll sideways."""
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, address, viewport={"width": width, "height": 900}) as visit:
        visit.go()
        if theme == "dark":
            visit.page.evaluate("document.documentElement.dataset.theme = 'dark'")
            visit.page.add_style_tag(content=DARK)
        visit.page.click(".robrep-lab-open")
        visit.attacked()
        visit.page.click("text=Draw a digit")
        for summary in visit.page.locator(".lab summary").all():
            summary.click()
        visit.page.click("text=Attack all")
        visit.page.wait_for_function("document.querySelectorAll('.lab-table tbody tr').length > 3")
        found = Axe().run(visit.page).response["violations"]
        assert not found, [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        visit.check()
