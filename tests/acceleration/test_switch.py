"""One switch: in a run's settings, in the environment, in records and packages."""

import json

import pytest

import medgraft
from medgraft.acceleration import KERNELS
from medgraft.adapter import locate_adapter
from medgraft.benchmark import execute
from medgraft.benchmark.recording import run_id
from medgraft.benchmark.suite import expand
from medgraft.config import RunConfig, SuiteConfig, run_config
from medgraft.errors import ConfigError
from medgraft.prepare import prepare, prepare_adapter
from medgraft.strategies import Strategy

GRID = {"name": "x", "backbones": ["blip:y"], "strategies": ["lora"], "data": ["roco:z"]}


def _config(*overrides, backbone="blip:x", data="roco:y"):
    return run_config(backbone=backbone, strategy="lora", data=data, max_images=4, overrides=overrides)


@pytest.mark.parametrize(
    ("text", "kernels"),
    [("none", "none"), ("auto", "auto"), ("sdpa", ("sdpa",)), ("sdpa, lora", ("sdpa", "lora")), ('["sdpa"]', ("sdpa",))],
)
def test_kernels_are_named_in_words_or_as_a_list(text, kernels):
    assert _config(f"acceleration.kernels={text}").acceleration.kernels == kernels


def test_a_suite_has_the_section_and_ids_do_not_depend_on_it():
    plain, other = (expand(SuiteConfig(**GRID, acceleration={"kernels": k}))[0] for k in ("auto", "none"))
    assert other.acceleration.kernels == "none"
    assert run_id(plain, None, "", "", {}) == run_id(other, None, "", "", {})


def test_a_misspelt_kernel_is_told_before_anything_is_loaded(plugins, monkeypatch):
    message = r"there is no kernel 'spda'. Did you mean 'sdpa'\? Known: auto, none, sdpa, .*packed_decoder"
    with pytest.raises(ConfigError, match=message):
        prepare(_config("acceleration.kernels=spda"), plugins=plugins, strategy=None)
    monkeypatch.setenv("MEDGRAFT_ACCELERATION", "spda")
    with pytest.raises(ConfigError, match=message):
        prepare(_config(), plugins=plugins, strategy=None)


@pytest.mark.parametrize(("named", "installed"), [(None, ["sdpa", "lora"]), ("none", []), ("sdpa", ["sdpa"])])
def test_what_was_installed_is_told_and_installed_again(
    named, installed, blip_folder, phantoms_folder, tmp_path, plugins, monkeypatch
):
    if named:
        monkeypatch.setenv("MEDGRAFT_ACCELERATION", named)
    config = _config(
        "acceleration.kernels=sdpa,lora", "train.max_steps=1", "train.per_device_train_batch_size=2", "train.bf16=false",
        backbone=f"blip:{blip_folder}", data=f"roco:{phantoms_folder}",
    )  # fmt: skip
    record = execute(config, tmp_path, plugins=plugins, evaluate=False, checkpoints=False).record
    assert list(record.acceleration) == installed
    path = locate_adapter(tmp_path) / "medgraft.json"
    manifest = json.loads(path.read_text())
    assert manifest["acceleration"] == installed
    assert list(medgraft.load_adapter(tmp_path).acceleration) == installed
    path.write_text(json.dumps(manifest | {"acceleration": [*installed, "of_another_version"]}))
    assert list(medgraft.load_adapter(tmp_path).acceleration) == installed
    if named is None:  # packages of earlier versions do not say: whatever applies
        del manifest["acceleration"]
        path.write_text(json.dumps(manifest))
        assert set(medgraft.load_adapter(tmp_path).acceleration) > set(installed)


def test_a_setting_that_is_gone_may_stand_in_old_files_as_it_was():
    values = _config().model_dump(mode="json")
    values["train"]["group_by_length"] = False
    assert RunConfig.model_validate(values) == _config()
    with pytest.raises(ConfigError, match="group_by_length was removed"):
        _config("train.group_by_length=true")


def test_kernels_have_one_name_each_and_say_what_they_do():
    names = [kernel.name for kernel in KERNELS]
    assert len(set(names)) == len(names) and all(kernel.summary for kernel in KERNELS)


@pytest.mark.parametrize(
    ("trained_with", "installed"),
    [
        ((), ()),
        (("sdpa", "gone"), ("sdpa",)),
        (("sdpa", "causal_loss", "graphed_decoding"), ("sdpa", "self_attention", "packed_decoder")),
    ],
    ids=["none", "one that is gone", "those of a GPU"],
)
def test_an_adapter_from_another_kind_of_device_has_the_kernels_of_this_one(trained_with, installed, blip_folder, plugins):
    *_, acceleration = prepare_adapter(
        f"blip:{blip_folder}", Strategy(), lambda base: base.model, plugins=plugins, trained_with=trained_with
    )
    assert acceleration.installed == installed
