"""No secret is in what is written or printed, and no code that comes with a model is run."""

import ast
import io
import json
import logging
from pathlib import Path

import pytest

from medgraft.backbones.loading import load_image_processor, load_tokenizer, read_config
from medgraft.benchmark import Record, write_record
from medgraft.cli import list_names
from medgraft.cli.main import main
from medgraft.config import RunConfig
from medgraft.errors import BackboneError, DataError
from medgraft.progress import log_to_stderr
from medgraft.redaction import REMOVED, redacted, redacted_json, redacted_text
from medgraft.training.checkpoints import write_progress

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"
PLAIN = "correct-horse-battery"  # the value of a variable, in no form that could be known


@pytest.mark.parametrize(
    "text",
    [
        f"401 for {TOKEN}.", "sk-proj-abcdefghijklmnop123", "AIza" + "x" * 35, "ghp_" + "a1" * 18,
        "Authorization: Bearer abcdefgh.ij",
        "https://me:letmein@host/data.csv", "https://h/x?a=1&X-Amz-Signature=letmein", "s3://h/x?token=letmein",
        f"OPENAI_API_KEY={PLAIN}",
        "{'password': 'letmeinplease'}", f"the key {PLAIN} is wrong",
    ],
)  # fmt: skip
def test_secrets_in_texts(text, monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_KEY", PLAIN)
    clean = redacted_text(text)
    assert REMOVED in clean and not any(part in clean for part in (TOKEN, PLAIN, "letmein", "abcdefgh", "xxxx", "a1a1"))
    assert redacted_text(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "unknown key 'train.learning_rates'", "train.max_text_tokens: 128", "pad_token_id=0", "https://host:8000/v1",
        "tokens: 1234567890",
        "blip:Salesforce/blip-image-captioning-base", "data.image_key=figure_name", "a nodule: left lung, token 'aa'",
        "sk-learn",
    ],
)  # fmt: skip
def test_other_texts_stay(text):
    assert redacted_text(text) == text


def test_settings_by_name():
    values = {"data": {"hub_token": "x", "image_key": "figure", "pad_token": "<pad>", "password": None}, "rest": [TOKEN, 1.5]}
    assert redacted(values) == {
        "data": {"hub_token": REMOVED, "image_key": "figure", "pad_token": "<pad>", "password": None}, "rest": [REMOVED, 1.5],
    }  # fmt: skip
    assert redacted_json('{"a":1e-05}') == '{"a":1e-05}'


@pytest.fixture
def config():
    data = {"name": "hf", "path": f"https://me:letmein@host/{TOKEN}", "options": {"token": PLAIN}}
    return RunConfig.model_validate({"backbone": f"openai:m@https://me:letmein@{TOKEN}", "strategy": "lora", "data": data})


def test_what_is_written(config, tmp_path):
    record = Record(
        run_id="x", backbone=config.backbone, strategy="lora", data="hf", seed=0, status="failed", error=TOKEN,
        traceback=f"token={PLAIN}", config=config, versions={}, hardware={"cpu": "x", "threads": 2},
    )  # fmt: skip
    write_record(record, tmp_path)
    write_progress(tmp_path, {"config": config.model_dump(mode="json"), "losses": []})
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert REMOVED in text and not any(secret in text for secret in ("letmein", TOKEN, PLAIN)), path
        assert json.loads(text)["config"]["data"]["options"]["token"] == REMOVED


def test_what_is_printed(monkeypatch, capsys):
    def fails(arguments):
        print(f"token={PLAIN}")
        logging.getLogger("medgraft").warning("%s", TOKEN)
        raise DataError(f"No answer from https://me:letmein@host for {TOKEN}.")

    monkeypatch.setattr(list_names, "run", fails)
    assert main(["list"]) == 2
    with log_to_stderr():
        logging.getLogger("medgraft").warning("%s", TOKEN)
    printed = "".join(capsys.readouterr())
    assert printed.count(REMOVED) == 5 and not any(secret in printed for secret in ("letmein", TOKEN, PLAIN))


@pytest.mark.parametrize("load", [read_config, load_tokenizer, load_image_processor])
def test_code_that_comes_with_a_model_is_never_run(load, tmp_path, monkeypatch, blip_folder):
    """Where transformers would ask on the terminal whether to run it."""
    marker = tmp_path / "was_run"
    own = {
        "AutoConfig": "own.Own", "AutoTokenizer": ["own.Own", None], "AutoImageProcessor": "own.Own",
        "AutoModelForImageTextToText": "own.Own",
    }  # fmt: skip
    settings = {"model_type": "own", "auto_map": own, "trust_remote_code": True}
    for name, changes in (
        ("config.json", {}), ("tokenizer_config.json", {"tokenizer_class": "Own"}),
        ("preprocessor_config.json", {"image_processor_type": "Own"}),
    ):  # fmt: skip
        (tmp_path / name).write_text(json.dumps(settings | changes))
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(BackboneError):
        load(str(tmp_path), ("blip",)) if load is read_config else load(str(tmp_path))
    assert not marker.exists()


def test_every_load_refuses_code_of_models():
    """transformers asks on the terminal where nothing is said."""
    found = 0
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords} if name else {}
            assert keywords.get("trust_remote_code", "False") == "False" and keywords.get("weights_only", "True") == "True", (
                path
            )
            assert keywords.get("allow_pickle", "False") == "False", path
            if (name.startswith("Auto") and name.endswith(".from_pretrained")) or name == "loader.from_pretrained":
                found += 1
                assert "trust_remote_code" in keywords, (path, node.lineno)
            assert name != "torch.load" or "weights_only" in keywords, (path, node.lineno)
    assert found >= 8
