"""The page of a run, in a real browser: Debian's chromium, driven by selenium; the tests are skipped without them."""

import base64
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, done, read_log, read_npz, wait_for
from PIL import Image

import cgan
from support import digit_classifier
from support.device import jt
from support.pages import networks, page
from support.saved import log as saved_log
from support.saved.log import check_log, kinds_of

REFERENCE_LOG = ROOT / "results" / "reference" / "log.json"
NUMBER = "31415926"
MARKUP = "<script>alert(1)<"  # a folder; with "script>" in it, the whole path is markup


def write_page(target, *logs):
    process = done("plot_curves.py", *logs, "--output_dir", target)
    assert (target / "run.html").stat().st_size <= page.LARGEST_PAGE
    return target / "run.html", process


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """A function that starts a browser in a language; `downloads` is where it saves files."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no browser: apt install chromium chromium-driver")
    started, downloads = [], tmp_path_factory.mktemp("downloads")

    def launch(language="en-US"):
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
            options.add_argument(argument)
        preferences = {"intl.accept_languages": language, "download.default_directory": str(downloads)}
        options.add_experimental_option("prefs", preferences)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        browser.downloads = downloads
        browser.set_script_timeout(300)
        started.append(browser)
        return browser

    yield launch
    for browser in started:
        browser.quit()


@pytest.fixture(scope="session")
def browser(launch):
    return launch()


def asked(browser):
    """Returns what was asked for since the last call; nothing may have been said in the console."""
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def visit(browser, path):
    """Opens a page and waits until its networks are unpacked, if it has some; it asks for nothing but itself."""
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())
    unpacked = "return typeof DATA.networks.generator === 'string' || !!window.draw"
    wait_for(lambda: browser.execute_script(unpacked), seconds=60)
    assert asked(browser) == [path.as_uri()]


def find(browser, selector):
    return browser.find_element("css selector", selector)


def texts(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


@pytest.fixture(scope="module")
def reference_page(tmp_path_factory):
    """The page of the project's own run, whose generator draws well."""
    return write_page(tmp_path_factory.mktemp("reference"), REFERENCE_LOG)[0]


@pytest.fixture(scope="module")
def run_page(finished_run, tmp_path_factory):
    """The page of a short run: 2 epochs of 60 batches, grids at batches 0, 50 and 100, an evaluation each epoch."""
    return write_page(tmp_path_factory.mktemp("page"), finished_run[0] / "results" / "log.json")[0]


def state(browser):
    """Returns (batches done, the grid's pixels, where every cursor stands, the scores there)."""
    picture = find(browser, "#grids img").get_attribute("src").partition("base64,")[2]
    lines = browser.find_elements("css selector", ".cursor")
    cursors = [float(line.get_attribute("transform")[len("translate(") : -1]) for line in lines]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        pixels = np.asarray(image.convert("L"), float)
    return int(find(browser, "#batch").text), pixels, cursors, find(browser, "#curves").text


@pytest.mark.slow
def test_the_slider_moves_grid_cursors_and_scores_together(browser, run_page, finished_run):
    visit(browser, run_page)
    name = finished_run[0].name
    assert browser.title == f"cgan.py – {name}" and find(browser, "#runs h2").text == name  # noqa: RUF001
    evaluations = read_log(finished_run[0])["evaluations"]
    states = [state(browser)]
    find(browser, "#time").send_keys("\ue012")  # arrow left, on the slider
    states.append(state(browser))
    find(browser, "h1").click()
    find(browser, "body").send_keys("\ue012")  # and anywhere else
    states.append(state(browser))
    assert [batches for batches, *_ in states] == [100, 50, 0]
    for batches, pixels, cursors, scores in states:
        with Image.open(finished_run[0] / "images" / f"{batches}.png") as grid:
            assert abs(pixels - np.asarray(grid, float)).mean() < 8
        nearest = f"{evaluations[1 if batches / 60 > 1.5 else 0]['label_accuracy']:.4f}"
        assert len(cursors) >= 5 and nearest in scores and nearest in find(browser, "#scores").text
    for before, after in zip(states[1:], states):
        assert all(a < b for a, b in zip(before[2], after[2]))
    assert find(browser, "#scores tr[aria-current=true] td").text == "1"
    find(browser, "body").send_keys("\ue014")
    assert state(browser)[0] == 50


