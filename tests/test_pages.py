"""The built site in a headless browser that can reach no other host: quiet, readable on a phone, and alive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from robrep.book.site.chromium import MISSING, chromium, executable

ROOT = Path(__file__).resolve().parent.parent
OWN = ("file:", "data:", "blob:", "about:")
PLAIN = ("byo", "errata")  # notebooks that need not begin with a picture


pytestmark = pytest.mark.skipif(executable() is None, reason=MISSING)


def page_names() -> list[str]:
    """Every page of the table of contents, and the ones the theme adds."""
    from robrep.book.site.build import SiteError, pages

    try:
        names = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in pages(ROOT)]
    except SiteError:
        names = []
    return [*names, "index.html", "search.html", "genindex.html"]


def chapter_names() -> list[str]:
    """The notebooks' pages."""
    return [name for name in page_names() if (ROOT / name).with_suffix(".ipynb").is_file()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


class Visit:
    """A page opened from its file, with what it complained of and what it asked other hosts for."""

    def __init__(self, browser: Any, site: Path, name: str, width: int, theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.context.set_default_timeout(120_000)  # ms: a busy machine is slow, not wrong
        self.page = self.context.new_page()
        self.page.route(lambda url: not url.startswith(OWN), lambda route: route.abort())
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto((site / name).resolve().as_uri())
        self.page.wait_for_load_state("load")
        self.page.wait_for_function("!window.MathJax || !MathJax.startup || MathJax.startup.promise")
        self.page.evaluate("window.MathJax?.startup?.promise")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def draw_all(self) -> int:
        """Scroll every figure into view and wait until it is drawn; returns their number."""
        figures = self.page.locator(".robrep-figure:visible")
        for index in range(figures.count()):
            # stays until it is drawn: a box that is passed within one frame is never noticed to be in view
            figures.nth(index).evaluate(
                """async box => { box.scrollIntoView({ behavior: 'instant' });
                   while (!box.dataset.drawn) await new Promise(done => setTimeout(done, 20)); }"""
            )
        return figures.count()

    def check(self) -> None:
        """No complaint, no other host."""
        assert not self.complaints
        assert not [url for url in self.asked if not url.startswith(OWN)]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", page_names())
def test_page_on_a_phone(browser: Any, site: Path, name: str, theme: str) -> None:
    """At 390 px: no console error, no request to another host, nothing that makes the page scroll sideways."""
    with Visit(browser, site, name, width=390, theme=theme) as visit:
        visit.draw_all()
        wide = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} px too wide"
        # the page may hide an overflow: nothing outside a box of its own may stick out of the text either
        out = visit.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
                 if (!e.offsetParent || e.getBoundingClientRect().right <= innerWidth + 1) return false;
                 for (let p = e; p && p !== document.body; p = p.parentElement) {
                   const style = getComputedStyle(p);
                   if (style.overflowX !== 'visible' || style.position === 'absolute') return false;
                 }
                 return true;
               }).map(e => e.outerHTML.slice(0, 120))"""
        )
        assert not out
        cut = visit.page.evaluate(
            """() => [...document.querySelectorAll('.cell_output .stream pre')]
               .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""
        )
        assert not cut, "printed text should wrap"
        wide = visit.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article mjx-container')].filter(e => e.checkVisibility())
               .map(e => e.querySelector('mjx-math')).filter(e => e && e.getBoundingClientRect().width > innerWidth)
               .map(e => `${Math.round(e.getBoundingClientRect().width)} px: ${e.textContent.slice(0, 60)}`)"""
        )
        assert not wide or "/api/" in name, "an equation is wider than the screen"  # a docstring's scrolls
        visit.check()


def test_names_in_a_plane_are_numbers_on_a_phone(browser: Any, site: Path) -> None:
    with Visit(browser, site, "book/comparison.html", width=390) as visit:
        visit.draw_all()
        plane = visit.page.locator(".robrep-figure").first
        numbers = plane.locator(".textpoint text").all_text_contents()
        told = " ".join(plane.locator(".legendtext").all_text_contents())
        assert sorted(map(int, numbers)) == [*range(1, 16)]
        assert all(f"{number} " in told for number in numbers) and "1 Standard" in told
        visit.check()


@pytest.mark.parametrize("name", page_names())
def test_page_on_a_desk(browser: Any, site: Path, name: str) -> None:
    """At 1440 px: the same quiet; every formula is rendered; every image and figure has a text alternative."""
    with Visit(browser, site, name, width=1440) as visit:
        visit.draw_all()
        formulas = visit.page.locator(".bd-article .math").count()
        rendered = visit.page.locator(".bd-article .math mjx-container").count()
        assert rendered >= formulas
        assert visit.page.locator("mjx-merror").count() == 0
        assert visit.page.locator(".robrep-figure:not([aria-label]), .robrep-figure[aria-label='']").count() == 0
        assert visit.page.locator(".bd-article img:not([alt]), .bd-article img[alt^='../_images']").count() == 0
        scrolls = visit.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article pre')]
               .filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
               .map(e => e.textContent.slice(0, 80))"""
        )
        assert not scrolls or "/api/" in name, "code should fit its box"
        visit.check()


