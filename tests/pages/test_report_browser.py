"""The pages in a real browser: no errors, no requests, sortable tables, legible in light, dark and on a phone."""

import json
import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

if not (CHROMIUM and DRIVER):
    pytest.skip("no Chromium with its chromedriver is installed", allow_module_level=True)
ADVICE = "selenium is not installed: pip install 'redi-diffusion[test]'"
webdriver = pytest.importorskip("selenium.webdriver", reason=ADVICE)

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage""".split()
SWEEP, RUN = "sweep", "run"
# For every visible element with text of its own: colour, background (of the nearest ancestor that has one), text.
COLOURS = """
return [...document.body.querySelectorAll('*')].filter(e => e.getClientRects().length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).map(e => {
  let below = e;
  while (getComputedStyle(below).backgroundColor === 'rgba(0, 0, 0, 0)') below = below.parentElement;
  const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
  return [svg ? style.fill : style.color, getComputedStyle(below).backgroundColor, e.textContent.trim().slice(0, 30)];
});
"""
LINES = """
const page = getComputedStyle(document.body).backgroundColor;
return [...document.querySelectorAll('svg .series path, svg.key path')]
  .map(e => [getComputedStyle(e).stroke, page, 'line']);
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, make):
    """The addresses of a page of each kind."""
    from redi.pages.report import report

    folder = tmp_path_factory.mktemp("pages")
    make.run(folder / RUN)
    make.sweep(folder / SWEEP)
    long_name = {"metric": "a_metric_with_a_name_as_long_as_any" * 3, "note": "x" * 300}
    make.metrics(folder / RUN, {}, long_name, labels=list(range(100)))
    return {name: report(folder / name).as_uri() for name in (RUN, SWEEP)}


@pytest.fixture
def show(browser):
    """Sets the colour scheme and the width of the window."""

    def show(scheme="light", width=1200):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    return show


@pytest.fixture
def visit(browser, pages, show):
    """Opens a page."""

    def visit(name):
        show()
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what came before is not this page's
        browser.get(pages[name])
        return browser

    return visit


def messages(browser, method: str) -> list[dict]:
    """The network messages of the browser of one kind."""
    found = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [message["params"] for message in found if message["method"] == method]


def column(browser, index: int, table: int = 0) -> list[str]:
    script = f"""return [...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows]
        .map(row => row.cells[{index}].textContent)"""
    return browser.execute_script(script)


def click(browser, index: int, table: int = 0) -> str:
    """Click a header; return the sort direction of its column."""
    header = browser.find_elements("css selector", "table.sortable")[table].find_elements(
        "css selector", "th[scope=col]"
    )
    header[index].find_element("tag name", "button").click()
    return header[index].get_attribute("aria-sort")


@pytest.mark.parametrize("name", [RUN, SWEEP])
def test_a_page_loads_without_errors_and_asks_for_nothing(name, visit, pages):
    browser = visit(name)
    assert browser.get_log("browser") == []
    asked = [message["request"]["url"] for message in messages(browser, "Network.requestWillBeSent")]
    asked = [address for address in asked if not address.startswith("data:")]
    assert asked == [pages[name]]
    broken = "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
    assert browser.execute_script("return document.images.length") > 4 and browser.execute_script(broken) == 0


def test_the_policy_of_a_page_keeps_what_does_not_belong_to_it_from_running_and_loading(visit):
    browser = visit(RUN)
    browser.execute_script("""
        document.body.insertAdjacentHTML('beforeend', '<img src="https://example.org/x.png" onerror="window.ran = 1">');
        const script = document.createElement('script'); script.textContent = 'window.ran = 1';
        document.body.append(script);
    """)
    assert browser.execute_script("return window.ran") is None
    assert all("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
    (picture,) = browser.find_elements("css selector", "img[onerror]")
    assert picture.get_attribute("naturalWidth") == "0"
    assert [m["blockedReason"] for m in messages(browser, "Network.loadingFailed")] == ["csp"]


def test_a_click_sorts_numbers_as_numbers_ascending_then_descending(visit):
    browser = visit(SWEEP)
    assert column(browser, 0) == ["2", "10", "1"]
    assert click(browser, 0) == "ascending" and column(browser, 0) == ["1", "2", "10"]
    assert click(browser, 0) == "descending" and column(browser, 0) == ["10", "2", "1"]
    click(browser, 4)  # as texts with numbers in them, 0.0625 would come after 0.125: 625 and 125
    assert [shown.split(" ")[0] for shown in column(browser, 4)] == ["0.0625", "0.125", "0.625"]


def test_a_measured_column_is_sorted_by_its_value_with_what_is_missing_last(visit):
    browser = visit(SWEEP)
    assert click(browser, 4, table=1) == "ascending"
    assert column(browser, 4, table=1) == ["10.05", "11.05", "50.25", "51.25", "100.5", "–"]
    assert click(browser, 4, table=1) == "descending"
    assert column(browser, 4, table=1) == ["100.5", "51.25", "50.25", "11.05", "10.05", "–"]


def test_texts_are_sorted_as_a_reader_expects_and_one_header_at_a_time_is_marked(visit):
    browser = visit(SWEEP)
    click(browser, 4, table=1)
    assert click(browser, 0, table=1) == "ascending"
    names = column(browser, 0, table=1)
    assert [name.split(",")[0] for name in names] == ["rank=1"] * 2 + ["rank=2"] * 2 + ["rank=10"] * 2
    marks = browser.find_elements("css selector", "th[aria-sort=ascending], th[aria-sort=descending]")
    assert [mark.text for mark in marks] == ["point"]


def test_a_header_is_sorted_by_keyboard_too(visit):
    browser = visit(SWEEP)
    button = browser.find_element("css selector", "table.sortable button")
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys("\ue007")  # Enter
    assert column(browser, 0) == ["1", "2", "10"]


@pytest.mark.parametrize("name", [RUN, SWEEP])
def test_a_page_is_legible_in_light_in_dark_and_on_a_phone(name, visit, show):
    browser = visit(name)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    for scheme in ("light", "dark"):
        show(scheme)
        texts, lines = browser.execute_script(COLOURS), browser.execute_script(LINES)
        assert len(texts) > 60 and len(lines) > 5
        page = luminance(texts[0][1])
        assert page > 0.9 if scheme == "light" else page < 0.05
        assert [entry for entry in texts if contrast(*entry[:2]) < 4.5] == []  # WCAG 2.2, 1.4.3
        assert [entry for entry in lines if contrast(*entry[:2]) < 3] == []  # WCAG 2.2, 1.4.11
    show(width=390)
    assert browser.execute_script("return innerWidth") == 390
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    widths = "return [...document.querySelectorAll('th[scope=row]')].map(e => e.getBoundingClientRect().width)"
    assert min(browser.execute_script(widths)) > 80  # not a letter in a line


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of 'rgb(1, 2, 3)'."""
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
