"""The console as a person meets it: a headless Chromium against the running suite, keys and all.

During all of it nothing is asked of another host, nothing is refused by the content policy and
nothing is written to the browser's console, unless a test expects a refusal.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.e2e.processes import Service, Suite, free_ports, read_json, shell, tool, until

WAIT_MS = 30_000
WIDE = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}
VIEWS = ("overview", "models", "models/sentiment", "classify", "chat", "charts")
TABS = ("overview", "models", "classify", "chat", "charts")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# The least contrast of any text that is seen, and where it is: WCAG 2, 1.4.3.
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const over = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [21, ''];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest('svg, .hidden, .skip')) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) {
      grounds.unshift(getComputedStyle(at).backgroundColor);
    }
    const colour = getComputedStyle(element).color;
    const [a, b] = [light(over(grounds)), light(over([...grounds, colour]))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, element.outerHTML.slice(0, 120)];
  }
  return worst;
}"""


class Watched:
    """A page, and what it must not do."""

    def __init__(self, browser: Browser, http: str, **context: object) -> None:
        self.http = http
        self.context = browser.new_context(**{"viewport": WIDE, **context})
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.expected: list[str] = []
        self.seen: list[str] = []
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self.seen.append(str(error)))
        self.page.on("request", self._asked)

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(one in text for one in self.expected):
            self.seen.append(text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(f"{self.http}/"):
            self.seen.append(f"asked {request.url}")

    def open(self, view: str = "overview") -> Page:
        """Go to a view, and wait until what it shows has come."""
        self.page.goto(f"{self.http}/#{view}")
        ready = {
            "overview": ".served li",
            "models": "table.rows tbody tr",
            "models/sentiment": ".history li",
            "classify": "#classify-model option",
            "chat": "#chat-model option",
            "charts": ".chart",
        }
        self.page.wait_for_selector(ready[view], state="attached")
        return self.page

    def shot(self, name: str) -> None:
        """Keep a picture, where somebody wants to look."""
        if folder := os.environ.get("GRISTMILL_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def close(self) -> None:
        """Hold it to its word."""
        self.context.close()
        assert self.seen == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's own Chromium."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=tool("chromium"), args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def watched(browser: Browser, suite: Suite) -> Iterator[Watched]:
    """A fresh page."""
    page = Watched(browser, suite.http)
    yield page
    page.close()


def number(text: str | None) -> float:
    """The first number in a text."""
    found = re.search(r"[0-9][0-9,.]*", text or "")
    assert found, text
    return float(found[0].replace(",", ""))


def running(suite: Suite) -> float:
    """How many prompts the generator works on."""
    answer = httpx.get(f"{suite.http}/console/metrics", trust_env=False)
    return float(answer.json()["services"]["generator"]["running"])


class TestViews:
    def test_the_overview_says_that_everything_serves(self, watched: Watched) -> None:
        page = watched.open()
        expect(page.locator("h1")).to_have_text("Everything serves", timeout=WAIT_MS)
        for name in ("gateway", "registry", "classifier", "generator"):
            expect(page.locator(f"#card-{name} .state")).to_have_text("serving")
        served = page.locator(".served li")
        for model in ("sentiment", "iris", "smollm2"):
            expect(served.filter(has_text=model)).to_contain_text("ready")
        watched.shot("overview")

    def test_a_model_opens_to_its_history(self, watched: Watched) -> None:
        page = watched.open("models")
        rows = page.locator("#models-panel table.rows tbody tr")
        expect(rows).to_have_count(3)
        expect(rows.filter(has_text="sentiment")).to_contain_text("live → 1")
        watched.shot("models")
        page.get_by_role("link", name="sentiment").click()
        expect(page.locator("h1").filter(visible=True)).to_have_text("sentiment")
        assert page.url.endswith("#models/sentiment")
        assert page.title() == "sentiment · Models · Gristmill"
        expect(page.locator(".history li").first).to_contain_text("points to version 1")
        expect(page.locator(".history li").last).to_contain_text("Model created")
        expect(page.locator("#models-panel table.rows").first).to_contain_text("23.4 MB in 3 files")
        expect(page.locator(".traffic")).to_contain_text("live 100%")
        watched.shot("model")
        (answer,) = read_json(shell(page.locator(".snippets pre").inner_text()))
        assert answer["results"][0]["classification"]["labels"][0]["label"] == "positive"
        page.get_by_role("button", name="grpcurl").click()
        expect(page.locator(".snippets pre")).to_contain_text("ClassifierService/Classify")
        page.go_back()
        expect(rows).to_have_count(3)

    def test_text_is_classified_with_bars(self, watched: Watched) -> None:
        page = watched.open("classify")
        page.select_option("#classify-model", "sentiment")
        # What was asked before comes from the cache, without timings.
        mark = uuid.uuid4().hex[:6]
        page.fill("#classify-input", f"I love {mark}.\n\nA terrible waste of {mark} <b>time</b>.")
        page.keyboard.press("Control+Enter")
        results = page.locator(".result")
        expect(results).to_have_count(2)
        expect(results.nth(0).locator(".best")).to_contain_text("positive")
        expect(results.nth(1).locator(".best")).to_contain_text("negative")
        expect(results.nth(1).locator("blockquote")).to_contain_text("<b>time</b>")
        expect(results.nth(0)).to_contain_text(
            re.compile("queue .*batch .*compute .*batch of [12]")
        )
        page.wait_for_timeout(400)  # the bars grow
        bars = [page.locator(".fill").nth(i).bounding_box() for i in range(2)]
        assert bars[0] is not None
        assert bars[1] is not None
        assert bars[0]["width"] > bars[1]["width"]
        watched.shot("classify")

    def test_numbers_are_classified_and_checked(self, watched: Watched) -> None:
        page = watched.open("classify")
        page.select_option("#classify-model", "iris")
        page.click("#classify-panel button[type=submit]")
        expect(page.locator(".result .best")).to_contain_text("setosa")
        page.fill("#classify-input", "5.1, 3.5")
        page.click("#classify-panel button[type=submit]")
        expect(page.locator(".results .failure")).to_contain_text("Line 1 has to be 4 numbers")

    def test_charts_show_what_happens(self, watched: Watched, suite: Suite) -> None:
        page = watched.open("charts")
        body = {"model": {"model": "sentiment"}, "items": [{"text": {"text": "not bad"}}]}
        row = page.locator(".figures tr").filter(has_text="classifier")
        with httpx.Client(base_url=suite.http, trust_env=False) as client:
            expect(row).to_contain_text("1 of 1")
            for _ in range(20):
                client.post("/classifier/v1/classify", json=body).raise_for_status()
        requests = page.locator("#charts-classifier .chart").first
        expect(requests.locator("svg")).to_have_attribute(
            "aria-label", re.compile(r"Requests: requests [0-9.]*[1-9][0-9.]*/s"), timeout=WAIT_MS
        )
        assert number(row.locator("td").nth(2).text_content()) > 0
        expect(row.locator("td").nth(7)).to_have_text(re.compile(r"[0-9.]+ (µs|ms|s)"))
        assert requests.locator("path.line").get_attribute("d")
        watched.shot("charts")


class TestChat:
    def test_tokens_come_one_by_one_until_stopped(self, watched: Watched, suite: Suite) -> None:
        page = watched.open("chat")
        page.fill("#chat-most", "2000")
        page.fill("#chat-input", "Write a very long story about a mill.")
        page.keyboard.press("Enter")
        message = page.locator(".message.model")
        text = message.locator(".text")
        expect(text).not_to_be_empty()
        expect(message).to_have_attribute("aria-busy", "true")
        expect(text).not_to_have_text(text.inner_text())
        watched.shot("chat-streaming")
        page.get_by_role("button", name="Stop").click()
        expect(message).to_have_attribute("aria-busy", "false")
        facts = message.locator(".facts").inner_text()
        assert re.fullmatch(r"\d+ tokens · .* tokens/s · first after .* · stopped by you", facts), (
            facts
        )
        assert 0 < number(facts) < 2000
        until(lambda: running(suite) == 0)
        said = text.inner_text()
        page.wait_for_timeout(300)
        assert text.inner_text() == said
        page.fill("#chat-most", "6")
        page.fill("#chat-input", "Go on, <i>please</i>.")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".message.user").last).to_have_text("You: Go on, <i>please</i>.")
        last = page.locator(".message.model").last
        expect(last).to_have_attribute("aria-busy", "false")
        expect(last.locator(".facts")).to_contain_text(re.compile("finished|stopped at max tokens"))
        watched.shot("chat")
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".message")).to_have_count(0)

    def test_a_refusal_is_shown_in_its_place(self, watched: Watched) -> None:
        watched.expected.append("status of 400")
        page = watched.open("chat")
        page.locator("#chat-temperature").evaluate("(one) => { one.max = 9; one.value = 5; }")
        page.fill("#chat-input", "Hello")
        page.keyboard.press("Enter")
        failure = page.locator(".message.model .failure")
        expect(failure).to_contain_text("INVALID")
        expect(failure).to_contain_text("temperature")