@pytest.mark.parametrize("name", [name for name in chapter_names() if Path(name).stem not in PLAIN])
def test_a_picture_comes_first(browser: Any, site: Path, name: str) -> None:
    """The first figure begins within the first screen; every figure of a chapter has a number and a caption."""
    with Visit(browser, site, name, width=1440) as visit:
        visit.draw_all()
        top = visit.page.evaluate(
            """Math.min(...[...document.querySelectorAll('.bd-article figure')].filter(e => e.checkVisibility())
               .map(e => e.getBoundingClientRect().top + scrollY))"""
        )
        assert top < 900
        bare = visit.page.evaluate(
            """() => [...document.querySelectorAll('.bd-article .robrep-figure')].filter(e => e.checkVisibility())
               .filter(e => !e.closest('figure')?.querySelector('.caption-number'))
               .map(e => e.getAttribute('aria-label').slice(0, 80))"""
        )
        assert not bare, "figures without a number and a caption"


@pytest.mark.parametrize("name", chapter_names())
def test_chapter_links(browser: Any, site: Path, name: str) -> None:
    """Colab and edit links are made from the one address; the download is the notebook as committed."""
    import yaml

    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    address, branch = repository["url"], repository["branch"]
    source = Path(name).with_suffix(".ipynb").as_posix()
    html = (site / name).read_text()
    colab = address.replace("https://github.com", "https://colab.research.google.com/github")
    assert f"{colab}/blob/{branch}/{source}" in html
    assert f"{address}/edit/{branch}/{source}" in html
    assert (site / "_sources" / source).read_bytes() == (ROOT / source).read_bytes()


FINGERPRINT = """box => [...box.querySelectorAll('.cartesianlayer, .infolayer, .indicatorlayer, .polarlayer')]
    .map(layer => layer.innerHTML.replace(/slider-.*/s, '')).join('') + [...box.querySelectorAll('image')]
    .map(image => image.getAttribute('href') ?? image.getAttribute('xlink:href')).join('')"""


@pytest.mark.parametrize("name", chapter_names())
def test_sliders_move_their_figures(browser: Any, site: Path, name: str) -> None:
    """Each figure's slider, moved with the mouse to its last step (its first, if it starts at the last), changes it.

    So does a key that moves it to the other end.
    """
    with Visit(browser, site, name, width=1440) as visit:
        visit.draw_all()
        boxes = visit.page.locator(".robrep-figure:visible:has(.slider-rail-touch-rect)")
        if not boxes.count():
            assert Path(name).stem in (*PLAIN, "paper_against_ours", "simclr_urkle"), "a chapter without a slider"
            pytest.skip(f"{name} has no figure with a slider")
        for index in range(boxes.count()):
            box = boxes.nth(index)
            box.scroll_into_view_if_needed()
            before = box.evaluate(FINGERPRINT)
            rail = box.locator(".slider-rail-touch-rect").first.bounding_box()
            slider = box.locator("script").evaluate("data => JSON.parse(data.textContent).layout.sliders[0]")
            at_last = slider.get("active", 0) == len(slider["steps"]) - 1
            aim = 4 if at_last else rail["width"] - 4
            visit.page.mouse.click(rail["x"] + aim, rail["y"] + rail["height"] / 2)
            visit.page.wait_for_timeout(400)
            after = box.evaluate(FINGERPRINT)
            assert before != after, f"figure not moved by its slider: {box.get_attribute('aria-label')}"
            key = box.locator("input.robrep-control").first
            assert int(key.input_value()) == (0 if at_last else len(slider["steps"]) - 1), "the two controls agree"
            key.focus()
            visit.page.keyboard.press("End" if at_last else "Home")
            visit.page.wait_for_timeout(400)
            assert box.evaluate(FINGERPRINT) != after, f"no key moves this: {box.get_attribute('aria-label')}"
        visit.check()


