"""Going on from an adapter: its weights are the start, exactly its parameters train, and the child knows its past."""

import json
import shutil

import numpy as np
import pytest
import torch
from compared import logits
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import BlipForConditionalGeneration

import medgraft
from medgraft.adapter import read_manifest, read_start
from medgraft.adapter.locating import locate_adapter
from medgraft.benchmark import execute
from medgraft.cli.main import main
from medgraft.errors import AdapterError, DataError
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare

STEPS = (
    "train.max_steps=2", "train.per_device_train_batch_size=4", "train.bf16=false", "train.lr_scheduler_type=constant",
    "train.warmup_steps=0", "generation.max_new_tokens=4",
)  # fmt: skip
MIXTURE = ("strategy.text=adapter", "strategy.vision.mode=full", "strategy.vision.roles=norm", "strategy.r=4")


def _config(data, *overrides, max_images=8, **names):
    return medgraft.run_config(data=data, max_images=max_images, overrides=[*STEPS, *overrides], **names)


def _run(config, out, **options):
    return execute(config, out, plugins=PluginManager(), **{"evaluate": False, "checkpoints": False, **options})


@pytest.fixture(scope="module")
def data(phantoms_folder):
    return f"roco:{phantoms_folder}"


@pytest.fixture(scope="module")
def parent(blip_folder, data, tmp_path_factory):
    """`parent(STRATEGY, *overrides)`: the folder of an adapter of two steps, and the backbone that it was saved from."""
    made = {}

    def get(strategy, *overrides):
        if (strategy, overrides) not in made:
            out = tmp_path_factory.mktemp("parent") / "run"
            config = _config(data, *overrides, backbone=f"blip:{blip_folder}", strategy=strategy)
            made[strategy, overrides] = out, _run(config, out).backbone
        return made[strategy, overrides]

    return get