class TestForEveryone:
    def test_keys_alone_lead_everywhere(self, watched: Watched) -> None:
        page = watched.open()
        page.keyboard.press("Tab")
        expect(page.locator("#skip")).to_be_focused()
        for _ in range(2):
            page.keyboard.press("Tab")
        for index, name in enumerate(TABS):
            tab = page.locator(f"#tab-{name}")
            expect(tab).to_be_focused()
            expect(tab).to_have_attribute("aria-selected", "true")
            assert tab.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
            for other in TABS:
                panel = page.locator(f"#{other}-panel")
                expect(panel).to_be_visible() if other == name else expect(panel).to_be_hidden()
            if index < len(TABS) - 1:
                page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#tab-overview")).to_be_focused()
        page.keyboard.press("End")
        expect(page.locator("#tab-charts")).to_be_focused()
        page.keyboard.press("Home")
        page.keyboard.press("Tab")
        expect(page.locator("#token")).to_be_focused()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_every_text_can_be_read(self, browser: Browser, suite: Suite, scheme: str) -> None:
        watched = Watched(browser, suite.http, color_scheme=scheme)
        for view in VIEWS:
            page = watched.open(view)
            if view == "classify":
                page.click("#classify-panel button[type=submit]")
                page.wait_for_selector(".result")
            ratio, where = page.evaluate(CONTRAST)
            assert ratio >= 4.5, f"{view}: {where}"
            watched.shot(f"{view.replace('/', '-')}-{scheme}")
        watched.close()

    def test_a_phone_needs_no_sideways_scroll(self, browser: Browser, suite: Suite) -> None:
        watched = Watched(browser, suite.http, viewport=PHONE, has_touch=True)
        for view in VIEWS:
            page = watched.open(view)
            assert page.evaluate(OVERFLOW) <= 0, view
            watched.shot(f"{view.replace('/', '-')}-phone")
        watched.close()

    def test_the_switch_is_remembered(self, browser: Browser, suite: Suite) -> None:
        watched = Watched(browser, suite.http, color_scheme="dark", reduced_motion="reduce")
        page = watched.open()
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.click("#theme")
        light = page.evaluate(ground)
        assert number(dark.removeprefix("rgb")) < 60 < 200 < number(light.removeprefix("rgb"))
        page.reload()
        assert page.evaluate(ground) == light
        page.goto(f"{watched.http}/docs")
        assert page.evaluate(ground) == light
        page.get_by_role("link", name="Console").click()
        watched.page.wait_for_selector("#overview-panel")
        watched.close()