@pytest.mark.parametrize("name", chapter_names())
def test_figures_follow_the_theme(browser: Any, site: Path, name: str) -> None:
    """The theme button turns a drawn figure's paper dark, and the text on it light."""
    paper = """() => { const words = '.xtick text, .ytick text, .g-gtitle text, .slider-label';
        const boxes = [...document.querySelectorAll('.robrep-figure[data-drawn]')];
        const box = boxes.find(each => each.querySelector(words));
        const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).reduce((sum, v) => sum + Number(v), 0) / 3;
        return { paper: rgb(getComputedStyle(box.querySelector('.main-svg')).backgroundColor),
                 text: rgb(getComputedStyle(box.querySelector(words)).fill) } }"""
    with Visit(browser, site, name, width=1440) as visit:
        if not visit.draw_all():
            pytest.skip(f"{name} has no figure")
        light = visit.page.evaluate(paper)
        assert light["paper"] > 200 and light["text"] < 130
        visit.page.evaluate("window.scrollTo(0, 0)")
        for _ in range(3):  # the button goes round dark, light and automatic
            visit.page.locator("button.theme-switch-button:visible").first.click()
            if visit.page.evaluate("document.documentElement.dataset.theme") == "dark":
                break
        drawn = "[...document.querySelectorAll('.robrep-figure[data-drawn]')]"
        visit.page.wait_for_function(f"{drawn}.every(box => box.dataset.drawn === 'dark')")
        dark = visit.page.evaluate(paper)
        assert dark["paper"] < 60 and dark["text"] > 130
        visit.check()


@pytest.mark.parametrize(
    "name", ["book/intro.html", "book/lab.html", "book/bibliography.html", "book/byo.html", "book/api/attacks.html"]
)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible(browser: Any, site: Path, name: str, theme: str) -> None:
    """axe-core finds nothing serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, site, name, width=1300, theme=theme) as visit:
        visit.draw_all()
        found = Axe().run(visit.page).response["violations"]
        grave = [rule for rule in found if rule["impact"] in ("serious", "critical")]
        assert not grave, [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in grave]


def test_search_finds(browser: Any, site: Path) -> None:
    """A word of one chapter leads to that chapter (excerpts come only from a server, not from files)."""
    with Visit(browser, site, "search.html", width=1300) as visit:
        visit.page.goto((site / "search.html").resolve().as_uri() + "?q=Wasserstein")
        visit.page.wait_for_selector("#search-results li")
        assert visit.page.locator("#search-results li a[href*='smooth_encoders.html']").count()


def test_no_dead_link_inside(site: Path) -> None:
    """Every link to a page of the site, and to a place on it, leads there."""
    anchors: dict[Path, set[str]] = {}
    dead, count = set(), 0
    for page in site.rglob("*.html"):
        for link in re.findall(r'<a[^>]*\bhref="([^"]+)"', page.read_text()):
            if re.match(r"[a-z]+:", link):
                continue
            count += 1
            name, _, place = unquote(unescape(link)).partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            if not target.exists():
                dead.add((page.name, link))
            elif place and target.suffix == ".html":
                if target not in anchors:
                    anchors[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text()))
                if place not in anchors[target]:
                    dead.add((page.name, link))
    assert count > 1000 and not dead


def test_weight(site: Path) -> None:
    """At most 15 MB beside plotly and MathJax, these once each, and no page above 2 MB."""
    from robrep.book.site.build import weights

    assert weights(site)["pages"] <= 15
    assert max(page.stat().st_size for page in site.rglob("*.html")) <= 2e6
    for script in ("plotly.min.js", "tex-mml-chtml.js"):
        assert len(list(site.rglob(script))) == 1