@pytest.mark.slow
def test_playing_and_both_languages(browser, launch, run_page):
    visit(browser, run_page)
    button = find(browser, "#play")
    assert button.accessible_name == "Play"
    click = "arguments[0].click(); return arguments[0].getAttribute('aria-pressed')"
    assert browser.execute_script(click, button) == "true"  # at the end: from the start
    wait_for(lambda: button.get_attribute("aria-pressed") == "false", seconds=60)
    assert state(browser)[0] == 100
    assert "Images on demand" in find(browser, "#on-demand").text and "按要求" not in find(browser, "#on-demand").text
    find(browser, "#language").click()
    assert "按要求画图" in find(browser, "#on-demand").text and "Images" not in find(browser, "#on-demand").text
    chinese = launch("zh-CN")
    visit(chinese, run_page)
    assert find(chinese, "html").get_attribute("lang") == "zh" and "标签准确率" in find(chinese, "#scores").text


def canvases(browser):
    """Returns the drawn images on the page, (N, S, S) in gray levels."""
    script = """return [...document.querySelectorAll("#drawn canvas")].map(canvas => Array.from(
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 === 0)))"""
    images = np.array(browser.execute_script(script), float)
    size = int(np.sqrt(images.shape[-1]))
    return images.reshape(-1, size, size)


def type_labels(browser, text, field="#text"):
    find(browser, field).clear()
    find(browser, field).send_keys(text)


def test_it_draws_what_cgan_draws_and_saves_it(browser, reference_page):
    visit(browser, reference_page)
    type_labels(browser, NUMBER)
    noise = np.array(browser.execute_script("return noises[0].map(noise => Array.from(noise))"))[: len(NUMBER)]
    labels = np.array([int(digit) for digit in NUMBER])
    generator = cgan.load_generator(str(REFERENCE_LOG.parent / "generator.npz"))
    expected = cgan.generate(generator, noise, labels)
    assert abs(canvases(browser) - (expected[:, 0] + 1) * 127.5).max() <= 1
    find(browser, "#renew").click()
    assert abs(canvases(browser) - (expected[:, 0] + 1) * 127.5).max() > 100
    type_labels(browser, "4x2")
    assert len(canvases(browser)) == 2 and find(browser, "#only").text.endswith("labels: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
    type_labels(browser, "42")
    digits = canvases(browser)
    find(browser, "#save").click()
    saved = browser.downloads / "42.png"
    wait_for(saved.exists, seconds=60)
    with Image.open(saved) as image:
        pixels = np.asarray(image.convert("L"), float)
    assert pixels.shape == (36, 70)
    assert (pixels[2:34, 2:34] == digits[0]).all() and (pixels[2:34, 36:68] == digits[1]).all()


@pytest.mark.slow
def test_the_classifier_reads_what_the_page_in_docs_was_asked_to_draw(browser):
    path = ROOT / "docs" / "index.html"  # its generator is coarser, to keep it small
    assert path.stat().st_size < 1.5e6
    visit(browser, path)
    browser.execute_script("let n = 1; Math.random = () => (n = n * 16807 % 2147483647) / 2147483647")
    script = "return Array.from({length: 100}, (_, i) => Array.from(draw(randomNoise(100), i % 10), x => x.toFixed(3)))"
    images = np.array([browser.execute_script(script) for _ in range(10)], np.float32).reshape(-1, 1, 32, 32)
    _, digits = digit_classifier.read_labels(digit_classifier.load(), images)
    assert (digits == np.arange(1000) % 10).mean() >= 0.99


@pytest.mark.slow
def test_what_the_discriminator_says(browser, run_page, finished_run):
    """Its weights have 8 bits in the page: enough for the two decimals that are shown."""
    visit(browser, run_page)
    type_labels(browser, NUMBER)
    shown = [float(text) for text in texts(browser, "#drawn figcaption")]
    labels = np.array([int(digit) for digit in NUMBER], np.int32)
    images = (canvases(browser)[:, None] / 127.5 - 1).astype(np.float32)
    discriminator = cgan.Discriminator(n_classes=10, img_size=32, hidden=512)
    arrays = read_npz(finished_run[0] / "results" / "checkpoint.npz")
    prefix = "discriminator/"
    discriminator.load_state_dict({k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)})
    discriminator.eval()
    validity = discriminator(jt.array(images), jt.array(labels)).numpy()[:, 0]
    assert abs(shown - validity).max() < 0.03


