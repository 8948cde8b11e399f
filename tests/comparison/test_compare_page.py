"""compare.html in a browser: what it shows, what it refuses to run, and that it can be used without a mouse."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import make_run, wrong

from seg.cli.compose import compose_checked
from seg.commands.compare import compare_runs
from seg.comparison.page import embed_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
EVIL = "<img src=x onerror=document.title='owned'>"
ENDS = "</script><script>document.title='owned'</script>"
BOLD = "<b>bold</b>"
CLASSES = (EVIL, BOLD + ENDS)


def hostile_runs(root: Path) -> Path:
    """Three models, two seeds, 8 images; names that would be markup, and a failed run."""
    for model, more in (("unet", 0), ("fcn", 12), (f"{EVIL}", 4)):
        for seed in range(2):
            images = {
                f"i{k}{ENDS}": wrong(10 + 3 * k + more + seed, classes=CLASSES) for k in range(8)
            }
            make_run(
                root / f"{len(model)}-{model[:4].strip('<')}-{seed}", {"test": images}, choices={"model": model}, seed=seed,
                epochs=3 + seed, pictures=3, parameters=1_000_000 + 1000 * more, name=ENDS,
                versions={EVIL: ENDS, "torch": "2"}, config={"optim": {"lr": 0.001, ENDS: EVIL}, "data": {"root": f"{EVIL}{seed}"}},
            )  # fmt: skip
    counts = {"test": {"i": wrong(1)}}
    make_run(root / "failed", counts, status="failed", error=f"RuntimeError: {EVIL} {ENDS}")
    return root


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    root = hostile_runs(tmp_path_factory.mktemp("runs"))
    compare_runs(
        compose_checked("compare", [f"runs=[{root}]", "group_by=[model]", "num_examples=2"])
    )
    return root / "compare.html"


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_names_from_runs_make_no_element(html):
    found = Elements(html.read_text()).found
    assert [a.get("type") for tag, a in found if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    assert all(a["src"].startswith("data:image/") for tag, a in found if tag == "img")
    assert not [name for _, a in found for name in a if name.startswith("on")]
    assert not [a for tag, a in found if tag in ("link", "iframe", "base", "form", "object")]


def test_what_is_embedded_is_json_that_ends_no_element():
    value = {ENDS: [EVIL, "\u2028", "&amp;", float("nan"), float("inf"), 0.123456789]}
    text = embed_json(value)
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {ENDS: [EVIL, "\u2028", "&amp;", None, None, 0.12346]}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page in a browser, with all that it complained of and asked for."""

    def __init__(self, browser, html: Path, **options) -> None:
        self.page = browser.new_page(**options)
        self.said: list[str] = []
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on(
            "request", lambda r: r.url.startswith(("data:", "file:")) or self.said.append(r.url)
        )
        self.page.goto(html.as_uri())

    def see(self, plot: str) -> None:
        """Scrolls to a plot and waits until it is drawn."""
        self.page.locator(f"#plot-{plot}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#plot-{plot}[aria-busy=false]", state="attached")

    def traces(self, plot: str) -> list[dict]:
        self.see(plot)
        script = f"document.getElementById('plot-{plot}').data.map(t => ({{x: t.x, y: t.y, name: t.name, mode: t.mode}}))"
        return self.page.evaluate(script)

    def column(self, index: int) -> list[str]:
        rows = self.page.locator("#table tbody tr:visible")
        return [row.locator("td, th").nth(index).inner_text() for row in rows.all()]


@pytest.fixture(scope="module")
def shared(browser, html):
    return Opened(browser, html, viewport={"width": 1200, "height": 900})


@pytest.fixture
def opened(shared):
    """The one page, as it was opened; sorting is set by who needs it."""
    page = shared.page
    page.fill("#filter", "")
    page.click("[data-choose=all]")
    page.evaluate("scrollTo(0, 0)")
    page.uncheck("#every-key")
    return shared


PLOTS = ("curves", "classes", "options", "cost", "scatter")


def test_every_plot_is_drawn_with_no_complaint_no_request_and_no_injection(opened):
    for plot in PLOTS:
        assert opened.traces(plot)
    assert opened.said == []
    assert opened.page.title() == "Dice of 7 runs"
    assert EVIL in opened.page.locator("#ranking").inner_text()
    assert opened.page.locator("#plot-classes").get_by_text(BOLD).count() > 0
    assert opened.page.locator("#plot-classes").get_by_text("<img src=x").count() > 0  # as text


def test_the_pages_policy_stops_a_foreign_script_and_every_request(browser, html):
    other = Opened(browser, html)
    stopped = other.page.evaluate("""async () => {
        const stopped = [];
        document.addEventListener("securitypolicyviolation", (e) => stopped.push(e.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        new Image().src = "http://127.0.0.1:9/x.png";
        await fetch("http://127.0.0.1:9/").catch(() => null);
        await new Promise((done) => setTimeout(done, 100));
        return [window.ran ?? "never", ...stopped.sort()];
    }""")
    assert stopped == ["never", "connect-src", "img-src", "script-src-elem"]
    other.page.close()


def test_a_plot_waits_until_it_is_near(browser, html):
    far = Opened(browser, html, viewport={"width": 900, "height": 300})
    assert far.page.locator("#plot-scatter .main-svg").count() == 0
    far.see("scatter")
    far.page.close()


