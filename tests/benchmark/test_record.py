"""Records: typed, of every version that was ever written, in one place for a single run."""

import json
from pathlib import Path

import pytest

from medgraft.benchmark import Record, read_record, read_records, write_record
from medgraft.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path
    for pattern in ("benchmarks/results/**/*.json", "adapters/*/record.json")
    for path in ROOT.glob(pattern)
    if '"run_id"' in path.read_text(encoding="utf-8")[:100]
)


def _lost(old, new, place=""):
    """What stands in `old` and not, or differently, in `new`."""
    if isinstance(old, dict):
        return [found for key, value in old.items() for found in _lost(value, new.get(key, "nothing"), f"{place}.{key}")]
    return [] if old == new else [f"{place}: {old} became {new}"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_records_that_ship_give_what_they_gave(path):
    old = json.loads(path.read_text(encoding="utf-8"))
    new = json.loads(read_record(path).model_dump_json())
    settings = old["config"]["train"]
    assert settings.pop("group_by_length", False) is False  # which never was on
    if "bf16" in settings:  # what it is called now
        assert new["config"]["train"]["dtype"] == {True: "bf16", False: "fp32"}.get(settings["bf16"], "auto")
        del settings["bf16"]
    assert not _lost(old, new) and new["schema_version"] == 2
    assert read_record(path).config.train.learning_rate == settings["learning_rate"]


def test_there_are_records_to_read():
    assert len(SHIPPED) > 40


@pytest.fixture
def old():
    return json.loads(SHIPPED[0].read_text(encoding="utf-8"))


def test_settings_that_are_no_more_part_records_where_they_were_on(old):
    plain = Record.model_validate(old)
    old["config"]["train"]["group_by_words"] = False
    assert Record.model_validate(old).settings == plain.settings
    old["config"]["train"]["group_by_words"] = True
    other = Record.model_validate(old)
    assert other.removed_settings == {"train.group_by_words": True} and other.settings != plain.settings
    assert Record.model_validate_json(other.model_dump_json()) == other


def test_a_record_of_a_newer_version_is_refused(old, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(old | {"schema_version": 3}))
    with pytest.raises(ConfigError, match="schema version 3, this medgraft reads up to 2; install a newer medgraft"):
        read_record(tmp_path / "r.json")


def test_a_single_run_has_its_record_in_its_folder(old, tmp_path):
    record = Record.model_validate(old)
    write_record(record, tmp_path, "record.json")
    (tmp_path / "medgraft.json").write_text("{}")
    assert read_records(tmp_path) == (record,)
