"""The rendered book as a reader meets it: from a plain folder, in a real browser, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
HTML = Path(os.environ.get("ROBRET_BOOK", ROOT / "book" / "_build" / "html"))
EVERY = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
PAGES = [page for page in EVERY if not page.startswith("_static/") and page != "index.html"]
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

PATIENCE = 600_000  # milliseconds: only what never comes takes so long

LAUNCHERS = ("https://mybinder.org/",)

pytestmark = pytest.mark.book


def missing(what: str) -> None:
    """Skip, or fail where continuous integration says that a browser must be there."""
    if os.environ.get("ROBRET_REQUIRE_BROWSER"):
        pytest.fail(what)
    pytest.skip(what)


@dataclass
class Visit:
    """A page that was opened, and everything that went wrong on it."""

    page: Page
    trouble: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def go(self, url: str) -> Page:
        self.page.goto(url, wait_until="load")
        self.page.evaluate("window.MathJax ? MathJax.startup.promise : null")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        missing("no Chromium on this machine; on Debian: apt-get install chromium")
    if not PAGES:
        missing(f"no rendered book in {HTML}; make html renders it")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        yield playwright.chromium.launch(executable_path=program, headless=True, args=flags, timeout=PATIENCE)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Visit]:
    """A browser tab without a network that writes down every complaint."""
    context = browser.new_context(viewport=DESKTOP, offline=True)
    visit = Visit(context.new_page())
    context.set_default_timeout(PATIENCE)

    def request(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            visit.outside.append(request.url)

    def console(message):
        if message.type in ("error", "warning"):
            visit.trouble.append(f"console {message.type}: {message.text}")

    context.on("request", request)
    visit.page.on("console", console)
    visit.page.on("pageerror", lambda error: visit.trouble.append(f"error: {error}"))
    visit.page.on("requestfailed", lambda request: visit.trouble.append(f"not loaded: {request.url}"))
    yield visit
    context.close()


END_TRANSITIONS = """() => {
    const transitions = document.getAnimations().filter(animation => animation instanceof CSSTransition);
    transitions.forEach(transition => transition.finish());
    return !transitions.length;
}"""

CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = color => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = color => color.slice(0, 3)
        .map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = rgba(getComputedStyle(element).backgroundColor);
            if (color[3] > 250) return color;
        }
        return rgba(getComputedStyle(document.documentElement).backgroundColor);
    };
    return [...document.querySelectorAll('.bd-article :is(h1, h2, p, li, td, th, a, pre, pre span)')]
        .filter(element => element.offsetParent && element.innerText.trim())
        .map(element => {
            const [a, b] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.innerText.trim().slice(0, 60)];
        })
        .filter(([contrast]) => contrast < 4.0);
}"""


def bad_images(page: Page) -> list[str]:
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    images = page.eval_on_selector_all(
        "img", "all => all.map(image => [image.src, image.naturalWidth, image.alt.trim()])"
    )
    hidden = [f"does not show: {source}" for source, width, _ in images if not width]
    return hidden + [f"has no description: {source}" for source, _, alt in images if not alt]


def bad_formulas(page: Page) -> list[str]:
    raw = page.eval_on_selector_all(
        ".math", "all => all.filter(f => !f.querySelector('mjx-container')).map(f => f.innerText)"
    )
    errors = page.eval_on_selector_all("mjx-merror", "all => all.map(formula => formula.innerText)")
    return [f"not typeset: {text}" for text in raw] + [f"not understood: {text}" for text in errors]


def too_wide(page: Page, viewport: dict[str, int]) -> list[str]:
    page.set_viewport_size(viewport)
    page.wait_for_function(f"window.innerWidth == {viewport['width']}")
    width = page.evaluate("document.documentElement.scrollWidth")
    return [f"{width} pixels wide on a screen of {viewport['width']}"] if width > viewport["width"] else []


def cut_off(page: Page) -> list[str]:
    """Code, formulas and tables that one has to scroll sideways to read."""
    return page.eval_on_selector_all(
        ".bd-article :is(.cell_input pre, div.math, table)",
        "all => all.filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1)"
        ".map(e => e.innerText.slice(0, 60))",
    )


def low_contrasts(page: Page) -> list[tuple[float, str]]:
    """Of the colors that are there when all have faded over."""
    page.wait_for_function(END_TRANSITIONS)
    return page.evaluate(CONTRAST)


def too_faint(page: Page, scheme: str) -> list[str]:
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme == '{scheme}'")
    return [f"contrast {value:.1f} in the {scheme} scheme: {text}" for value, text in low_contrasts(page)]


