"""The page in a real browser, and its `predict` endpoint through gradio_client and requests made by hand."""
import csv
import json
import os
import re
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from imgclf_nb.example import draw_example, write_example_bundle
from imgclf_nb.predict import Predictor
from serving import running_server, wait_for

WICKED = "<img src=x onerror=alert(1)>${alert(2)}{{7*7}}"   # a label, as the name of a folder may be
LABELS = ["leaf", WICKED, "tomato"]
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()


def metrics(sha256):
    """A score card of two classes that are always right, and one that is mistaken in 2 of 20."""
    scores = {label: dict(precision=1.0, recall=1.0, f1=1.0, support=20) for label in LABELS}
    return {"labels": LABELS, "n_test": 60, "accuracy": 58 / 60, "accuracy_ci95": [0.887, 0.991], "per_class": scores,
            "confusion_matrix": [[20, 0, 0], [0, 20, 0], [2, 0, 18]], "model": {"sha256": sha256},
            "dataset": {"name": "shapes", "fingerprint": None}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, its score card, example data, photographs, and files that are none."""
    folder = tmp_path_factory.mktemp("page")
    bundle = write_example_bundle(folder / "model" / "bundle", labels=LABELS)
    (folder / "results").mkdir()
    (folder / "results" / "metrics.json").write_text(json.dumps(metrics(bundle.sha256)))
    (data := folder / "data" / "colours").mkdir(parents=True)
    with open(data / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for k, label in enumerate(LABELS):
            draw_example(k, seed=5).save(data / f"{k}.png")
            writer.writerow([f"{k}.png", label, "test"])
    draw_example(2, seed=1, doubt=0.4, size_px=300).resize((600, 300)).save(folder / "red.jpg")
    draw_example(0, seed=2, size_px=200).save(folder / "=green.png")
    (folder / "broken.jpg").write_bytes((folder / "red.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running_server(folder, "--feedback-dir", "wrong", "--max-files", 4, bundle=False) as server:
        yield server


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(folder / "model" / "bundle")


@pytest.fixture(scope="module")
def client(server):
    client = Client(server.url, ssl_verify=False, analytics_enabled=False, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = Path("/usr/bin/chromium")
    if not program.exists():
        pytest.skip("no chromium: install Debian's package chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is a package for developers")
    with api.sync_playwright() as playwright:
        home = tmp_path_factory.mktemp("home")   # or it leaves its settings in that of the user
        browser = playwright.chromium.launch(executable_path=str(program), args=FLAGS,
                                             env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)})
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Open the page; whatever went wrong in the browser fails the test at its end."""
    contexts, troubles = [], []

    def open_page(width=1280, theme="light", locale="en-US"):
        context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=theme, locale=locale)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("response", lambda reply: reply.status > 399 and troubles.append(f"{reply.status} {reply.url}"))
        page.on("requestfailed", lambda request: "queue/data" not in request.url and "heartbeat" not in request.url
                and troubles.append(f"failed {request.url}"))
        page.on("request", lambda request: request.url.startswith((server.url, "data:", "blob:"))
                or troubles.append(f"outside request {request.url}"))
        page.goto(server.url)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        return page
    yield open_page
    for context in contexts:
        context.close()
    assert not troubles


def upload(page, path):
    page.set_input_files("#photo input[type=file]", path)


def wait_for_count(page, selector, count):
    """Wait until so many elements are there: a slow machine draws them one after another."""
    page.wait_for_function("([s, n]) => document.querySelectorAll(s).length == n", arg=[selector, count])


def wait_for_picture(page, selector):
    """Wait until an <img> is loaded; gives its address."""
    page.wait_for_function("s => document.querySelector(s)?.naturalWidth > 0", arg=selector)
    return page.locator(selector).first.get_attribute("src")


def test_one_photograph_with_what_decided(visit, folder, predictor):
    page = visit()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    expected = predictor.predict(folder / "red.jpg")
    assert page.inner_text("#answer .verdict") == expected.label == "tomato"
    names, shares = (page.locator(f"#answer .{kind}").all_inner_texts() for kind in ("name", "percent"))
    assert list(zip(names, shares)) == [(label, f"{share:.1%}") for label, share in expected.predictions]
    first = wait_for_picture(page, "#heat img")
    heat = Image.open(BytesIO(httpx.get(first).content)).convert("RGB")
    assert heat.size == (600, 300)   # in the photograph's proportions
    pixels = [max(pixel) - min(pixel) for pixel in np.asarray(heat, int).reshape(-1, 3)]
    assert max(pixels) > 100 and min(pixels) < 10   # coloured in places, grey in others
    page.locator("#choice label", has_text="leaf").click()
    page.wait_for_function("src => document.querySelector('#heat img')?.src != src", arg=first)
    assert wait_for_picture(page, "#heat img") != first
    assert page.inner_text("#answer .verdict") == "tomato"