def _trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("strategy", "overrides"),
    [
        ("lora", ()),
        ("qlora", ()),
        ("bitfit", ()),
        ("encoder-frozen", ()),
        pytest.param("full", (), marks=pytest.mark.slow),
        pytest.param("lora-decoder", MIXTURE, marks=pytest.mark.slow),
        pytest.param("peft:VERA", (), marks=pytest.mark.slow),  # has parameters of its own that are not trained
        pytest.param(
            "peft:ADALORA", ("strategy.init_r=4", "strategy.target_r=2", "train.max_steps=12"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_child_starts_as_its_parent_ends_and_moves_only_its_parameters(strategy, overrides, parent, data, tmp_path, plugins):
    folder, backbone = parent(strategy, *overrides)
    config = _config(data, start_from=str(folder))
    start = read_start(config)
    before = prepare(config, plugins=plugins, strategy=start.strategy, attach=start.attach)
    assert torch.equal(logits(before.backbone), logits(medgraft.load_adapter(folder).backbone))
    assert _trained(before.backbone.model) == _trained(backbone.model)
    at_start = {name: parameter.detach().clone() for name, parameter in before.backbone.model.named_parameters()}
    child = _run(config, tmp_path / "child")
    moved = {n for n, p in child.backbone.model.named_parameters() if not torch.equal(p.detach(), at_start[n])}
    assert moved and moved <= set(_trained(backbone.model))
    assert child.record.trainable_parameters == before.applied.trainable_parameters
    loaded = medgraft.load_adapter(tmp_path / "child")
    assert torch.equal(logits(loaded.backbone), logits(child.backbone))
    assert not torch.equal(logits(child.backbone), logits(backbone))
    assert [a.steps for a in loaded.manifest.lineage] == [read_manifest(locate_adapter(folder)).training["steps"]]


def test_what_the_parent_changed_is_in_the_childs_package(parent, data, tmp_path):
    """Tensors are compared with the base: here the child's own training changes none."""
    folder, backbone = parent("bitfit")
    still = ("train.learning_rate=1e-30", "train.weight_decay=0")
    _run(_config(data, *still, start_from=str(folder)), tmp_path / "child")
    tensors = [load_file(locate_adapter(f) / "trained_tensors.safetensors") for f in (folder, tmp_path / "child")]
    assert tensors[0] and tensors[0].keys() == tensors[1].keys()
    assert torch.equal(logits(medgraft.load_adapter(tmp_path / "child").backbone), logits(backbone))


def _table(folder, numbers, name="t"):
    """A table of images of the given numbers, where number N always has the same pixels."""
    folder.mkdir(exist_ok=True)
    rows = ["image,caption,split"]
    for number, split in numbers:
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,text {number},{split}")
    (folder / f"{name}.csv").write_text("\n".join(rows))
    return f"csv:{folder / f'{name}.csv'}"


@pytest.fixture(scope="module")
def family(blip_folder, tmp_path_factory):
    """A parent trained on images 0 to 3, its child trained on 4 to 7 with another rate, and its grandchild on 4 to 9."""
    folder = tmp_path_factory.mktemp("family")
    one = ("train.max_steps=1",)
    first = _table(folder / "1", [(n, "train") for n in range(4)] + [(50, "test")])
    _run(_config(first, *one, 'train.prompt="a scan of"', backbone=f"blip:{blip_folder}", strategy="bitfit"), folder / "a")
    second = _table(folder / "2", [(n, "train") for n in range(4, 8)] + [(n, "test") for n in (1, 2, 60)])
    config = _config(second, *one, "train.learning_rate=1e-3", start_from=str(folder / "a"))
    child = _run(config.model_copy(update={"metrics": ("bleu",)}), folder / "b", evaluate=True).record
    third = _table(folder / "3", [(n, "train") for n in range(4, 10)] + [(70, "test")])
    _run(_config(third, *one, start_from=str(folder / "b"), seed=3), folder / "c")
    return folder, child


def test_the_lineage_names_all_that_came_before(family):
    folder, child = family
    manifests = [read_manifest(locate_adapter(folder / name)) for name in "abc"]
    assert not manifests[0].lineage
    old, young = manifests[2].lineage
    assert manifests[1].lineage == (old,)
    assert old.adapter == child.start == read_start(_config("csv", start_from=str(folder / "a"))).digest != young.adapter
    assert (old.data, old.images, old.steps, old.epochs, old.seed) == ("csv", 4, 1, 1.0, 0)
    assert old.data_fingerprint == manifests[0].data["fingerprint"] != young.data_fingerprint
    assert young.learning_rate == manifests[2].training["learning_rate"] == 1e-3 != old.learning_rate
    assert old.versions == manifests[0].versions
    assert {m.prompt for m in manifests} == {"a scan of"}
    card = (locate_adapter(folder / "c") / "README.md").read_text()
    assert card.index(young.adapter[:16]) < card.index(old.adapter[:16])
    assert "1 steps (1 epochs) on 4 images of `csv`" in card


def test_a_childs_test_images_that_its_parent_has_seen_are_told(family, tmp_path, logged):
    folder, child = family
    assert (child.seen_in_training.images, child.seen_in_training.total) == (2, 3)
    assert "trained on 2 of these 3 images" in (locate_adapter(folder / "b") / "README.md").read_text()
    again = _config(f"csv:{folder / '2/t.csv'}", "data.on_leak=error", start_from=str(folder / "a"))
    with pytest.raises(DataError, match="trained on 2 of these 3 images"):
        _run(again, tmp_path / "out")
    every = _table(folder / "all", [(n, "test") for n in (*range(10), 50, 60, 70)])
    seen = [
        medgraft.evaluate(every, adapter=folder / name, metrics=("bleu",)).seen_in_training for name in "abc"
    ]  # the grandchild's own images cover its parent's, but not its grandparent's
    assert [(found.images, found.complete) for found in seen] == [(4, True), (8, True), (10, True)]
    tensors = medgraft.load_adapter(folder / "c").trained_on.tensors
    assert {name for name in tensors if "images" in name} == {
        "images.counts", "images.rest", "1.images.counts", "1.images.rest"
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain(blip_folder, tmp_path_factory):
    """PEFT's own folder, with LoRA in the text model alone."""
    torch.manual_seed(0)
    base = BlipForConditionalGeneration.from_pretrained(blip_folder)
    where = r"text_decoder.*\.(query|value)"
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=5, target_modules=where, init_lora_weights=False))
    folder = tmp_path_factory.mktemp("plain") / "theirs"
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_plain_peft_adapter_is_trained_further(quantization, plain, blip_folder, data, tmp_path):
    config = _config(data, f"strategy.quantization={quantization}", start_from=str(plain), backbone=f"blip:{blip_folder}")
    run = _run(config, tmp_path / "child")
    assert run.record.config.strategy == "peft:LORA"
    trained = _trained(run.backbone.model)
    assert len(trained) == len(load_file(plain / "adapter_model.safetensors"))
    assert all("text_decoder" in name and "lora_" in name for name in trained)
    assert run.record.features.seam == "vision"  # nothing below it is trained
    loaded = medgraft.load_adapter(tmp_path / "child")
    assert torch.equal(logits(loaded.backbone), logits(run.backbone))
    manifest = loaded.manifest
    assert manifest.strategy_settings.options == {"r": 2, "lora_alpha": 5, "init_lora_weights": False}
    assert (manifest.strategy_settings.vision.mode, manifest.strategy_settings.text.mode) == ("frozen", "adapter")
    assert manifest.lineage[0].data is None and "whose training is unknown" in str(manifest.lineage[0])
    seen = medgraft.evaluate(data, adapter=loaded, metrics=("bleu",)).seen_in_training
    assert not seen.complete and "started from an adapter that does not list its images" in str(seen)


def test_stored_features_are_shared_where_the_parent_left_the_weights(parent, data, tmp_path, plugins):
    folder, _ = parent("lora-decoder")
    uses = _run(_config(data, start_from=str(folder)), tmp_path / "child").record.features
    assert (uses.seam, uses.built) == ("vision", 0) and uses.found > 0
    folder, _ = parent("bitfit")
    uses = _run(_config(data, start_from=str(folder)), tmp_path / "other").record.features
    assert uses.seam is None and uses.reason == "part 'vision' is trained"


def test_stored_features_are_those_of_a_frozen_tower_that_another_training_changed(blip_folder, data, plugins):
    config = _config(data, backbone=f"blip:{blip_folder}", strategy="encoder-frozen")
    strategy = plugins.get("strategy", "encoder-frozen")

    def changed(base):
        with torch.no_grad():
            base.model.vision_model.post_layernorm.bias[3] += 1e-3
        return base.model

    keys = [prepare(config, plugins=plugins, strategy=strategy, attach=a).features.store.key for a in (None, changed)]
    assert keys[0]["prefix"] != keys[1]["prefix"]


def test_in_python_the_rate_and_the_settings_of_the_adapter_are_the_default(parent, data, blip_folder):
    folder, _ = parent("lora", "strategy.r=4", "train.learning_rate=0.0123")
    config = _config(data, start_from=str(folder))
    assert (config.backbone, config.strategy) == (f"blip:{blip_folder}", "lora")
    assert read_start(config).strategy.learning_rate == 0.0123
    assert read_start(config).strategy.options["r"] == 4
    same = _config(data, "strategy.r=4", "strategy.learning_rate=0.5", start_from=str(folder), strategy="lora")
    assert read_start(same).strategy.learning_rate == 0.5
    assert read_start(_config(data, backbone="blip", strategy="lora")) is None


def test_what_contradicts_the_adapter_is_refused_in_one_line(
    parent, plain, data, blip_folder, other_blip_folder, tmp_path, capsys
):
    folder = str(parent("lora")[0])
    (tmp_path / "none").mkdir()
    for name, settings in (("odd", {"peft_type": "PROMPT_TUNING"}), ("baseless", {"base_model_name_or_path": None})):
        shutil.copytree(plain, tmp_path / name)
        written = json.loads((plain / "adapter_config.json").read_text())
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(written | settings))
    shutil.copytree(plain, tmp_path / "bad")
    (tmp_path / "bad/adapter_config.json").write_text("[1")
    blip = ["--backbone", f"blip:{blip_folder}"]
    for words, message in (
        (["--from", str(tmp_path / "nowhere")], "There is no adapter folder"),
        (["--from", str(tmp_path / "none")], "is no medgraft adapter"),
        (["--from", folder, "--strategy", "qlora"], "was made with strategy lora, not qlora. Leave --strategy out"),
        (["--from", folder, "--set", "strategy.r=8"], "strategy.r=8 contradicts"),
        (["--from", folder, "--set", "strategy.vision=frozen"], "strategy.vision=frozen contradicts"),
        (["--from", folder, "--set", "strategy.quantization=nf4"], "strategy.quantization=nf4 contradicts"),
        (["--from", folder, "--backbone", f"blip:{other_blip_folder}"], "was trained on another base"),
        (["--from", str(tmp_path / "baseless")], "and does not say which base it is for. Add --backbone"),
        (["--from", str(plain), *blip, "--strategy", "lora"], "was made with strategy peft:LORA, not lora"),
        (["--from", str(plain), *blip, "--set", "strategy.r=8"], "strategy.r=8 contradicts"),
        (["--from", str(tmp_path / "odd"), *blip], "PROMPT_TUNING"),
        (["--from", str(tmp_path / "bad"), *blip], "adapter_config.json is not valid JSON"),
        (blip, "Name a backbone and a strategy (--backbone, --strategy), or an adapter to go on from (--from)"),
    ):
        assert main(["train", *words, "--data", data, "--out", str(tmp_path / "out"), "--max-images", "8"]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert message in said[-1] and said[-1].startswith("medgraft: "), said
    assert main(["train", "--from", folder, "--out", str(tmp_path / "out")]) == 2
    assert "Name the data to train on, with --data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_start_is_refused(parent, data, blip_folder, tmp_path):
    shutil.copytree(locate_adapter(parent("lora")[0]), tmp_path / "copy")
    weights = tmp_path / "copy/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(AdapterError, match="was altered or cut off"):
        _run(_config(data, start_from=str(tmp_path / "copy"), backbone=f"blip:{blip_folder}"), tmp_path / "out")