@pytest.fixture
def guarded(suite: Suite, tmp_path: Path) -> Iterator[Service]:
    """A gateway of its own that asks for tokens, has no figures, and misses its generator."""
    entries = [
        {
            "identity": scope,
            "sha256": hashlib.sha256(scope.encode() * 5).hexdigest(),
            "scopes": [scope],
        }
        for scope in ("read", "infer")
    ]
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(yaml.safe_dump({"tokens": entries}))
    services = (f"--{name}={suite.address(name)}" for name in ("registry", "classifier"))
    (port,) = free_ports({"gateway": 0}).values()
    away = ("--generator=127.0.0.1:1", f"--token-file={tokens}")
    service = Service.start("gateway", port, tmp_path, *services, *away)
    until(lambda: "listening" in service.log)
    yield service
    service.end()


def test_what_is_missing_is_said(browser: Browser, guarded: Service) -> None:
    watched = Watched(browser, f"http://{guarded.address}")
    watched.expected += ["status of 401", "status of 403", "status of 503"]
    page = watched.page
    page.goto(f"{watched.http}/")
    expect(page.locator("h1")).to_have_text("The generator does not serve", timeout=WAIT_MS)
    expect(page.locator("#refused")).to_contain_text("asks for a token")
    watched.shot("token-missing")
    page.fill("#token", "nobody's token")
    expect(page.locator("#refused")).to_contain_text("not known here")
    page.fill("#token", "infer" * 5)
    expect(page.locator("#refused")).to_contain_text("may not do that")
    page.fill("#token", "read" * 5)
    expect(page.locator("#refused")).to_be_hidden()
    expect(page.locator(".served")).to_contain_text("sentiment")
    page.goto(f"{watched.http}/#charts")
    for name in ("registry", "classifier", "generator"):
        expect(page.locator(f"#charts-{name}")).to_contain_text(f"{name}_metrics")
    watched.shot("charts-not-set")
    page.reload()
    assert page.input_value("#token") == "read" * 5
    watched.close()
