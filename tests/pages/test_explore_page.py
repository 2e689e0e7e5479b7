"""The page of `redi.explore`: its requests, and in a real browser a slider that changes the image."""

import base64
import io
import re
import shutil
import threading

import pytest
from PIL import Image

from redi.core.samplers.euler import Euler
from redi.data.uploads import MAX_UPLOAD_BYTES
from redi.pages import explore_page
from redi.pages.explore_page import build_app, check_extra, listen, serve
from redi.runs.explorer import Explorer
from tests.joint_run import joint_run

ADVICE = "flask is not installed: pip install 'redi-diffusion[test]'"
flask = pytest.importorskip("flask", reason=ADVICE)
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NAMES = ["zero", "<one>", *map(str, range(2, 8))]


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    run = joint_run(names=NAMES, label_dropout=0.1, representation_dropout=0.2)
    return Explorer(run, sampler=Euler(num_evaluations=2))


@pytest.fixture
def client(explorer):
    return build_app(explorer).test_client()


def png(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.removeprefix("data:image/png;base64,"))))


def test_the_page_offers_what_the_model_supports(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["X-Frame-Options"] == "DENY"
    assert 'data-rule="ClassifierFree"' in page.text and 'data-rule="RepresentationGuidance"' in page.text
    assert "&lt;one&gt;</option>" in page.text and "<one>" not in page.text
    assert "No lead of the clock: this model was trained with clocks.Shared" in page.text
    assert not re.findall(r"https?://(?!www\.w3\.org)", page.text)


def test_a_request_is_answered_with_pictures_of_the_model_s_size(client):
    answer = client.post("/generate", json={"label": "zero", "seed": 1}).get_json()
    assert [png(one["src"]).size for one in answer["pictures"]] == [(8, 8), (8, 8)]
    assert [strip["title"] for strip in answer["strips"]] == ["image", "z"]
    upload = base64.b64encode(base64.b64decode(answer["pictures"][0]["src"].partition(",")[2])).decode()
    for path in ("/features", "/images"):
        answer = client.post(path, json={"image": upload, "num_evaluations": 2}).get_json()
        assert png(answer["pictures"][0]["src"]).size == (8, 8)
    assert client.post("/images", json={"image": {"label": 1}, "num_evaluations": 2}).status_code == 200


@pytest.mark.parametrize(
    ("path", "request_", "status", "message"),
    [
        ("/generate", {"label": "three"}, 400, "no class is named 'three'"),
        ("/generate", {"label": 0, "num_evaluations": -1}, 400, "num_evaluations = -1"),
        ("/generate", [], 400, "must be a JSON object"),
        ("/features", {"image": "bm8gaW1hZ2U="}, 400, "the file is not an image"),
        ("/features", {"image": "%"}, 400, "must be a file in base64"),
        ("/features", {}, 400, "choose a file first"),
        ("/images", {"image": "A" * (2**20 + MAX_UPLOAD_BYTES * 4 // 3)}, 413, "too large"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(client, path, request_, status, message):
    answer = client.post(path, json=request_)
    assert answer.status_code == status and message in answer.get_json()["error"]


def test_other_pages_in_the_browser_cannot_use_the_model(client):
    assert client.post("/generate", data="{}", content_type="text/plain").status_code == 400
    assert client.get("/", headers={"Host": "evil.example:8700"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:8700"}).status_code == 200


def test_a_message_with_a_path_stays_in_the_terminal(explorer, client, monkeypatch, caplog):
    def fail(**settings):
        raise ValueError("DINOv2.weights = '/home/me/secret.pth': no such file")

    monkeypatch.setattr(explorer, "generate", fail)
    answer = client.post("/generate", json={})
    assert answer.status_code == 500 and "terminal" in answer.get_json()["error"]
    assert "secret" not in answer.text and "secret" in caplog.text


def test_one_request_at_a_time(explorer, client, monkeypatch):
    other, generate = [], explorer.generate

    def slow(**settings):
        other.append(client.application.test_client().post("/generate", json={}))
        return generate(label=0)

    monkeypatch.setattr(explorer, "generate", slow)
    assert client.post("/generate", json={}).status_code == 200
    assert [answer.status_code for answer in other] == [429]


def test_a_port_in_use_is_refused():
    with listen("127.0.0.1", 0) as first, pytest.raises(ValueError, match="pass another --port; 0 chooses a free one"):
        listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ValueError, match="--port = 70000 must be an integer of at least 0 and less than 65536"):
        listen("127.0.0.1", 70000)


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setattr(explore_page, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'redi-diffusion\[explore\]'"):
        check_extra()


def test_a_class_that_does_not_exist_is_refused_at_the_start(explorer):
    with pytest.raises(ValueError, match="no class is named 'nine'"):
        build_app(explorer, label="nine")


@pytest.fixture(scope="module")
def browser(explorer, tmp_path_factory):
    """A browser that shows the page, served by a thread."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its chromedriver is installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason=ADVICE.replace("flask", "selenium"))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    for flag in (*flags.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    listener = listen("127.0.0.1", 0)
    threading.Thread(target=serve, args=(build_app(explorer, label="2"), listener), daemon=True).start()
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(f"http://127.0.0.1:{listener.getsockname()[1]}")
    yield driver
    driver.quit()


def wait_for(browser, script: str, *arguments):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda b: b.execute_script(script, *arguments))


IMAGE = "return document.querySelector('[data-side=A] .pictures img')?.src"
OTHER_IMAGE = """
const image = document.querySelector('[data-side=A] .pictures img');
return image && image.src !== arguments[0] && image.src;
"""


def test_a_slider_and_a_bad_upload_in_the_browser(browser, tmp_path):
    first = wait_for(browser, IMAGE)
    assert browser.execute_script("return document.querySelector('[data-name=label]').selectedOptions[0].text") == "2"
    slider = browser.find_element("css selector", "[data-side=A] [data-rule=ClassifierFree] [data-name=scale]")
    slider.send_keys("\ue014" * 20)  # the right arrow
    browser.execute_script("document.querySelector('#generate .run:not([hidden])')?.click()")  # on a slow machine
    guided = wait_for(browser, OTHER_IMAGE, first)
    assert browser.execute_script("return arguments[0].parentElement.querySelector('output').value", slider) == "3"
    browser.find_element("id", "compare").click()
    wait_for(browser, "return document.querySelector('[data-side=B] .pictures img')")
    assert browser.get_log("browser") == []

    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    browser.find_element("id", "tab-features").click()
    browser.find_element("css selector", "#features input[type=file]").send_keys(str(bad))
    refusal = "return document.querySelector('#features .warning:not([hidden])')?.textContent"
    assert "the file is not an image" in wait_for(browser, refusal)
    assert browser.execute_script(IMAGE) is not None and guided != first