def test_an_example_is_answered(visit):
    page = visit()
    wait_for_count(page, "#examples img", 3)
    page.locator("#examples button, #examples .gallery-item").first.click()
    page.wait_for_selector("#answer .bars")
    wait_for_picture(page, "#heat img")


def test_doubt_is_said(visit, folder):
    Image.new("RGB", (64, 64), (128, 128, 128)).save(folder / "grey.png")
    page = visit()
    upload(page, folder / "grey.png")
    page.wait_for_selector("#answer .unsure")
    assert "No class reached 50%" in page.inner_text("#answer .unsure")


def test_what_is_no_photograph_is_told(visit, folder):
    page = visit()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    upload(page, folder / "broken.jpg")
    page.wait_for_selector("#answer .verdict:text-is('No answer')")   # in place of that for the photograph before
    assert re.search("(?i)not a readable image|damaged", page.inner_text("#answer"))
    page.wait_for_selector("#heat img", state="detached")
    upload(page, folder / "notes.txt")
    page.wait_for_selector("[data-testid=toast-body]:has-text('notes.txt')")


def test_several_with_a_broken_one_among_them(visit, folder, predictor, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Several").click()
    names = ["red.jpg", "broken.jpg", "=green.png", "notes.txt"]
    page.set_input_files("#files input[type=file]", [folder / name for name in names])
    wait_for_count(page, "#table table tr", 1 + len(names))
    rows = page.locator("#table table tr").all_inner_texts()[1:]
    assert [row.split("\t")[0].strip() for row in rows] == names
    assert rows[0].split("\t")[1].strip() == "tomato" and "not a readable image" in rows[3]
    wait_for_picture(page, "#gallery img")
    wait_for_count(page, "#gallery .grid-container img", 2)
    assert [text.split(":")[0] for text in page.locator("#gallery .caption-label").all_inner_texts()] == ["red.jpg", "=green.png"]
    picture, caption = (page.locator(f"#gallery .grid-container {part}").first.bounding_box() for part in ("img", ".caption-label"))
    assert picture["y"] + picture["height"] <= caption["y"] + 1   # not covered
    page.locator("#gallery .thumbnail-lg").first.click()
    page.wait_for_function("document.querySelector('#gallery .media-button img')?.clientHeight > 250")   # large
    page.get_by_label("Close").click()
    with page.expect_download() as download:
        page.locator("#csv").click()
    download.value.save_as(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == ["red.jpg", "broken.jpg", "'=green.png", "notes.txt"]
    assert float(table[0]["probability"]) == pytest.approx(predictor.predict(folder / "red.jpg").probability, abs=1e-6)
    assert [bool(row["error"]) for row in table] == [False, True, False, True]
    page.set_input_files("#files input[type=file]", [folder / "red.jpg"] * 2)   # 6 files: 4 are allowed
    page.wait_for_selector("#table:has-text('at most 4')")
    for gone in ("#table table", "#gallery img", "#csv"):   # the former answers: they are not those of 6 files
        wait_for_count(page, gone, 0)


def test_no_former_answer_stays_beside_another_photograph(visit, folder):
    """Neither its label, its heat map nor a correction that was chosen, though the question never reaches the server."""
    page = visit()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    wait_for_picture(page, "#heat img")
    page.get_by_text("Wrong? Tell us").click()
    page.locator("#right input").click()
    page.get_by_role("option", name="leaf", exact=True).click()
    page.route("**/queue/join*", lambda route: route.fulfill(status=200, json={"event_id": "lost"}))   # for ever
    page.locator("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']").first.click()
    page.wait_for_selector("#photo input[type=file]", state="attached")
    upload(page, folder / "=green.png")
    page.wait_for_selector("#answer:has-text('No answer yet')")
    assert not page.locator("#answer .bars, #heat img").count() and not page.locator("#choice").is_visible()


def test_a_correction_is_chosen_for_each_photograph(visit, folder):
    page = visit()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    page.get_by_text("Wrong? Tell us").click()
    page.locator("#right input").click()
    page.get_by_role("option", name="leaf", exact=True).click()
    assert page.input_value("#right input") == "leaf"
    page.locator("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']").first.click()
    page.wait_for_selector("#answer:has-text('What is it?')")
    upload(page, folder / "=green.png")
    page.wait_for_selector("#answer .bars")
    assert page.input_value("#right input") == ""


def test_score_card(visit, folder):
    page = visit()
    page.get_by_role("tab", name="Scores").click()
    page.wait_for_selector("#card .scores")
    text = page.inner_text("#card")
    assert "96.7% right" in text and "between 88.7% and 99.1%" in text and "tomato taken for leaf: 2" in text
    assert page.locator("#card .matrix tbody td").all_inner_texts() == ["20", "", "", "", "20", "", "2", "", "18"]
    assert page.locator("#card .matrix td.miss").get_attribute("title") == "tomato taken for leaf: 2"
    assert page.locator("#card h2").count() == 2 and not page.locator("#card h3").count()
    assert WICKED in page.locator("#card .numbers tbody th").all_inner_texts()   # harmless, as it is written
    file = folder / "results" / "metrics.json"
    text = file.read_text()
    try:
        for scores, expected in [(metrics("0" * 64), "another model"), (None, "not been measured")]:
            file.write_text(json.dumps(scores)) if scores else file.unlink()
            page.get_by_role("tab", name="Several").click()
            page.get_by_role("tab", name="Scores").click()
            page.wait_for_selector(f"#card .missing:has-text('{expected}')")
    finally:
        file.write_text(text)


def test_a_correction_is_stored_once_and_moved(visit, folder):
    def stored():
        """The only file in the folder, and when it was written; None while there is none, or while one is being written or moved."""
        try:
            [file] = [file for file in (folder / "wrong").rglob("*") if file.is_file()]
            return (file, file.stat().st_mtime_ns) if file.suffix == ".jpg" else None
        except (ValueError, FileNotFoundError):
            return None
    page = visit()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    page.get_by_text("Wrong? Tell us").click()
    before = None
    for label in ("tomato", "leaf", "tomato", "tomato"):
        page.locator("#right input").click()
        page.get_by_role("option", name=label, exact=True).click()
        page.locator("#store").click()
        page.wait_for_selector(f"#thanks:has-text('Stored as {label}')")
        before = wait_for(lambda: (now := stored()) and now != before and now, what="one new file, and no other,")
        assert before[0].parent == folder / "wrong" / label
    assert before[0].read_bytes() == (folder / "red.jpg").read_bytes()


def heads_stay(page):
    """Scroll a large matrix to its end: the names of classes above and on the left are still to be seen, and not behind cells."""
    assert page.evaluate("""() => {
        const box = document.querySelector('#card .scroll'), rows = box.querySelector('tbody')
        for (let i = 0; i < 60; i++) rows.append(rows.lastElementChild.cloneNode(true))
        box.scrollIntoView(); box.scrollTo(1e6, 1e6)
        const seen = part => [box.querySelectorAll(part)].map(all => all[all.length - 1]).every(e => {
            const {x, y, width, height} = e.getBoundingClientRect()
            return e.contains(document.elementFromPoint(x + width / 2, y + height / 2)) })
        return box.scrollTop > 500 && box.scrollLeft > 500 && ['thead th', 'tbody th', 'thead td'].map(seen).join()
    }""") == "true,true,true"


def contrast(page, selector):
    """How many times as light is the one of letters and ground as the other, by WCAG's formula."""
    colours = page.evaluate("""selector => {
        const e = document.querySelector(selector), numbers = c => c.match(/[\\d.]+/g).map(Number)
        for (let ground = e; ; ground = ground.parentElement) {
            const found = numbers(getComputedStyle(ground).backgroundColor)
            if (found[3] !== 0) return [numbers(getComputedStyle(e).color), found] } }""", selector)
    channels = [[v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour[:3]] for colour in colours]
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05 for r, g, b in channels)
    return light / dark


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_stand_out_from_their_ground(visit, folder, theme):
    page = visit(theme=theme)
    page.get_by_role("tab", name="Several").click()
    for selector in ("[role=tab].selected", "#files .or"):
        assert contrast(page, selector) >= 4.5, selector
    page.set_input_files("#files input[type=file]", [folder / "red.jpg"] * 2)   # every other row has another ground
    wait_for_count(page, "#files .download-link", 2)
    assert contrast(page, "#files tr:nth-child(1) .download-link") >= 4.5 and contrast(page, "#files tr:nth-child(2) .download-link") >= 4.5


def test_words_and_their_language_in_a_german_browser(visit, folder):
    """Gradio speaks German there, we don't, and say so; what Gradio has no word for is English, too, not the name of a word."""
    page = visit(locale="de-DE")
    assert page.evaluate("document.documentElement.lang").startswith("de")
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    page.get_by_role("tab", name="Several").click()
    for part in ("#head h1", "#answer .verdict", ".legend", "#table .said"):
        assert page.evaluate("part => document.querySelector(part).closest('[lang]').lang", part) == "en", part
    page.set_input_files("#files input[type=file]", [folder / "red.jpg"])
    page.get_by_role("button", name="Upload", exact=True).wait_for()
    page.wait_for_selector("#table .said:has-text('1 of 1 files answered')")
    html = page.content()
    assert not re.search(r">\s*common\.|[\"]common\.", html[html.index("<gradio-app"):]), "an untranslated key"


def test_a_screen_reader_hears_how_it_went(visit, folder):
    """Its line is there beforehand, and stays the same element: one that comes with its text is not read out."""
    page = visit()
    page.get_by_role("tab", name="Several").click()
    page.evaluate("window.line = document.querySelector('#table [role=status]')")
    page.set_input_files("#files input[type=file]", [folder / name for name in ("red.jpg", "broken.jpg", "=green.png")])
    page.wait_for_function("line.isConnected && line.innerText == '2 of 3 files answered, 1 not'")
    assert page.locator("#table .scroll").get_attribute("tabindex") == "0"
    page.set_input_files("#files input[type=file]", [folder / "red.jpg"] * 2)   # 5 files: 4 are allowed
    page.wait_for_function("line.isConnected && line.innerText.includes('at most 4')")
    page.get_by_role("tab", name="Photograph").click()
    upload(page, folder / "red.jpg")
    page.wait_for_selector("#answer .bars")
    page.get_by_text("Wrong? Tell us").click()
    page.locator("#right input").click()
    page.get_by_role("option", name="tomato", exact=True).click()
    page.evaluate("window.line = document.querySelector('#thanks [role=status]')")
    page.locator("#store").click()
    page.wait_for_function("line.isConnected && line.innerText.includes('Stored as tomato')")


def test_an_upload_that_is_gone_is_told(visit, server, folder):
    page = visit()
    upload(page, folder / "red.jpg")
    wait_for_picture(page, "#heat img")
    assert page.get_attribute("#photo img", "alt") == "Your photograph"
    assert "can't show pictures of its kind" in page.evaluate("getComputedStyle(document.querySelector('#photo img'), '::before').content")
    for file in server.uploads.rglob("red.jpg"):
        file.unlink()
    page.locator("#choice label", has_text="leaf").click()
    told = page.locator("[data-testid=toast-body]", has_text="the server no longer has this photograph; choose it again")
    told.wait_for()
    told.get_by_test_id("toast-close").click()
    told.wait_for(state="detached")
    page.get_by_text("Wrong? Tell us").click()
    page.locator("#right input").click()
    page.get_by_role("option", name="leaf", exact=True).click()
    page.locator("#store").click()
    told.wait_for()


def test_limits_are_told_beforehand(visit):
    page = visit()
    assert "10 MB and 25 megapixels. Several at once go to the tab" in page.inner_text("#answer")
    page.get_by_role("tab", name="Several").click()
    assert "4 at most, 10 MB each" in page.inner_text("#files")


@pytest.mark.parametrize("width", [390, 768, 1000, 1280])
def test_readable_everywhere(visit, folder, width):
    backgrounds = set()
    for theme in ("light", "dark"):
        page = visit(width, theme)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        upload(page, folder / "red.jpg")
        page.wait_for_selector("#answer .bars")
        wait_for_picture(page, "#heat img")
        assert page.locator("#answer .verdict").bounding_box()["y"] < 800   # without scrolling
        for tab in ("Photograph", "Several", "Scores"):
            page.get_by_role("tab", name=tab).click()
            if tab == "Scores":
                page.wait_for_selector("#card .scores")
                page.evaluate("""document.querySelectorAll('#card .matrix tr').forEach(row => {
                    for (let i = 0; i < 60; i++) row.append(row.lastElementChild.cloneNode(true)) })""")   # many classes
                heads_stay(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (theme, tab)
    assert len(backgrounds) == 2


def test_gradio_client_gets_the_same_answer(client, folder, predictor):
    answer = client.predict(handle_file(str(folder / "red.jpg")), api_name="/predict")
    expected = predictor.predict(folder / "red.jpg")
    assert answer["label"] == expected.label
    assert [c["label"] for c in answer["confidences"]] == [label for label, _ in expected.predictions]
    assert [c["confidence"] for c in answer["confidences"]] == pytest.approx(
        [share for _, share in expected.predictions], abs=1e-6)


def test_gradio_client_sees_one_endpoint(client):
    info = client.view_api(return_format="dict", print_info=False)
    assert list(info["named_endpoints"]) == ["/predict"] and not info["unnamed_endpoints"]


def test_gradio_client_hears_what_is_wrong(client, folder):
    Image.new("L", (6000, 5000)).save(folder / "bomb.png")
    for name, words in [("notes.txt", "not a readable image"), ("bomb.png", "6000 x 5000 pixels")]:
        with pytest.raises(AppError, match=words):
            client.predict(handle_file(str(folder / name)), api_name="/predict")
    for wrong in (None, 7, ["a"], "text"):
        with pytest.raises(AppError, match="upload"):
            client.predict(wrong, api_name="/predict")


def ask_function(server, function, data):
    """Status and last line for a call of one of the page's own functions."""
    session = f"s{function}{abs(hash(str(data)))}"
    with httpx.Client(base_url=f"{server.url}/gradio_api") as http:
        joined = http.post("/queue/join", json={"data": data, "fn_index": function, "session_hash": session})
        if joined.status_code != 200:
            return joined.status_code, joined.text
        with http.stream("GET", "/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if "process_completed" in line:
                    return 200, line


def test_below_a_path(browser, tmp_path, folder, predictor):
    """Behind a proxy that has other servers too: nothing is asked for outside the path, which the proxy may take away or not."""
    label = predictor.predict(folder / "red.jpg").label
    with running_server(tmp_path, "--root-path", "/pictures/sea") as server:
        outside, troubles = [], []
        page = browser.new_page(extra_http_headers={"X-Forwarded-Host": server.url.removeprefix("http://")})   # as proxies send
        page.on("request", lambda asked: outside.append(asked.url) if not asked.url.startswith((f"{server.url}/pictures/sea", "data:", "blob:")) else None)
        page.on("response", lambda answer: troubles.append(answer.url) if answer.status > 399 else None)
        page.goto(f"{server.url}/pictures/sea")   # without the slash
        page.set_input_files("#photo input[type=file]", folder / "red.jpg")
        page.wait_for_selector("#answer .answer:not(.waiting)")
        assert page.inner_text("#answer").startswith(label)
        page.wait_for_selector("#heat img")
        page.goto(f"{server.url}/pictures/sea/docs")
        page.get_by_text("/predict/batch").wait_for()
        page.close()
        assert not outside and not troubles
        for url in (f"{server.url}/pictures/sea", server.url):
            answer = httpx.post(f"{url}/predict", content=(folder / "red.jpg").read_bytes())
            assert (answer.status_code, answer.json()["label"]) == (200, label)
        client = Client(f"{server.url}/pictures/sea/", analytics_enabled=False, verbose=False)
        assert client.predict(handle_file(folder / "red.jpg"), api_name="/predict")["label"] == label
        client.close()
    assert "Traceback" not in server.log.read_text()


def test_what_only_the_browser_does_is_refused_in_words(server):
    """Some listeners have no function behind them: whoever calls them by hand gets a sentence, and the log no traceback."""
    alone = [d["id"] for d in httpx.get(f"{server.url}/config").json()["dependencies"] if not d["backend_fn"]]
    assert alone
    for function in alone:
        for data in ([], [1]):
            status, text = ask_function(server, function, data)
            assert '"success":false' in text and "the browser alone" in text, text
    assert "Traceback" not in server.log.read_text()


def test_no_path_is_followed_but_those_of_uploads(server, folder):
    config = httpx.get(f"{server.url}/config").json()
    listeners = [d for d in config["dependencies"] if d["inputs"] and d["backend_fn"]]
    assert len(listeners) >= 5
    secret = folder / "results" / "metrics.json"
    before = set(server.uploads.rglob("*"))
    for path in (str(secret), "/etc/passwd", f"{server.uploads}/../results/metrics.json", "http://127.0.0.1:9/x.png",
                 "https://example.com/x.png", "file:///etc/passwd", "../../etc/passwd"):
        for meta in ({"meta": {"_type": "gradio.FileData"}}, {}):
            for listener in listeners:
                status, text = ask_function(server, listener["id"], [{"path": path, **meta}] * len(listener["inputs"]))
                assert '"success":false' in text and "Traceback" not in text, text
                assert str(folder) not in text and "passwd" not in text and "upload" in text, text
    assert set(server.uploads.rglob("*")) == before
