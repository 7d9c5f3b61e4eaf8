"""`medgraft demo`: what its page shows, and that no image leaves the machine or is kept."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import count
from pathlib import Path

import pytest

import medgraft
from medgraft.cli.main import main
from medgraft.config import GenerationConfig
from medgraft.demo import local_models
from medgraft.demo.server import Address
from medgraft.errors import ConfigError
from medgraft.inference import RemoteInference

ADAPTERS = [Path(__file__).parents[2] / "adapters" / name for name in ("blip-nano-lora", "blip-nano-lora-decoder")]
NO_GRADIO = "Gradio is not installed: pip install 'medgraft[demo]'"


def test_without_gradio_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--adapter", "any"]) == 2
    assert capsys.readouterr().err == (
        "medgraft: medgraft demo needs Gradio, which is not installed. To install it: pip install 'medgraft[demo]'\n"
    )


def test_addresses():
    with Address("127.0.0.1", 0) as address:
        assert address.is_loopback and re.fullmatch(r"http://127\.0\.0\.1:\d+/", address.url)
        port = int(address.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(ConfigError, match=rf"--host 127\.0\.0\.1 --port {port} cannot be used: .*--port 0 takes"):
            Address("127.0.0.1", port)
    with Address("0.0.0.0", 0) as address:
        assert not address.is_loopback
    with pytest.raises(ConfigError, match="--port 70000 is no port"):
        Address("127.0.0.1", 70000)


def test_a_model_behind_an_api_is_refused():
    with pytest.raises(ConfigError, match="api:model is a model behind an API, and images of the demo do not leave"):
        local_models({"api:model": (RemoteInference(None, ""), GenerationConfig())})


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's URL, and the folder that its process has for temporary files."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    folder = tmp_path_factory.mktemp("demo")
    words = [word for adapter in ADAPTERS for word in ("--adapter", str(adapter))]
    process = subprocess.Popen(
        [sys.executable, "-m", "medgraft", "demo", *words, "--with-base", "--port", "0", "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    if found is None:
        process.kill()
    assert found, process.communicate()
    yield found[0], folder
    process.terminate()
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")
    assert not list(folder.glob("medgraft-demo-*"))


@pytest.fixture(scope="module")
def image(phantoms_folder) -> Path:
    return min((phantoms_folder / "test/radiology/images").iterdir())


def _kept(folder: Path) -> list[Path]:
    """Files with content in the server's temporary folder."""
    return [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::gradio_client")
def test_captions_as_the_command_line_makes_them(served, image, tmp_path):
    url, folder = served
    gradio_client = pytest.importorskip("gradio_client", reason=NO_GRADIO)
    client = gradio_client.Client(url, verbose=False, download_files=False, analytics_enabled=False)
    problem, *captions, maps = client.predict("", api_name="/caption")
    assert ">Drop an image first.<" in problem and not any(captions) and not maps
    preview, problem, *captions, maps = client.predict(gradio_client.handle_file(image), "", api_name="/open")[1:]
    assert not _kept(folder) and image.name in preview and problem == ""
    loaded = [medgraft.load_adapter(adapter, dtype="auto") for adapter in ADAPTERS]
    assert captions[:2] == [medgraft.caption(image, adapter=adapter) for adapter in loaded]
    assert len(captions) == 3 and captions[2] not in captions[:2]
    assert maps.count("<iframe") == 1 and all(adapter.name in maps for adapter in ADAPTERS)

    asked = client.predict("no evidence of", api_name="/caption")[1]
    assert asked == medgraft.caption(image, adapter=medgraft.load_adapter(ADAPTERS[0], dtype="auto", prompt="no evidence of"))

    pydicom = pytest.importorskip("pydicom")
    whole = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(whole.read_bytes()[:4000])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    for file in (text, cut, whole):
        preview, problem, *captions, _ = client.predict(gradio_client.handle_file(file), "", api_name="/open")[1:]
        assert not _kept(folder)
        if file == whole:
            assert problem == "" and all(captions)
        else:
            assert preview == "" and not any(captions)
            assert re.fullmatch(rf'<p class="problem" role="alert">{file.name} cannot be read as an image[^<]+</p>', problem)


BREAKS = """
import sys
import gradio
from medgraft.demo import local_models
from medgraft.demo.page import demo_page
from medgraft.loading import captioner_of

captioner, generation = captioner_of(sys.argv[1], None, None)
weight = next(captioner.backbone.model.parameters())
weight.data = weight.data[..., :1]
page = demo_page(local_models({"broken": (captioner, generation)}), "")
opened = next(function.fn for function in page.fns.values() if function.api_name == "open")
*_, (_, _, problem, caption, maps) = opened(sys.argv[2], "", gradio.Request(session_hash="tab"))
print(problem, caption, maps)
"""


@pytest.mark.slow
def test_what_breaks_in_a_model_is_said_on_the_page(image, tmp_path):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    upload = shutil.copy(image, tmp_path)  # its folder is deleted
    made = subprocess.run([sys.executable, "-c", BREAKS, ADAPTERS[0], upload], capture_output=True, text=True, check=True)
    assert re.search(r">RuntimeError: [^<]+ The terminal of medgraft demo shows where\.</p> *$", made.stdout)
    assert "Traceback" in made.stderr


@pytest.mark.slow
def test_the_page_asks_no_other_server(served):
    url, _ = served
    with urllib.request.urlopen(url) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "Not for clinical use" in page
    loaded = re.sub(r"<meta\b[^>]*>", "", page, flags=re.DOTALL)  # of previews in chats, which no browser loads
    assert not re.findall(r"""(?:src|href|url\(|@import)\s*[=:]?\s*["']?(?:https?:)?//[^"')\s]*""", loaded)
    assert policy.startswith("default-src 'self';") and "http" not in policy
    config = json.loads(urllib.request.urlopen(f"{url}config").read())
    assert not config["analytics_enabled"] and not config.get("run_history") and not config["stylesheets"]
    foreign = urllib.request.Request(url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(foreign)


class _Chromium:
    """A page in a headless Chromium, driven by its DevTools protocol."""

    def __init__(self, folder: Path):
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        if chromium is None:
            pytest.skip("no Chromium is installed")
        client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
        self.process = subprocess.Popen(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--disable-extensions",
             "--disable-background-networking", f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        port = next(m[1] for line in self.process.stderr if (m := re.search(r"ws://127\.0\.0\.1:(\d+)/", line)))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        self.socket = client.connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=60)
        self.numbers, self.events = count(1), []
        for domain in ("Page", "DOM", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=120))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def value(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script):
        for _ in range(300):
            if found := self.value(script):
                return found
            time.sleep(0.4)
        raise AssertionError(f"never true: {script}; the page says: {self.value('document.body.innerText')}")

    def named(self, method):
        return [event["params"] for event in self.events if event["method"] == method]

    def upload(self, selector, file):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::gradio_client", "ignore:connect:DeprecationWarning")
def test_in_a_browser(served, image, tmp_path):
    url, folder = served
    gradio_client = pytest.importorskip("gradio_client", reason=NO_GRADIO)
    chromium = _Chromium(tmp_path / "profile")
    try:
        narrow = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        chromium.call("Emulation.setDeviceMetricsOverride", **narrow)
        chromium.call("Page.navigate", url=url)
        chromium.wait("document.querySelector('#file input[type=file]') !== null")
        chromium.upload("#file input[type=file]", image)
        frame = "document.querySelector('.maps iframe')?.contentDocument"
        words = chromium.wait(f"{frame}?.querySelectorAll('.words .word').length")
        chromium.value(f"{frame}.querySelectorAll('.words .word')[1].dispatchEvent(new Event('mouseenter'))")
        assert words > 1 and chromium.wait(f"{frame}.querySelectorAll('.words .word')[1].classList.contains('current')")
        assert chromium.value(f"{frame}.querySelectorAll('.frame canvas').length") > words
        captions = chromium.value("[...document.querySelectorAll('.made textarea')].map((text) => text.value)")
        assert len(captions) == 3 and all(captions)
        assert chromium.value("document.documentElement.scrollWidth") <= 390
        shown = chromium.value("document.body.innerText")
        assert "Not for clinical use" in shown and "Images stay on this machine" in shown and image.name in shown
        asked = {request["request"]["url"] for request in chromium.named("Network.requestWillBeSent")}
        assert asked and {address for address in asked if not address.startswith((url, "data:", "blob:", "about:"))} == set()
        problems = [entry["entry"]["text"] for entry in chromium.named("Log.entryAdded") if entry["entry"]["level"] == "error"]
        assert not problems + chromium.named("Runtime.exceptionThrown")
        assert not _kept(folder)
        session = next(found[1] for address in asked if (found := re.search(r"/heartbeat/(\w+)", address)))
        chromium.call("Page.navigate", url="about:blank")
        time.sleep(2)
        again = gradio_client.Client(url, verbose=False, download_files=False, analytics_enabled=False)
        again.session_hash = session
        assert "Drop an image first" in again.predict("", api_name="/caption")[0]  # the tab's image is forgotten
    finally:
        chromium.close()