def test_a_header_sorts_by_number_and_says_how(opened):
    page = opened.page
    header = page.locator("#table thead th", has_text="Dice")
    place = header.evaluate("th => th.cellIndex")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    values = opened.column(place)
    known = [float(v) for v in values if v]
    assert (
        known == sorted(known) and len(known) == 6 and values[-1] == ""
    )  # the failed run has none
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    values = opened.column(place)
    assert [float(v) for v in values if v] == known[::-1] and values[-1] == ""
    assert page.locator("#table th[aria-sort]").count() == 1


def test_filter_and_ticks_choose_what_the_plots_show(opened):
    page = opened.page
    assert len(opened.traces("curves")) == 7
    page.fill("#filter", "FCN finished")
    assert page.locator("#count").inner_text() == "2 of 7 runs shown"
    assert [t["x"] for t in opened.traces("curves")] == [[1, 2, 3], [1, 2, 3, 4]]
    assert {t["name"] for t in opened.traces("classes")} == {"fcn"}
    page.fill("#filter", "")
    page.click("[data-choose=none]")
    page.locator("#table tbody input").first.check()
    assert len(opened.traces("curves")) == 1
    page.click("[data-choose=typical]")
    assert page.locator("#count").inner_text() == "3 of 7 runs shown"


def test_curves_go_over_steps_epochs_or_minutes(opened):
    """Rows at steps 1, 3, 5 of 6 (from 0), in epochs 0, 1, 2, of two minutes."""
    page = opened.page
    page.fill("#filter", "4-unet-0")
    for by, wanted in (("step", [2, 4, 6]), ("minutes", [2 / 3, 4 / 3, 2]), ("epoch", [1, 2, 3])):
        page.select_option("#curve-x", by)
        (trace,) = opened.traces("curves")
        assert trace["x"] == pytest.approx(wanted)
    assert opened.traces("curves")[0]["y"] == [0.5, 0.7, 0.9]
    page.select_option("#curve-metric", "val/loss")
    assert opened.traces("curves")[0]["y"][0] == 1
    page.select_option("#curve-metric", "val/dice")


def test_the_scatter_has_each_images_dice_of_both_runs(opened):
    """Wrong pixels of 100: 10 + 3k of unet, 12 more of fcn."""
    page = opened.page
    for which, start in (("a", "4-unet-0"), ("b", "3-fcn-0")):
        options = page.locator(f"#run-{which} option").all_inner_texts()
        page.select_option(f"#run-{which}", str(next(i for i, o in enumerate(options) if o.startswith(start))))  # fmt: skip
    points = opened.traces("scatter")[1]
    assert points["x"] == pytest.approx([0.9 - 0.03 * k for k in range(8)])
    assert points["y"] == pytest.approx([0.78 - 0.03 * k for k in range(8)])
    assert page.locator("#scatter-said").inner_text() == "A is better on 8, B on 0 of 8 images"
    diff = {
        tuple(row.locator("th, td").all_inner_texts())
        for row in page.locator("#diff tbody tr").all()
    }
    assert ("model._target_", "seg.models.unet", "seg.models.fcn") in diff
    assert not [row for row in diff if row[0] == "optim.lr"]
    page.check("#every-key")
    assert page.locator("#diff tbody tr", has_text="optim.lr").count() == 1


def test_the_front_of_score_against_cost(opened):
    """Unet is best and cheapest: the front is its point alone."""
    traces = opened.traces("cost")
    assert traces[0]["name"] == "Pareto front" and traces[0]["x"] == [1.0]
    assert traces[0]["y"] == pytest.approx([0.79])
    assert len(traces) == 4


def test_a_table_is_sorted_and_runs_are_chosen_with_the_keyboard_alone(opened):
    page = opened.page
    page.locator("#filter").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.sort')"):
            break
    header = page.evaluate_handle("document.activeElement.closest('th')")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") and outline == "solid"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#table input')"):
            break
    page.keyboard.press("Space")
    assert page.locator("#count").inner_text() == "6 of 7 runs shown"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("show ")


def test_the_dark_page_is_dark_and_so_are_its_plots(opened):
    page = opened.page
    opened.see("cost")
    ink = "getComputedStyle(document.querySelector('#plot-cost .xtick text')).fill"
    colours = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        text = page.evaluate("getComputedStyle(document.body).color")
        page.wait_for_function(f"() => {ink} === getComputedStyle(document.body).color")
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours[scheme] = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in (back, text)]
    page.emulate_media(color_scheme="light")
    assert colours["light"][0] > 700 > 200 > colours["light"][1]
    assert colours["dark"][0] < 200 < 600 < colours["dark"][1]


def test_a_phone_shows_the_page_without_scrolling_sideways(browser, html):
    phone = Opened(browser, html, viewport={"width": 375, "height": 700})
    for plot in PLOTS:
        phone.see(plot)
        width = phone.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width == [375, 375], plot
    assert phone.said == []
    phone.page.close()


def test_pictures_stand_side_by_side_and_load(opened):
    images = opened.page.locator("#pictures .strip").first.locator("img")
    assert images.count() == 2 + 3  # image, truth and a run of each model
    opened.page.locator("#pictures").scroll_into_view_if_needed()
    opened.page.wait_for_function("() => [...document.querySelectorAll('#pictures .strip img')].slice(0, 5).every(i => i.naturalWidth === 32)")  # fmt: skip
