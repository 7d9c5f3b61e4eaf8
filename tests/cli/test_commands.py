"""The command line as a user types it."""

import json
import re
import subprocess
import sys

import pytest

from medgraft.adapter import locate_adapter
from medgraft.cli.main import _COMMANDS, _parser, main


def _medgraft(*words, cwd=None):
    return subprocess.run([sys.executable, "-m", "medgraft", *map(str, words)], capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_libraries_show_no_progress_bars_of_their_own(tmp_path):
    assert _medgraft("tiny-models", tmp_path, "vit-gpt2").stderr == ""
    code = "from medgraft.cli.main import main; main(['check-plugin', 'nope']); from transformers.utils import logging"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(logging.is_progress_bar_enabled())"], capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


@pytest.fixture(scope="module")
def adapter(blip_folder, phantoms_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "adapter"
    done = _medgraft(
        "train", "--backbone", f"blip:{blip_folder}", "--strategy", "lora", "--data", f"roco:{phantoms_folder}", "--out", out,
        "--max-steps", 2, "--batch-size", 4, "--max-images", 6, "--set", "strategy.r=2", "--set",
        "generation.max_new_tokens=5", "--learning-rate", "0.001", "--seed", 3, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_train_prints_the_record(adapter):
    out, record, errors = adapter
    contract = """run_id backbone strategy data seed status training_seconds steps seconds_per_step train_loss
        trainable_parameters total_parameters peak_memory_bytes adapter_bytes metrics versions hardware error"""
    assert set(contract.split()) <= set(record)
    assert (record["strategy"], record["seed"], record["steps"], record["status"]) == ("lora", 3, 2, "ok")
    assert len(record["train_loss"]) == 2
    assert "LORA on 28 modules" in errors and "6 train" in errors
    assert "Warning" not in errors
    assert (locate_adapter(out) / "medgraft.json").is_file()


@pytest.mark.slow
def test_evaluate_and_caption(adapter, phantoms_folder, tmp_path):
    out, record, _ = adapter
    predictions = tmp_path / "p.json"
    done = _medgraft(
        "evaluate", "--adapter", out, "--data", f"roco:{phantoms_folder}", "--max-images", 6, "--json",
        "--predictions", predictions,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"] == pytest.approx(record["metrics"], abs=1e-6)
    assert result["generated"] == record["generated"] and record["generated"]["max_new_tokens"] == 5
    image = next((phantoms_folder / "test/radiology/images").iterdir())
    done = _medgraft("caption", image, "--adapter", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == json.loads(predictions.read_text())[image.stem]
    assert done.stderr.startswith("1 of 1 generated captions were cut off at 5 tokens") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_caption_with_a_bare_backbone_and_several_images(blip_folder, phantoms_folder):
    images = sorted((phantoms_folder / "test/radiology/images").iterdir())[:2]
    done = _medgraft("caption", *images, "--backbone", f"blip:{blip_folder}", "--num-beams", 2, "--max-new-tokens", 4, "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["captions"]) == [str(image) for image in images]


def test_score(tmp_path, capsys):
    (tmp_path / "p.json").write_text(json.dumps({"1": "a nodule in the left lung", "2": "normal"}))
    (tmp_path / "r.json").write_text(json.dumps({"1": ["a nodule in the left lung"], "2": ["no lesion", "normal"]}))
    assert main(["score", "--predictions", str(tmp_path / "p.json"), "--references", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    names = ["cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"]
    assert re.findall(r"^(\w+) +[\d.]+  \[", printed, re.M) == names
    assert "rouge_l 1.0000" in printed


def test_phantoms(tmp_path):
    done = _medgraft("phantoms", "--count", 10, "--out", tmp_path / "p", "--seed", 4, "--json")
    assert json.loads(done.stdout)["images"] == {"train": 8, "validation": 1, "test": 1}


@pytest.mark.slow
def test_bench_and_report(blip_folder, phantoms_folder, tmp_path, capsys):
    suite = tmp_path / "tiny.toml"
    suite.write_text(
        f'name = "tiny"\nbackbones = ["blip:{blip_folder}"]\nstrategies = ["zero-shot", "bitfit"]\n'
        f'[data]\nname = "roco"\npath = "{phantoms_folder}"\nmax_images = 4\n[train]\nmax_steps = 1\n'
        "[generation]\nmax_new_tokens = 4\n"
    )
    done = _medgraft("bench", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[2/2]" in done.stderr and "Report: medgraft-results/tiny/report.html" in done.stdout
    out = tmp_path / "medgraft-results/tiny"
    assert {p.name for p in out.iterdir()} == {"records", "runs", "report.html", "table.md", "table.json"}
    printed = {}
    for form in ("md", "json", "text"):
        assert main(["report", str(out), "--format", form]) == 0
        printed[form] = capsys.readouterr().out
    assert printed["md"].startswith("**blip:")
    assert len(json.loads(printed["json"])) == 4  # two of them baselines
    assert len(re.findall(r"^bitfit +\d", printed["text"], re.M)) == 2  # a line in each of the two tables


def test_alone_it_prints_commands_that_can_be_run(capsys):
    assert main([]) == 0
    commands = re.findall(r"^  medgraft (.+)", capsys.readouterr().out.replace("\\\n", ""), re.M)
    assert [_parser().parse_args(line.split()).run.__module__ for line in commands] == [
        f"medgraft.cli.{name}" for name in ("phantoms", "train", "caption")
    ]


@pytest.mark.parametrize("words", ["list", "train --help"])
def test_a_reader_that_goes_leaves_no_traceback(words):
    code = f"{sys.executable} -m medgraft {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout in {"141\n", "0\n"}  # 0: all was written before the reader had gone


@pytest.mark.parametrize("command", [*(c.NAME for c in _COMMANDS), ""])
def test_the_help_of_every_command_fits_a_screen_and_has_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text and f"medgraft {command}" in text.partition("example:")[2]
    assert max(map(len, text.splitlines())) <= 80 and text.count("\n") <= 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --backbone blipp --strategy lora --data phantoms --out O", "Unknown backbone 'blipp'. Did you mean 'blip'"),
        ("train --backbone blip:B --strategy lorra --data roco:D --out O", "Unknown strategy 'lorra'. Did you mean 'lora'"),
        ("train --backbone blip:B --strategy peft:LORRA --data roco:D --out O", "Unknown PEFT method 'LORRA'"),
        ("train --backbone blip:B --strategy lora --data rocko:D --out O", "Unknown dataset 'rocko'. Did you mean 'roco'"),
        ("train --backbone blip:B --strategy lora --data roco:/nowhere --out O", "There is no /nowhere"),
        ("train --backbone blip:B --strategy lora --data roco:E --out O", "is not in ROCO v1 layout"),
        ("train --backbone blip:E --strategy lora --data roco:D --out O", "is no model folder"),
        ("train --backbone blip:./nope --strategy lora --data roco:D --out O", "There is no folder ./nope"),
        ("train --backbone blip --strategy lora --data roco:D --out O", "needs weights: write blip:HUB_ID or blip:FOLDER"),
        ("train --backbone blip:./nope --strategy lora --data roco:E --out O --set strategy.q=1", "'q' is not one of its"),
        ("train --backbone blip:B --strategy lora --data roco:D --out O --set train.epoch=1", "unknown key 'train.epoch'"),
        ("train --backbone blip:B --strategy lora --data roco:D --out O --set r=1", "is not of the form SECTION.KEY=VALUE"),
        ("train --backbone blip:B --strategy lora --data roco:D --out O --set metrics=[]", "metrics is in no section"),
        ("train --backbone blip:B --strategy lora --data roco:D --out O --batch-size 0", "per_device_train_batch_size"),
        ("train --backbone blip:some/model --strategy lora --data roco:D --out O", "is neither a folder nor a model that the"),
        ("evaluate --adapter A --backbone blip:OTHER --data roco:D", "was trained on another base"),
        ("evaluate --data roco:D", "Name the model: --adapter DIR or --backbone NAME[:SOURCE]"),
        ("caption x.jpg --adapter E", "is no medgraft adapter"),
        ("caption x.jpg --adapter A", "There is no image x.jpg"),
        ("caption TEXT --adapter A", "cannot be read as an image"),
        ("score --predictions TEXT --references TEXT", "holds no captions, neither as JSON nor as a table with a header"),
        ("score --predictions nope.json --references TEXT", "There is no file nope.json"),
        ("bench nope.toml", "There is no suite file nope.toml"),
        ("bench SUITE", "unknown key 'strategy'. Did you mean 'strategies'"),
        ("report E", "holds no records"),
        ("report /nowhere", "There is no folder /nowhere with records"),
        ("phantoms --count 5 --out D", "is not empty"),
        ("phantoms --count 0 --out O", "at least one image is needed"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_exit_code_2(
    words, message, adapter, blip_folder, other_blip_folder, phantoms_folder, tmp_path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image, no JSON")
    (tmp_path / "suite.toml").write_text('name = "x"\nbackbones = ["b"]\nstrategies = ["s"]\nstrategy = "s"\ndata = "d"\n')
    places = {
        "A": adapter[0], "B": blip_folder, "OTHER": other_blip_folder, "D": phantoms_folder, "E": tmp_path / "empty",
        "O": tmp_path / "out", "TEXT": tmp_path / "text.jpg", "SUITE": tmp_path / "suite.toml",
    }  # fmt: skip
    arguments = [
        re.sub(r"^(.*:)?([A-Z]+)$", lambda m: (m[1] or "") + str(places.get(m[2], m[2])), word) for word in words.split()
    ]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "the splits overlap" not in line]  # as phantoms of one kind do
    assert len(lines) == 1 and lines[0].startswith("medgraft: ") and message in lines[0]
    assert printed.out == ""


def test_an_adapter_is_not_overwritten_by_accident(adapter, blip_folder, phantoms_folder, capsys):
    out = adapter[0]
    words = ["train", "--backbone", f"blip:{blip_folder}", "--strategy", "bitfit", "--data", f"roco:{phantoms_folder}"]
    before = (locate_adapter(out) / "medgraft.json").read_bytes()
    assert main([*words, "--out", str(out)]) == 2
    assert "already holds an adapter. Name another folder, or add --overwrite" in capsys.readouterr().err
    assert (locate_adapter(out) / "medgraft.json").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(blip_folder, phantoms_folder, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    words = ["train", "--backbone", f"blip:{blip_folder}", "--strategy", "lora", "--data", f"roco:{phantoms_folder}", "--out"]
    assert main([*words, str(tmp_path)]) == 2
    assert "is not empty and was not made by medgraft train" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "new"), "--resume"]) == 2
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "README.md")]) == 2
    assert "is a file; --out names a folder" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "new"), "--set", "train.optim=bogus"]) == 2
    assert "Training options:" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("words", [("-q", "verify", "A"), ("verify", "A", "-q"), ("verify", "-q", "A")])
def test_an_action_takes_verbosity_before_and_after_its_name(words):
    found = _parser().parse_args(["adapter", *words])
    assert (found.quiet, found.verbose) == (True, False)
    assert not _parser().parse_args(["adapter", "verify", "A"]).quiet
