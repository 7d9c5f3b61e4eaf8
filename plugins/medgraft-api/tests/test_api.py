"""The clients against a server on this machine that speaks both wire formats, faults included."""

import base64
import io
import json

import pytest
from PIL import Image

import medgraft
from medgraft.captioning import Generated
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError, StrategyError
from medgraft.inference import RemoteInference
from medgraft.plugin import PluginManager
from medgraft_api import captioner
from medgraft_api.gemini import Gemini
from medgraft_api.openai_server import OpenAiServer
from medgraft_api.stub import CUT, MALFORMED, Stub, gemini_says, openai_says

OPTIONS = GenerationConfig(max_new_tokens=40)
IMAGES = [Image.new("RGB", (60, 40), (shade, shade, shade)) for shade in (10, 120)]
KEY = "secret-key-of-the-test"


BLOCKED = (200, {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 300}, "modelVersion": "m"})
BUSY = (429, {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}})
DOWN = (500, {"error": {"code": 500, "message": "oops", "status": "INTERNAL"}})
WRONG = (400, {"error": {"code": 400, "message": "no such model", "status": "INVALID_ARGUMENT"}})


@pytest.fixture
def stub():
    with Stub() as made:
        yield made


@pytest.fixture(params=["gemini", "openai"])
def provider(request, stub, monkeypatch, tmp_path):
    """(class, what a server says) with an environment in which it may be used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDGRAFT_API_SEND_IMAGES", "1")
    monkeypatch.setenv("MEDGRAFT_API_REQUESTS_PER_MINUTE", "60000")
    monkeypatch.setenv("MEDGRAFT_API_CONCURRENCY", "1")
    monkeypatch.setenv("MEDGRAFT_API_ATTEMPTS", "3")
    monkeypatch.setattr(captioner, "FIRST_PAUSE", 0.01)
    for name in ("GEMINI_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", stub.url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stub.url}/v1")
    return (Gemini, gemini_says) if request.param == "gemini" else (OpenAiServer, openai_says)


def caption(client, images=IMAGES, prompt="Describe."):
    return client.caption(images, prompt=prompt, options=OPTIONS)


def sent_image(body):
    if "contents" in body:
        part = body["contents"][0]["parts"][0]["inlineData"]
        assert part.get("mimeType", part.get("mime_type")) == "image/png"
        return base64.urlsafe_b64decode(part["data"])
    return base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,"))


def test_captions_tokens_and_what_was_sent(provider, stub, capsys):
    kind, says = provider
    stub.script = [says("A mass.\n"), says(" No finding. ")]
    client = kind.load("the-model")
    assert caption(client) == ["A mass.", "No finding."]
    assert f"images are sent to {stub.url}" in capsys.readouterr().err
    assert client.usage().requests == 2
    assert (client.usage().input_tokens, client.usage().output_tokens, client.usage().usd) == (600, 24, None)
    path, body = stub.requests[0]
    assert "the-model" in path or body["model"] == "the-model"
    assert "Describe." in json.dumps(body)
    assert "40" in json.dumps(body)
    received = Image.open(io.BytesIO(sent_image(body)))
    assert (received.size, received.tobytes()) == (IMAGES[0].size, IMAGES[0].tobytes())


def test_answers_are_cached_by_content(provider, stub, monkeypatch, tmp_path):
    kind, says = provider
    monkeypatch.setenv("MEDGRAFT_API_USD_PER_MILLION_TOKENS", "0.5,2")
    stub.script = [says("A mass.")]
    caption(kind.load("the-model"))
    again = kind.load("the-model")
    assert caption(again) == ["A mass.", "A mass."]
    assert len(stub.requests) == 2
    assert (again.usage().requests, again.usage().cached, again.usage().usd) == (0, 2, 0.0)
    caption(again, prompt="Which side?")  # another question
    assert len(stub.requests) == 4
    assert again.usage().usd == pytest.approx(2 * (300 * 0.5 + 12 * 2) / 1e6)
    kept = [json.loads(path.read_text()) for path in (tmp_path / "cache").rglob("*.json")]
    assert len(kept) == 4
    assert {entry["question"]["model"] for entry in kept} == {"the-model"}
    assert all(entry["answer"]["date"].startswith("20") and entry["answer"]["model"] for entry in kept)
    everything = "".join(path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert KEY not in everything


def test_sampling_is_asked_for_and_cached_by_its_settings(provider, stub):
    kind, says = provider
    stub.script = [says("A mass."), says("A nodule."), says("A cyst."), says("Sharp.")]
    client = kind.load("the-model")
    sampled = OPTIONS.model_copy(update={"do_sample": True, "temperature": 0.6, "top_p": 0.8, "seed": 7})
    texts = [client.caption(IMAGES[:1], prompt="Describe.", options=each)[0] for each in (OPTIONS, sampled, sampled)]
    assert texts == ["A mass.", "A nodule.", "A nodule."] and len(stub.requests) == 2
    other = client.caption(IMAGES[:1], prompt="Describe.", options=sampled.model_copy(update={"seed": 8}))
    assert other == ["A cyst."]
    plain, asked = (body.get("generationConfig", body) for _, body in stub.requests[:2])
    assert plain["temperature"] == 0 and "seed" not in plain
    assert (asked["temperature"], asked.get("top_p", asked.get("topP")), asked["seed"]) == (0.6, 0.8, 7)


def test_settings_that_a_server_cannot_follow_are_told(provider, stub, logged):
    kind, says = provider
    stub.script = [says("A mass.")]
    captioner = RemoteInference(kind.load("the-model"), "Describe.")
    for settings in ({"repetition_penalty": 1.2}, {"num_return_sequences": 2, "do_sample": True}, {"min_new_tokens": 3}):
        with pytest.raises(BackboneError, match=f"cannot follow generation.{next(iter(settings))}=.*; what it can follow"):
            captioner.caption(IMAGES, GenerationConfig(**settings))
    top_k = GenerationConfig(do_sample=True, top_k=5)
    if kind is Gemini:
        captioner.caption(IMAGES, top_k)
        assert stub.requests[0][1]["generationConfig"]["topK"] == 5
    else:
        with pytest.raises(BackboneError, match="top_k=5"):
            captioner.caption(IMAGES, top_k)
    with logged() as lines:
        captioner.caption(IMAGES, GenerationConfig(num_beams=3))
    assert lines == ["A model behind an API decodes without beam search: it does not follow generation.num_beams=3."]


def test_one_unreadable_image_is_left_out(provider, stub, tmp_path):
    kind, says = provider
    stub.script = [says("A mass.")]
    (tmp_path / "bad.png").write_bytes(b"x")
    captioner = RemoteInference(kind.load("the-model"), "Describe.", batch_size=2)
    images = [IMAGES[0], tmp_path / "bad.png", IMAGES[1]]
    found = [each for batch in captioner.batches(images, OPTIONS) for each in batch.images]
    assert [each.captions for each in found] == [("A mass.",), (), ("A mass.",)] and "bad.png" in found[1].problem


def test_a_damaged_cache_entry_is_asked_again(provider, stub, tmp_path):
    kind, says = provider
    stub.script = [says("A mass.")]
    caption(kind.load("the-model"), IMAGES[:1])
    next((tmp_path / "cache").rglob("*.json")).write_text('{"answer": {"te')
    assert caption(kind.load("the-model"), IMAGES[:1]) == ["A mass."]
    assert len(stub.requests) == 2


@pytest.mark.parametrize("fault", [BUSY, DOWN, CUT, MALFORMED], ids=["429", "500", "cut", "malformed"])
def test_faults_that_pass_are_tried_again(provider, stub, fault):
    kind, says = provider
    stub.script = [fault, fault, says("A mass.")]
    assert caption(kind.load("the-model"), IMAGES[:1]) == ["A mass."]
    assert len(stub.requests) == 3


@pytest.mark.parametrize("fault", [BUSY, DOWN, CUT, MALFORMED], ids=["429", "500", "cut", "malformed"])
def test_faults_that_stay_are_one_clear_line_and_lose_nothing(provider, stub, fault):
    kind, says = provider
    stub.script = [says("A mass."), fault]
    client = kind.load("the-model")
    with pytest.raises(BackboneError, match=r"the-model at http.* gave no answer: .*Answers so far are kept") as caught:
        caption(client)
    assert KEY not in str(caught.value)
    assert len(stub.requests) == 1 + 3
    stub.script = [says("No finding.")]
    assert caption(kind.load("the-model")) == ["A mass.", "No finding."]
    assert len(stub.requests) == 5


def test_a_wrong_request_is_not_tried_again(provider, stub):
    kind, _ = provider
    stub.script = [WRONG]
    with pytest.raises(BackboneError, match="no such model"):
        caption(kind.load("the-model"), IMAGES[:1])
    assert len(stub.requests) == 1


def test_answers_that_were_cut_off_are_counted(provider, stub, tmp_path):
    kind, says = provider
    limit = "MAX_TOKENS" if kind is Gemini else "length"
    stub.script = [says("A mass in the", limit), says("A mass.")]
    captioner = RemoteInference(kind.load("the-model"), "Describe.")
    assert captioner.caption(IMAGES, OPTIONS) == Generated(["A mass in the", "A mass."], 1, 40)
    assert captioner.caption(IMAGES[:1], OPTIONS).cut_off == 1  # from the cache
    assert captioner.usage().cut_off == 2
    for path in (tmp_path / "cache").rglob("*.json"):  # as older versions wrote it
        entry = json.loads(path.read_text())
        del entry["answer"]["cut_off"]
        path.write_text(json.dumps(entry))
    again = RemoteInference(kind.load("the-model"), "Describe.")
    assert again.caption(IMAGES, OPTIONS).cut_off is None


@pytest.mark.parametrize("provider", ["gemini"], indirect=True)
@pytest.mark.parametrize("answer", [BLOCKED, gemini_says("", "SAFETY")])
def test_what_gemini_blocks_is_an_empty_caption_and_counted(provider, stub, answer):
    stub.script = [answer]
    client = Gemini.load("the-model")
    assert caption(client, IMAGES[:1]) == [""]
    assert client.usage().refused == 1


@pytest.mark.parametrize("provider", ["openai"], indirect=True)
def test_what_openai_blocks_is_an_empty_caption_and_counted(provider, stub):
    stub.script = [openai_says(None, "content_filter")]
    client = OpenAiServer.load("the-model")
    assert caption(client, IMAGES[:1]) == [""]
    assert client.usage().refused == 1


def test_an_answer_without_words_is_an_error_and_not_kept(provider, stub, tmp_path):
    kind, says = provider
    stub.script = [says("", "MAX_TOKENS" if kind is Gemini else "length")]
    with pytest.raises(BackboneError, match=r"raise generation\.max_new_tokens"):
        caption(kind.load("the-model"), IMAGES[:1])
    assert len(stub.requests) == 1
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_requests_are_no_faster_than_allowed(provider, stub, monkeypatch):
    import time

    kind, says = provider
    monkeypatch.setenv("MEDGRAFT_API_REQUESTS_PER_MINUTE", "300")
    monkeypatch.setenv("MEDGRAFT_API_CONCURRENCY", "4")
    stub.script = [says("A mass.")]
    client = kind.load("the-model")
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(5)]
    start = time.monotonic()
    caption(client, images)
    assert time.monotonic() - start >= 4 * 0.2


def test_nothing_is_sent_without_the_switch_or_a_key(provider, stub, monkeypatch):
    kind, _ = provider
    monkeypatch.delenv("MEDGRAFT_API_SEND_IMAGES")
    with pytest.raises(BackboneError, match="Set MEDGRAFT_API_SEND_IMAGES=1 if your data may be sent"):
        kind.load("the-model")
    monkeypatch.setenv("MEDGRAFT_API_SEND_IMAGES", "1")
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BackboneError, match=r"No API key: set (GEMINI_API_KEY or GOOGLE_API_KEY|OPENAI_API_KEY)"):
        kind.load("the-model")
    assert not stub.requests


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDGRAFT_API_REQUESTS_PER_MINUTE", "many"),
        ("MEDGRAFT_API_ATTEMPTS", "-1"),
        ("MEDGRAFT_API_USD_PER_MILLION_TOKENS", "0.3"),
    ],
)
def test_settings_that_are_no_numbers(provider, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(BackboneError, match=name):
        provider[0].load("the-model")


def test_the_price_is_told_without_a_key_and_without_sending(provider, stub, monkeypatch):
    kind, _ = provider
    monkeypatch.delenv("MEDGRAFT_API_SEND_IMAGES")
    monkeypatch.setenv("MEDGRAFT_API_USD_PER_MILLION_TOKENS", "1,10")
    big = [(1024, 1024)] * 10
    expected = kind.estimate("the-model", big, prompt="x" * 40, options=OPTIONS)
    assert expected.requests == 10
    per_image = {Gemini: 4 * 258, OpenAiServer: 85 + 4 * 170}[kind]
    assert expected.input_tokens == 10 * (per_image + 11)
    assert expected.usd == pytest.approx((expected.input_tokens + 10 * 400) / 1e6)
    assert not stub.requests


@pytest.mark.slow
def test_in_a_suite_beside_others_and_never_trained(provider, stub, phantoms_folder, tmp_path, logged):
    from medgraft.benchmark import run_suite
    from medgraft.config import SuiteConfig

    kind, says = provider
    stub.script = [says("axial ct showing a mass.")]
    name = f"{kind.provider}:the-model"
    suite = SuiteConfig(
        name="api", backbones=(name,), strategies=("zero-shot", "lora", "qlora"),
        data=({"name": "roco", "path": str(phantoms_folder), "max_images": 2},),
    )  # fmt: skip
    with logged() as lines:
        records = run_suite(suite, tmp_path / "out", plugins=PluginManager())
    assert [(r.strategy, r.status) for r in records] == [("zero-shot", "ok")]
    assert records[0].usage.requests == 2
    assert records[0].metrics["cider"] >= 0
    assert f"left out: lora on {name}: A model behind an API cannot be trained here." in lines
    assert KEY not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*") if path.is_file())
    with pytest.raises(StrategyError, match="its only strategy is zero-shot"):
        config = medgraft.run_config(backbone=name, strategy="lora", data=f"roco:{phantoms_folder}")
        medgraft.train(config, tmp_path / "no", progress=False)