@pytest.mark.slow
def test_noise_and_labels_between_two(browser, reference_page):
    visit(browser, reference_page)
    set_to = "const range = document.getElementById(arguments[0]); range.value = arguments[1]; range.oninput()"
    type_labels(browser, "77")
    type_labels(browser, "0", "#target")
    start = canvases(browser)
    browser.execute_script(set_to, "label-mix", 1)
    turned = canvases(browser)
    assert abs(turned[0] - start[0]).max() > 100 and (turned[1] == start[1]).all()  # the second has no target
    noise = browser.execute_script("return noises[0].map(noise => Array.from(noise))")
    zero = np.array(browser.execute_script("return Array.from(draw(arguments[0], 0))", noise[0]))
    assert abs(turned[0].ravel() - (zero + 1) * 127.5).max() <= 0.5
    browser.execute_script(set_to, "label-mix", 0)
    browser.execute_script(set_to, "noise-mix", 0.5)
    assert all(abs(canvases(browser) - start).max(axis=(1, 2)) > 50)
    browser.execute_script(set_to, "noise-mix", 0)
    assert (canvases(browser) == start).all()


@pytest.mark.slow
def test_several_runs_beside_each_other(browser, run_page, finished_run, tmp_path):
    """And markup in a path or a log is text; whatever is long is not wider than the screen."""
    other = tmp_path / MARKUP / "script>" / ("long" * 20)
    shutil.copytree(finished_run[0], other)
    log = read_log(other)
    log["config"]["seed"] = "</script><script>alert(2)</script>"
    log["environment"]["device"] = "<img src=x onerror=alert(3)>"
    (other / "results" / "log.json").write_text(json.dumps(log))
    (other / "images" / "100.png").unlink()
    path, _ = write_page(tmp_path / "two", finished_run[0] / "results" / "log.json", other / "results" / "log.json")
    visit(browser, path)
    assert f"{MARKUP}/script>" in find(browser, "#runs").text
    assert "<img src=x onerror=alert(3)>" in find(browser, "#runs").text and "alert(2)" in find(browser, "#runs").text
    assert len(browser.find_elements("css selector", "script")) == 2
    shown = texts(browser, "#grids figcaption")
    assert "100 batches" in shown[0] and "50 batches" in shown[1]
    for caption in texts(browser, "#curves figcaption"):
        assert finished_run[0].name in caption and f"{MARKUP}/script>" in caption
    for shown, width in ((path, 400), (path, 1600), (run_page, 400)):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 400}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        visit(browser, shown)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
def test_a_run_that_is_going_on_without_pictures_weights_or_scores(browser, finished_run, tmp_path):
    log = read_log(finished_run[0])
    for row in log["evaluations"]:
        row.update(fid=None, kid=None)
    for evaluations, shown in (
        ([], ("1 / 2 not finished", "no sample grids", "Nothing is evaluated yet", "weights do not lie beside")),
        (log["evaluations"], ("Inception's weights were not available", "Label accuracy is how often")),
    ):
        (tmp_path / "log.json").write_text(json.dumps({**log, "epochs": log["epochs"][:1], "evaluations": evaluations}))
        path, process = write_page(tmp_path, tmp_path / "log.json")
        assert process.stderr == ""
        visit(browser, path)
        for words in shown:
            assert words in find(browser, "body").text
    assert "KID" not in find(browser, "#scores").text


@pytest.mark.slow
def test_whatever_the_log_holds_is_shown(browser, tmp_path):
    epochs = [{"epoch": i, "d_loss": -i, "penalty": i, "penalty_last": 2 * i, "x_loss": None} for i in (1, 2)]
    evaluations = [{"epoch": 2, "label_fid": 12.5, "digit_fid": None, "sharp_edges": -7.25, "class_accuracy": [1]}]
    (tmp_path / "log.json").write_text(json.dumps({"epochs": epochs, "evaluations": evaluations}))
    path, _ = write_page(tmp_path, tmp_path / "log.json")
    visit(browser, path)
    titles = texts(browser, "#curves figcaption > b:first-child")
    assert titles == ["Loss", "penalty", "Label FID", "sharp edges"]
    lines = browser.find_elements("css selector", "#curves figure:first-child path")
    heights = [float(y) for line in lines for y in line.get_attribute("d")[1:].replace("L", " ").split()[1::2]]
    assert 0 < min(heights) < max(heights) <= browser.execute_script("return HEIGHT - BOTTOM")  # within the panel
    assert find(browser, "#scores").text == "Epoch Label FID sharp edges\n2 12.50 -7.250"
    text = find(browser, "#evaluations").text
    assert "Label FID compares" in text and not [word for word in ("igit", "KID", "accuracy") if word in text]


