"""An adapter's package knows what it was trained on, and evaluation says what of it is scored."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import medgraft
from medgraft.adapter import TrainedOn, adapter_bytes, locate_adapter
from medgraft.adapter.trained_on import TRAINED_ON, _pack
from medgraft.benchmark import execute, read_record
from medgraft.cli.main import main
from medgraft.config import data_config, run_config
from medgraft.errors import DataError
from medgraft.types import Example


def _digests(numbers):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 1000])
def test_what_was_packed_is_found_and_nothing_else(count):
    trained = TrainedOn(_pack("images", _digests(range(count))))
    assert trained._has("images", _digests(range(count))).all()
    assert not trained._has("images", _digests(range(count, count + 10_000))).any()


def test_the_file_is_small_and_has_no_names(tmp_path):
    save_file(_pack("images", _digests(range(65_000))), tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size < 300_000
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    trained = TrainedOn.of([Example("secret", tmp_path / "secret.png", ("c",), "train", "Jane Doe")])
    assert trained.write(tmp_path) == TRAINED_ON
    content = (tmp_path / TRAINED_ON).read_bytes()
    assert b"secret" not in content and b"Jane" not in content
    trained.write(tmp_path)
    assert (tmp_path / TRAINED_ON).read_bytes() == content
    again = TrainedOn.read(tmp_path)
    assert {name: tensor.tolist() for name, tensor in again.tensors.items()} == {
        name: tensor.tolist() for name, tensor in trained.tensors.items()
    }


@pytest.fixture(scope="module")
def trained(blip_folder, tmp_path_factory):
    """An adapter trained for a step on the rows `train` of a table whose other readers would split it by hash."""
    from medgraft.plugin import PluginManager

    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = ["image,caption,fold,person"]
    for number in range(20):
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / f"{number}.png")
        split = "train" if number < 14 else "validation" if number < 16 else "test"
        rows.append(f"{number}.png,text {number},{split},p{7 if number == 19 else number}")
    rows.append("gone.png,nothing,test,p30")
    (folder / "t.csv").write_text("\n".join(rows))
    config = run_config(
        backbone=f"blip:{blip_folder}", strategy="bitfit", data=f"csv:{folder / 't.csv'}",
        overrides=[
            "data.split=fold", "data.group=person", "train.max_steps=1", "train.per_device_train_batch_size=2",
            "train.bf16=false", "generation.max_new_tokens=4",
        ],
    )  # fmt: skip
    out = folder / "adapter"
    execute(config, out, plugins=PluginManager(), evaluate=False, checkpoints=False)
    return out, folder / "t.csv"


def _evaluate(trained, *overrides, split="test"):
    out, table = trained
    data = data_config(f"csv:{table}", overrides, None)
    return medgraft.evaluate(data, adapter=out, split=split, metrics=("bleu",))


def _words(adapter, table):
    options = ("--set", "data.split=fold", "--set", "data.group=person")
    return ["evaluate", "--adapter", str(adapter), "--data", f"csv:{table}", *options]


def test_the_package_and_the_record_know(trained):
    out, _ = trained
    adapter = medgraft.load_adapter(out)
    assert adapter.manifest.data["options"] == {"split": "fold", "group": "person"}
    assert TRAINED_ON in adapter.manifest.files
    assert adapter_bytes(adapter.manifest) == (locate_adapter(out) / "trained_tensors.safetensors").stat().st_size
    record = read_record(out / "record.json")
    assert [(leak.kind, leak.split, leak.other, leak.images, leak.examples) for leak in record.leaks] == [
        ("group", "test", "train", 1, ())
    ]
    assert record.data_report.missing == 1 and record.data_report.leaking == 0


def test_a_split_by_other_options_scores_trained_images_and_says_so(trained, logged):
    with logged() as lines:
        seen = _evaluate(trained, split="train").seen_in_training
    assert 0 < seen.images <= seen.total
    assert f"The adapter was trained on {seen.images} of these {seen.total} images." in " ".join(lines)
    (line,) = [line for line in lines if "other options" in line]
    assert "data.split was 'fold' and is not set, data.group was 'person' and is not set" in line


def test_the_right_split_says_what_it_shares(trained, logged):
    with logged() as lines:
        result = _evaluate(trained, "data.split=fold", "data.group=person")
    assert (result.seen_in_training.images, result.seen_in_training.groups, result.seen_in_training.total) == (0, 1, 4)
    assert "trained on 0 of these 4 images, and on patients or articles of 1 more." in " ".join(lines)
    assert not [line for line in lines if "other options" in line]
    assert len(result.data_report.missing) == 1


def test_scoring_trained_images_can_be_refused(trained):
    with pytest.raises(DataError, match=r"trained on 14 of these 14 images\. Score a split that it was not trained on"):
        _evaluate(trained, "data.split=fold", "data.on_leak=error", split="train")
    assert _evaluate(trained, "data.split=fold", "data.on_leak=error").seen_in_training.images == 0


def test_a_package_without_the_file_is_unknown(trained, tmp_path, capsys):
    out, table = trained
    shutil.copytree(out, tmp_path / "copy")
    package = locate_adapter(tmp_path / "copy")
    manifest = json.loads((package / "medgraft.json").read_text())
    del manifest["files"][TRAINED_ON]
    (package / "medgraft.json").write_text(json.dumps(manifest))
    words = _words(tmp_path / "copy", table)
    assert main(words) == 0
    assert "does not list its training images" in capsys.readouterr().out


def test_the_command_line_says_what_was_left_out_and_seen(trained, capsys):
    out, table = trained
    words = _words(out, table)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 images of test\nLeft out: 1 missing, such as ")
    assert "The adapter was trained on 0 of these 4 images, and on patients or articles of 1 more." in said
    assert main([*words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["seen_in_training"] == {"total": 4, "images": 0, "groups": 1, "complete": True}
    assert [path.rpartition("/")[2] for path in content["left_out"]["missing"]] == ["gone.png"]
    assert content["left_out"]["uncaptioned"] == 0 and isinstance(content["assumptions"], list)