@pytest.mark.parametrize("path", CHAPTERS or ["no book"])
def test_nothing_on_a_page_is_cut_off(tab: Visit, path: str):
    page = tab.go((HTML / path).as_uri())
    page.wait_for_function("!document.querySelector('.math:not(:has(mjx-container))')")
    page.eval_on_selector_all("details", "all => all.forEach(folded => folded.open = true)")
    assert not cut_off(page)


@pytest.mark.parametrize("path", CHAPTERS or ["no book"])
def test_what_is_numbered_carries_the_number_of_the_chapter(tab: Visit, path: str):
    page = tab.go((HTML / path).as_uri())
    chapter = int(Path(path).stem[:2])
    numbers = page.eval_on_selector_all(".bd-article .caption-number", "all => all.map(e => e.innerText.trim())")
    kinds: dict[str, list[str]] = {}
    for kind, number in (text.rsplit(" ", 1) for text in numbers):
        kinds.setdefault(kind, []).append(number)
    assert {"Fig.", "Exercise"} < kinds.keys()
    for found in kinds.values():
        assert found == [f"{chapter}.{place}" for place in range(1, len(found) + 1)]


@pytest.mark.parametrize("path", PAGES or ["no book"])
def test_page_is_whole(tab: Visit, path: str):
    page = tab.go((HTML / path).as_uri())
    found = bad_images(page) + bad_formulas(page) + too_wide(page, DESKTOP) + too_wide(page, PHONE)
    assert not found
    if path.startswith(("book/", "chapters/")):
        assert not too_faint(page, "light") + too_faint(page, "dark")
    assert not tab.trouble
    assert not tab.outside, "the page asks the network"


def test_switch_turns_the_page_dark(tab: Visit):
    page = tab.go((HTML / "book" / "intro.html").as_uri())
    for _ in range(3):
        if page.get_attribute("html", "data-theme") == "dark":
            break
        page.locator(".theme-switch-button:visible").first.click()
    assert page.get_attribute("html", "data-theme") == "dark"
    assert not low_contrasts(page), "text that stands out too little from its ground"
    assert not tab.trouble


def test_search_finds_candidate_attack(tab: Visit):
    page = tab.go((HTML / "search.html").as_uri() + "?q=candidate+attack")
    page.wait_for_selector("#search-results li a[href*='candidate_and_query_attacks']")  # results come one by one
    assert not tab.trouble


def test_search_box_leads_to_results(tab: Visit):
    page = tab.go((HTML / "book" / "intro.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("candidate attack")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert not tab.trouble


@pytest.mark.parametrize("chapter", CHAPTERS or ["no book"])
def test_solutions_unfold(tab: Visit, chapter: str):
    page = tab.go((HTML / chapter).as_uri())
    solutions = page.locator("div.solution.dropdown")
    assert solutions.count()
    for solution in solutions.all():
        content = solution.locator("section").first
        assert not content.is_visible()
        solution.locator("button.toggle-button").click()
        content.wait_for(state="visible")


def test_opens_from_any_folder(tab: Visit, tmp_path: Path):
    moved = shutil.copytree(HTML, tmp_path / "the book, moved")
    tab.page.goto((moved / "index.html").as_uri(), wait_until="commit")  # it sends on to the front page
    page = tab.page
    page.wait_for_url("**/intro.html")
    page.locator("nav a[href*='chapters/']").first.click()
    page.wait_for_url("**/chapters/*")
    assert not tab.trouble
    assert not tab.outside


class Links(HTMLParser):
    """The targets a page links to and the anchors it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.anchors |= {named[key] or "" for key in ("id", "name") if key in named}
        self.targets += [named[key] or "" for key in ("href", "src") if key in named]


def test_links_lead_somewhere(browser: Browser):
    pages = {(HTML / page).resolve(): Links(HTML / page) for page in [*PAGES, "index.html"]}
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchor = unquote(parts.fragment)
            known = file not in pages or anchor in pages[file].anchors | {"", "top"}
            if not file.exists() or not known:
                broken.append(f"{page.relative_to(HTML.resolve())}: {target}")
    assert not broken


@pytest.mark.parametrize("chapter", CHAPTERS or ["no book"])
def test_launch_buttons_name_the_notebook_in_the_repository(browser: Browser, chapter: str):
    notebook = Path(chapter).with_suffix(".ipynb").as_posix()
    launch = [target for target in Links(HTML / chapter).targets if target.startswith(LAUNCHERS)]
    assert len(launch) == len(LAUNCHERS)
    assert all(unquote(target).replace("/./", "/").endswith(notebook) for target in launch)