@pytest.mark.slow
def test_fids_that_cannot_be_compared_are_not_joined(browser, tmp_path):
    kinds = [("a", 100), ("a", 100), ("b", 100), ("a", 1000)]
    rows = [
        {"epoch": i, "fid": 10.0 * i, "kid": None, "digit_fid": i, "inception_sha256": letter * 64, "fid_samples": n}
        for i, (letter, n) in enumerate(kinds, 1)
    ]
    rows[2]["inception"] = "jittor"
    epochs = [{"epoch": i, "d_loss": i} for i in range(1, 5)]
    (tmp_path / "log.json").write_text(json.dumps({"epochs": epochs, "evaluations": rows}))
    path, _ = write_page(tmp_path, tmp_path / "log.json")
    visit(browser, path)
    fid, digit_fid = (f"#curves figure:nth-child({i})" for i in (2, 3))
    lines = browser.find_elements("css selector", f"{fid} path")
    assert [line.get_attribute("d").count("L") for line in lines] == [1, 0, 0]
    assert len({line.get_attribute("stroke-dasharray") for line in lines}) == 3
    assert len(browser.find_elements("css selector", f"{digit_fid} path")) == 1
    none, weights = "\u2013 (100 images, weights", "aaaaaaaa)"
    shown = f"{none} {weights} {none} jittor bbbbbbbb) 40.00 (1000 images, weights {weights}"
    assert " ".join(find(browser, f"{fid} figcaption").text.split()) == f"FID {shown}"
    assert "30.00 3.000 100 images, weights jittor bbbbbbbb" in find(browser, "#scores").text
    (tmp_path / "log.json").write_text(json.dumps({"epochs": epochs, "evaluations": rows[:2]}))
    visit(browser, write_page(tmp_path, tmp_path / "log.json")[0])
    assert find(browser, f"{fid} figcaption").text.split("\n")[1] == "20.00 (100 images, weights aaaaaaaa)"
    assert "weights" not in find(browser, "#scores").text


@pytest.mark.slow
def test_a_log_of_very_many_epochs(browser, tmp_path):
    epochs = [{"epoch": i, "d_loss": 1 / i, "seconds": 2} for i in range(1, 130001)]
    evaluations = [{"epoch": i, "digit_fid": i} for i in (10, 20, 130000)]
    (tmp_path / "log.json").write_text(json.dumps({"epochs": epochs, "evaluations": evaluations}))
    path, _ = write_page(tmp_path, tmp_path / "log.json")
    visit(browser, path)
    facts = find(browser, "#runs").text
    assert "130000 / 130000" in facts and "72 h 13 min" in facts and "2.0 s" in facts
    rows = data_of(path)["runs"][0]
    assert (rows["epochs"][0]["epoch"], rows["epochs"][-1]["epoch"]) == (1, 130000)
    assert (len(rows["epochs"]), len(rows["evaluations"])) == (page.MOST_ROWS, 3)


def save_networks(folder, n_classes, names=None, **layers):
    """Writes a log and a checkpoint of two networks of two layers; layers: {network: what is noted of it instead}."""
    rng = np.random.default_rng(0)
    config = {"latent_dim": 5, "n_classes": n_classes, "img_size": 8}
    log = {"config": config, "epochs": [{"epoch": 1, "g_loss": 1}], "evaluations": [], "labels": names}
    arrays = {}
    for name, n_in, n_out in (("generator", 5, 64), ("discriminator", 64, 1)):
        arrays[f"{name}/label_embedding.weight"] = rng.standard_normal((n_classes, 3))
        arrays[f"{name}/model.0.weight"] = rng.standard_normal((n_out, 3 + n_in))
        arrays[f"{name}/model.0.bias"] = rng.standard_normal(n_out)
        layers.setdefault(name, [{"kind": "Linear"}, {"kind": "Tanh"}])
    arrays = {name: value.astype(np.float16).astype(np.float32) for name, value in arrays.items()}
    (folder / "log.json").write_text(json.dumps(log))
    np.savez(folder / "checkpoint.npz", log=json.dumps(log), layers=json.dumps(layers), **arrays)
    return folder / "log.json", arrays


