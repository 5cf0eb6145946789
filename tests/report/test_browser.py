"""The page in a real browser, from disk: Chromium, without a window."""

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from biasreg.inference.models import ModelRequest
from biasreg.report.make_report import ReportOptions, make_report
from biasreg.report.material import ReportRequest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("BIASREG_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DESKTOP, PHONE = (1400, 900), (390, 844)
HOSTILE = '<script>alert(1)&"x'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or name it in BIASREG_CHROMIUM"),
]

# Read from a copy: a canvas that is read from itself is drawn by other means afterwards.
READ = """canvas => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d", {willReadFrequently: true});
  context.drawImage(canvas, 0, 0);
  const data = context.getImageData(0, 0, copy.width, copy.height).data;
"""
PIXELS = READ + "let text = ''; for (const value of data) text += String.fromCharCode(value); return btoa(text); }"


@pytest.fixture(scope="module")
def report(whole_study, tmp_path_factory) -> Path:
    request = ReportRequest(ModelRequest("700"), whole_study.roots, whole_study.predictions, whole_study.evaluation)
    return make_report(request, tmp_path_factory.mktemp("browser") / "report.html", ReportOptions(7))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the report; at the end nothing may have been complained of or asked for."""
    complaints: list[str] = []
    requests: list[str] = []
    pages: list[Page] = []

    def open_report(size: tuple[int, int] = DESKTOP, scheme: str = "light", path: Path = report) -> Page:
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector('.viewer[data-state="ready"]')
        return page

    yield open_report
    for page in pages:
        page.close()
    assert complaints == []
    assert all(url == report.as_uri() or url.startswith("data:") for url in requests), requests


def pixels(page: Page, view: int = 0) -> bytes:
    """What a view shows, once it is drawn: red, green, blue and opacity of each pixel."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return base64.b64decode(page.locator(".view canvas").nth(view).evaluate(PIXELS))


def test_the_report_opens_from_disk_and_asks_for_nothing(open_page):
    page = open_page()
    assert page.title() == "Dataset700_Kind"
    assert page.locator("main > section").count() == 9


def test_every_slider_moves_its_slice_and_no_other(open_page):
    page = open_page()
    for view in range(3):
        before = [pixels(page, each) for each in range(3)]
        slider = page.locator(".view input[type=range]").nth(view)
        slider.fill("4")
        after = [pixels(page, each) for each in range(3)]
        assert [a != b for a, b in zip(after, before, strict=True)] == [each == view for each in range(3)]
        assert page.locator(".view output").nth(view).inner_text().startswith("5 / ")


def test_every_mode_overlay_and_switch_changes_what_is_shown(open_page):
    page = open_page()
    seen = {}
    for mode in ("fixed", "moving", "warped", "blend", "checkerboard", "colours"):
        page.locator(f'[data-mode="{mode}"]').click()
        seen[mode] = pixels(page)
        assert page.locator(f'[data-mode="{mode}"]').get_attribute("aria-pressed") == "true"
    for overlay in ("displacement", "determinant"):
        page.locator(f'[data-overlay="{overlay}"]').click()
        seen[overlay] = pixels(page)
        assert page.locator(f'[data-bar="{overlay}"]').is_visible()
    for name in ("grid", "crosshair", "smooth", "fixedOutlines", "otherOutlines"):
        page.locator(f'[data-switch="{name}"]').click()
        seen[name] = pixels(page)
    shown = list(seen.values())
    assert all(a != b for index, a in enumerate(shown) for b in shown[:index])


def test_blend_opacity_and_before_or_after_change_what_is_shown(open_page):
    page = open_page()
    page.locator('[data-mode="blend"]').click()
    shown = [pixels(page)]
    page.locator("#viewer-blend").fill("90")
    shown.append(pixels(page))
    page.locator('[data-other="moving"]').click()
    shown.append(pixels(page))
    page.locator('[data-overlay="displacement"]').click()
    shown.append(pixels(page))
    page.locator("#viewer-opacity").fill("10")
    shown.append(pixels(page))
    assert all(a != b for index, a in enumerate(shown) for b in shown[:index])


def test_keys_do_what_the_help_says(open_page):
    page = open_page()
    assert page.locator(".keys").is_visible()
    viewer, canvas = page.locator(".viewer"), page.locator(".view canvas").first
    canvas.focus()
    start = page.locator(".view output").first.inner_text()
    page.keyboard.press("ArrowUp")
    pixels(page)
    assert page.locator(".view output").first.inner_text() != start
    page.keyboard.press("ArrowDown")
    pixels(page)
    assert page.locator(".view output").first.inner_text() == start
    modes = []
    for key in ("1", "6", "5", "4", "2", "3", "Space", "Space"):
        page.keyboard.press(key)
        pixels(page)
        modes.append(viewer.get_attribute("data-showing"))
    assert modes == ["fixed", "colours", "checkerboard", "blend", "moving", "warped", "fixed", "warped"]
    before = pixels(page)
    for key in ("d", "j", "g", "x", "c"):
        page.keyboard.press(key)
        after = pixels(page)
        assert after != before, key
        before = after
    page.keyboard.press("n")
    page.wait_for_selector('.viewer[data-state="ready"]')
    assert page.locator("#viewer-pair").input_value() == "1"