@pytest.mark.slow
def test_more_classes_than_digits_and_a_network_that_is_left_out(browser, tmp_path):
    log, arrays = save_networks(tmp_path, 26, discriminator="its layer 2 is a Conv, which a page cannot compute")
    path, process = write_page(tmp_path / "page", log)
    left_out = "the discriminator is left out of the page: its layer 2 is a Conv, which a page cannot compute\n"
    assert process.stderr.count("\n") == 1 and process.stderr.endswith(left_out)
    visit(browser, path)
    assert find(browser, "#text").get_attribute("value") == "0 3 6 8 11 14 17 19 22 25"
    assert "left out: its layer 2 is a Conv, which a page cannot compute." in find(browser, "#on-demand").text
    type_labels(browser, "25 7x 26 7")
    assert "Only these labels: 0, 1, 2," in find(browser, "#only").text
    noise = np.array(browser.execute_script("return noises[0].slice(0, 2).map(noise => Array.from(noise))"))
    own = {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith("generator")}
    values = np.hstack([own["label_embedding.weight"][[25, 7]], noise])
    expected = np.tanh(values @ own["model.0.weight"].T + own["model.0.bias"])
    assert abs(canvases(browser).reshape(2, 64) - (expected + 1) * 127.5).max() <= 1


@pytest.mark.slow
def test_labels_are_typed_by_their_names(browser, tmp_path):
    path, _ = write_page(tmp_path / "page", save_networks(tmp_path, 3, ["cat", "dog", "old_car"])[0])
    visit(browser, path)
    assert find(browser, "#text").get_attribute("value") == "cat dog old_car"
    type_labels(browser, "old_car bird cat")
    assert find(browser, "#only").text == "Only these labels: cat, dog, old_car"
    drawn = [find(browser, f"#drawn figure:nth-child({i}) canvas") for i in (1, 2)]
    assert [canvas.get_attribute("aria-label") for canvas in drawn] == ["old_car", "cat"]
    assert asked(browser) == []


@pytest.mark.slow
def test_a_generator_that_is_left_out(browser, tmp_path):
    path, process = write_page(tmp_path / "page", save_networks(tmp_path, 10, generator="it has no .model")[0])
    assert process.stderr.endswith("the generator is left out of the page: it has no .model\n")
    visit(browser, path)
    assert "Nothing can be drawn here. The generator is left out: it has no .model." in find(browser, "body").text


# ---------------------------------------------------------------- without a browser
def layer(kind, **attributes):
    return type(kind, (), attributes)()


def test_which_networks_a_page_can_compute():
    """Known by their classes' names and compared with what they give: never drawn wrongly."""
    rng = np.random.default_rng(0)
    model = [layer("Linear"), layer("leaky_relu", args=(), kw={"scale": 0.3}), layer("Dropout"), layer("Linear")]
    model += [layer("relu"), layer("Tanh")]
    sizes = {"label_embedding.weight": (3, 4), "model.0.weight": (6, 9), "model.0.bias": 6}
    sizes.update({"model.3.weight": (8, 6), "model.3.bias": 8})
    arrays = {name: rng.standard_normal(size) for name, size in sizes.items()}
    noise, labels = rng.standard_normal((4, 5)), np.array([0, 1, 2, 1])

    def network(values):
        """Returns what PyTorch's or Jittor's layers of these classes give."""
        values = values @ arrays["model.0.weight"].T + arrays["model.0.bias"]
        values = np.maximum(values, 0.3 * values) @ arrays["model.3.weight"].T + arrays["model.3.bias"]
        return np.tanh(np.maximum(values, 0)).reshape(4, 1, 8)

    def layers(outputs, given=noise, **attributes):
        network = SimpleNamespace(**{"model": model, **attributes})
        return networks.page_layers(network, arrays, (given, labels), outputs)

    embedded = arrays["label_embedding.weight"][labels]
    outputs, judged = network(np.hstack([embedded, noise])), network(np.hstack([noise, embedded]))
    kinds = ["Linear", "leaky_relu", "Dropout", "Linear", "relu", "Tanh"]
    assert [found["kind"] for found in layers(outputs.reshape(4, 1, 2, 4))] == kinds
    assert isinstance(layers(judged, noise.reshape(4, 1, 1, 5)), list)
    assert layers(outputs.reshape(4, 2, 4)) == "it gives 2 numbers for an image or a pixel, not one"
    for other in (outputs + 0.01, judged, outputs[:, :, :7]):
        assert "does more" in layers(other)
    assert "does more" in layers(outputs, noise[:, :4])
    assert "no .model" in networks.page_layers(object(), arrays, (noise, labels), outputs)
    conv = [*model[:2], layer("Conv"), *model[3:]]
    assert layers(outputs, model=conv) == "its layer 2 is a Conv, which a page cannot compute"


def data_of(path):
    text = path.read_text().partition('<script type="application/json" id="data">')[2]
    return json.loads(text.partition("</script>")[0], parse_constant=pytest.fail)  # a browser knows no NaN


@pytest.mark.slow
@pytest.mark.parametrize("name, left_out", [("results/checkpoint.npz", "generator"), ("images/50.png", 50)])
def test_what_cannot_be_read_is_named_and_left_out(finished_run, tmp_path, name, left_out):
    shutil.copytree(finished_run[0], tmp_path / "run")
    (tmp_path / "run" / name).write_bytes((tmp_path / "run" / name).read_bytes()[:1000])
    path, process = write_page(tmp_path / "page", tmp_path / "run" / "results" / "log.json")
    assert process.stderr.count("\n") == 1 and name in process.stderr
    data = data_of(path)
    assert [batches for batches, _ in data["runs"][0]["grids"]] == [n for n in (0, 50, 100) if n != left_out]
    assert isinstance(data["networks"]["generator"], str) == (left_out == "generator")


@pytest.mark.slow
def test_what_does_not_fit_is_left_out(finished_run, tmp_path):
    """Fewer grids first, then a coarser generator, then no discriminator; the file keeps to the limit."""
    shutil.copytree(finished_run[0], tmp_path / "run")
    for batches in range(101, 400):
        shutil.copy(tmp_path / "run" / "images" / "100.png", tmp_path / "run" / "images" / f"{batches}.png")
    log = str(tmp_path / "run" / "results" / "log.json")
    kept = []
    for limit in (8 * 10**6, 65 * 10**5, 4 * 10**6, 2 * 10**6, 10**6):
        target = tmp_path / "run.html"
        assert page.write_page(str(target), {"run": (log, read_log(tmp_path / "run"))}, limit) == []
        assert limit / 2 < target.stat().st_size <= limit
        data = data_of(target)
        batches = [batches for batches, _ in data["runs"][0]["grids"]]
        assert batches[0] == 0 and batches[-1] == 399 and batches == sorted(batches)
        networks = (data["networks"][name] for name in ("generator", "discriminator"))
        kept.append((len(batches), *(0 if isinstance(network, str) else network["n_bytes"] for network in networks)))
    assert 2 <= kept[1][0] < kept[0][0] <= page.MOST_GRIDS
    assert [networks for _, *networks in kept] == [[2, 1], [2, 1], [1, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", None, 0, [1]])
def test_a_number_that_is_none_does_no_harm(tmp_path, value):
    log = {"epochs": [{"epoch": 7, "d_loss": 1, "batches": value, "extra": [value]}], "evaluations": []}
    log["epochs"][0]["seconds"] = value if not isinstance(value, float) else None
    log["epochs"][0]["batches"] = value if not isinstance(value, float) else None
    log.update(config={"n_epochs": value, "seed": value}, environment={"threads": value})
    check_log(log)
    page.write_page(str(tmp_path / "run.html"), {"run": (str(tmp_path / "log.json"), log)})
    (shown,) = data_of(tmp_path / "run.html")["runs"]
    assert (shown["n_epochs"], shown["batches_per_epoch"], shown["seconds"]) == (7, 1, 0)


def test_a_network_with_a_number_that_is_none_is_left_out(tmp_path):
    log, _ = save_networks(tmp_path, 10, generator=[{"kind": "Linear", "eps": float("inf")}, {"kind": "Tanh"}])
    logs = {"run": (str(log), saved_log.read_log(str(log)))}
    (problem,) = page.write_page(str(tmp_path / "run.html"), logs)
    assert "checkpoint.npz holds no networks" in problem
    assert data_of(tmp_path / "run.html")["networks"]["generator"] == problem


def test_changes_and_the_command(finished_run):
    log = read_log(finished_run[0])
    log["changes"] = [{"epoch": 2, "config": {"lr": 0.0001}, "environment": {"threads": 1}}, {"epoch": 3}]
    check_log(log)
    assert page.describe("run", log, kinds_of([log]))["changes"] == ["2: lr 0.0001, threads 1", "3: "]
    log["config"] = {"cpu": True, "data_root": "a b", "ema": None, "dropout": False, "sizes": [3, 4]}
    command = page.describe("run", log, kinds_of([log]))["command"]
    assert command.startswith("python cgan.py --cpu ") and command.endswith(" --sizes 3 4") and "a b'" in command
    assert "ema" not in command and "dropout" not in command