def test_keys_leave_text_fields_and_buttons_alone(open_page):
    page = open_page()
    page.locator('[data-mode="fixed"]').focus()
    page.keyboard.press("Space")
    pixels(page)
    assert page.locator(".viewer").get_attribute("data-showing") == "fixed"
    page.locator("#viewer-pair").focus()
    page.keyboard.press("2")
    pixels(page)
    assert page.locator(".viewer").get_attribute("data-showing") == "fixed"


def test_a_touch_on_a_view_leads_the_others_there(open_page):
    page = open_page()
    page.locator(".view canvas").first.click(position={"x": 2, "y": 2})  # the patient's right and front
    pixels(page)
    texts = [text.split(" / ") for text in page.locator(".view output").all_inner_texts()]
    assert texts[1][0] == texts[1][1]  # coronal: the last slice, at the front
    assert texts[2][0] == texts[2][1]  # sagittal: the last one, on the right


def test_the_right_of_the_patient_is_on_the_left_and_the_front_on_top(open_page):
    page = open_page()
    page.locator('[data-mode="fixed"]').click()
    page.locator('[data-switch="fixedOutlines"]').click()
    page.locator('[data-switch="otherOutlines"]').click()
    data = np.frombuffer(pixels(page), np.uint8)
    width = int(page.locator(".view canvas").first.get_attribute("width"))
    grey = data.reshape(-1, width, 4)[..., 0].astype(float)
    left, right = (half.sum() for half in np.array_split(grey, 2, axis=1))
    top, bottom = (half.sum() for half in np.array_split(grey, 2, axis=0))
    assert left > 1.1 * right  # the phantom is brighter on its right
    assert top > 1.1 * bottom  # and at its front


def test_every_pair_can_be_chosen_and_shows_its_own_numbers(open_page):
    page = open_page()
    options = page.locator("#viewer-pair option").all_inner_texts()
    assert len(options) == 7
    assert options[0].startswith("worst · ")
    shown = []
    for index in range(7):
        page.locator("#viewer-pair").select_option(str(index))
        page.wait_for_selector('.viewer[data-state="ready"]')
        shown.append(page.locator(".pair-details:visible h3").inner_text())
        assert page.locator(".pair-details:visible").count() == 1
    assert len(set(shown)) == 7
    assert HOSTILE in shown


def test_folding_is_marked(open_page):
    page = open_page()
    options = page.locator("#viewer-pair option").all_inner_texts()
    place = next(index for index, text in enumerate(options) if "pair_2" in text)
    page.locator("#viewer-pair").select_option(str(place))
    page.wait_for_selector('.viewer[data-state="ready"]')
    page.locator('[data-overlay="determinant"]').click()
    page.locator(".view input[type=range]").first.fill("4")
    data = pixels(page)
    cyan = sum(r < 30 and g > 200 and b > 200 for r, g, b in zip(data[0::4], data[1::4], data[2::4], strict=True))
    assert cyan > 20
    assert "folding, 0.000" not in page.locator("[data-folding]").inner_text()


def test_a_link_of_the_results_leads_to_its_pair(open_page):
    page = open_page()
    page.locator("#results a[data-look]", has_text="pair_5").click()
    page.wait_for_selector('.viewer[data-state="ready"]')
    assert page.locator(".pair-details:visible h3").inner_text() == "pair_5"
    assert page.url.endswith("#pairs")


def test_tables_sort_up_and_down(open_page):
    page = open_page()
    table = page.locator("#results table.sortable").first
    column = table.locator("thead th").all_inner_texts().index("Dice")

    def read() -> list[float]:
        cells = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        return [float(text.split(" ")[0]) for text in cells]

    button = table.locator(f"thead th:nth-child({column + 1}) button")
    button.click()
    assert read() == sorted(read())
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    button.click()
    assert read() == sorted(read(), reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(open_page, scheme, tmp_path):
    page = open_page(PHONE, scheme)
    for summary in page.locator("details:not([open]) > summary").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    boxes = [canvas.bounding_box() for canvas in page.locator(".view canvas").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE[0] and box["width"] > 100 for box in boxes)
    page.locator("[data-enlarge='0']").click()
    pixels(page)
    assert page.locator(".view:visible").count() == 1
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert (tmp_path / "phone.png").stat().st_size > 10_000


def test_light_and_dark_follow_the_reader(open_page):
    grey = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert min(open_page(scheme="light").evaluate(grey)) > 200
    assert max(open_page(scheme="dark").evaluate(grey)) < 60


def test_a_millimetre_is_as_long_in_every_view_and_along_both_axes(open_page):
    page = open_page()
    sizes = [canvas.bounding_box() for canvas in page.locator(".view canvas").all()]
    assert sizes[0]["width"] == pytest.approx(sizes[1]["width"], abs=2)  # left to right
    assert sizes[0]["height"] == pytest.approx(sizes[2]["width"], abs=2)  # back to front
    assert sizes[1]["height"] == pytest.approx(sizes[2]["height"], abs=2)  # foot to head


def test_focus_is_visible_and_controls_have_names(open_page):
    page = open_page()
    page.locator(".view canvas").first.focus()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas")]
          .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
