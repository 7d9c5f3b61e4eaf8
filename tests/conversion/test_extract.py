"""Low-rank packages: they compute what they should, plain PEFT loads what it can, and sizes are as told."""

import json

import pytest
import torch
import transformers
from changed import PLUGINS, changed_adapter, computed
from peft import PeftModel
from safetensors.torch import load_file

from medgraft.adapter import read_manifest
from medgraft.adapter.compact import dequantized, quantized_to_int8
from medgraft.cli.main import main
from medgraft.config import DataConfig
from medgraft.conversion import ExtractOptions, extract_adapter
from medgraft.conversion.low_rank import low_rank, low_rank_table
from medgraft.conversion.outputs import sample_examples
from medgraft.errors import AdapterError, ConfigError

NO_DATA = DataConfig(name="phantoms", options={"count": 40})


@pytest.fixture(scope="module")
def examples():
    return sample_examples(None, 3, plugins=PLUGINS)


def _extract(adapter, out, **options):
    return extract_adapter(adapter, out, plugins=PLUGINS, options=ExtractOptions(data=NO_DATA, images=3, **options))


def _name(tiny_folder, name):
    kind, folder = tiny_folder(name)
    return f"{kind}:{folder}"


@pytest.mark.parametrize(
    ("name", "strategy", "dtype"),
    [
        *(("blip", "full", dtype) for dtype in ("fp32", "bf16", "int8")),
        ("blip", "bitfit", "bf16"),
        ("blip", "lora", "fp32"),
        ("blip", "dora", "fp32"),
        ("blip", "qlora", "int8"),
        ("blip", "lora-int8", "bf16"),
        ("vit-gpt2", "full", "int8"),
        ("vit-gpt2", "lora", "fp32"),
        ("vit-gpt2", "qlora", "bf16"),
    ],
)
def test_all_of_the_energy_is_the_same_adapter_but_for_rounding(name, strategy, dtype, tiny_folder, tmp_path, examples):
    adapter = changed_adapter(_name(tiny_folder, name), strategy, tmp_path / "adapter")
    found = _extract(adapter, tmp_path / "small", keep=1.0, dtype=dtype)
    expected, got = computed(adapter, examples), computed(tmp_path / "small", examples)
    rounding = {"fp32": 1e-5, "bf16": 1e-2, "int8": 5e-2}[dtype]
    assert expected.largest_difference(got) < rounding * expected.largest_logit()
    assert found.after.loss == pytest.approx(found.before.loss, rel=rounding) and found.images == 3
    assert (found.low_rank > 0) == ("lora" in strategy) and (dtype != "fp32" or found.bytes <= 1.2 * found.bytes_before)


def test_lower_rank_is_smaller_and_further_away(tiny_folder, tmp_path, examples):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "full", tmp_path / "adapter")
    sizes = [_extract(adapter, tmp_path / f"{rank}", rank=rank).bytes for rank in (1, 4, 16)]
    away = [computed(adapter, examples).largest_difference(computed(tmp_path / f"{rank}", examples)) for rank in (1, 16)]
    assert sizes == sorted(sizes) and away[1] < away[0]
    assert _extract(adapter, tmp_path / "int8", rank=4, dtype="int8").bytes < 0.7 * sizes[1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_plain_peft_loads_linear_layers_alone(dtype, tiny_folder, tmp_path, examples):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "full", tmp_path / "adapter")
    found = _extract(adapter, tmp_path / "small", keep=0.7, dtype=dtype, linear_only=True)
    assert found.dropped and 0 < found.dropped_energy < 1 and found.ranks[0] < found.ranks[1]
    card = (tmp_path / "small/README.md").read_text()
    assert "PeftModel.from_pretrained" in card and f"{found.dropped} tensors outside linear layers were dropped" in card
    base = transformers.BlipForConditionalGeneration.from_pretrained(tiny_folder("blip")[1])
    plain = PeftModel.from_pretrained(base, tmp_path / "small").merge_and_unload()
    trained = load_file(adapter / "trained_tensors.safetensors")
    untouched = transformers.BlipForConditionalGeneration.from_pretrained(tiny_folder("blip")[1]).state_dict()
    for name, module in plain.named_modules():
        key = f"{name}.weight"
        if isinstance(module, torch.nn.Linear) and key in trained and "predictions.decoder" not in key:
            change = trained[key] - untouched[key]
            lost = float((trained[key] - module.weight).square().sum() / change.square().sum())
            assert lost < 0.31, key
            assert lost > 0.1, key


def test_what_plain_peft_would_load_wrongly_it_does_not_find(tiny_folder, tmp_path):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "lora", tmp_path / "adapter")
    _extract(adapter, tmp_path / "small", dtype="int8")
    assert "Only medgraft loads it" in (tmp_path / "small/README.md").read_text()
    base = transformers.BlipForConditionalGeneration.from_pretrained(tiny_folder("blip")[1])
    with pytest.raises((ValueError, OSError)):
        PeftModel.from_pretrained(base, tmp_path / "small")


def test_the_manifest_says_what_it_was_made_of(tiny_folder, tmp_path, examples):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "encoder-frozen", tmp_path / "adapter", examples=examples)
    _extract(adapter, tmp_path / "small", rank=2)
    source, made = read_manifest(adapter), read_manifest(tmp_path / "small")
    assert made.strategy == "encoder-frozen-low-rank" and made.metrics == {} and made.strategy_settings.method == "LORA"
    assert made.training["extracted"]["files"] == {name: entry.sha256 for name, entry in source.files.items()}
    assert made.training["extracted"]["rank"] == 2 and "trained_on.safetensors" in made.files


@pytest.mark.parametrize(("shape", "keep", "rank"), [((4, 4), 0.75, 3), ((4, 4), 1.0, 4), ((4, 4), 0.2, 1), ((6, 4), 0.5, 2)])
def test_the_rank_is_the_lowest_that_keeps_the_energy(shape, keep, rank):
    matrix = torch.zeros(shape)
    matrix.fill_diagonal_(3.0)  # four equal singular values
    found = low_rank(matrix, None, keep)
    assert found.rank == rank
    assert float((found.left @ found.right).square().sum() / matrix.square().sum()) == pytest.approx(rank / 4)


def test_rows_that_go_their_own_way_are_stored_whole():
    random = torch.Generator().manual_seed(0)
    table = torch.randn(1, 16, generator=random).repeat(200, 1) + 0.1 * torch.randn(200, 16, generator=random)
    table[[7, 150]] = torch.randn(2, 16, generator=random)
    table[9] = 0
    found = low_rank_table(table, None, 0.9)
    assert found.rank == 1 and found.rows.tolist() == [7, 150] and torch.equal(found.values, table[[7, 150]])
    approximate = found.left @ found.right
    approximate[found.rows.long()] = found.values
    lost = (approximate - table).square().sum(1) / table.square().sum(1).clamp_min(1e-30)
    assert (lost[torch.arange(200) != 9] < 0.1).all() and found.numel < 0.1 * table.numel()


def test_rounding_to_int8_is_within_half_a_step_of_each_row_or_column():
    matrix = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    for tensor in (matrix, matrix.T.contiguous(), torch.zeros(3, 4)):
        found = dequantized(quantized_to_int8({"x": tensor}))["x"]
        step = tensor.abs().amax(1 if tensor.shape[0] <= tensor.shape[1] else 0, keepdim=True) / 127
        assert ((found - tensor).abs() <= step * 0.51).all()
    with pytest.raises(AdapterError, match="has no scale for each row or column"):
        dequantized({"x": torch.zeros(2, 3, dtype=torch.int8)})


def test_mistakes_are_one_line(tiny_folder, tmp_path, capsys):
    adapter = changed_adapter(_name(tiny_folder, "blip"), "bitfit", tmp_path / "adapter")
    with pytest.raises(AdapterError, match="changes nothing in linear layers"):
        _extract(adapter, tmp_path / "small", linear_only=True)
    with pytest.raises(ConfigError, match="a rank is 1 or more"):
        _extract(adapter, tmp_path / "small", keep=1.5)
    words = ["adapter", "-q", "extract", str(adapter), "--out", str(tmp_path / "small"), "--json"]
    assert main(words) == 0  # the manifest names data that are not there
    output = capsys.readouterr()
    assert json.loads(output.out)["before"] is None and "Name the data with --data" in output.err
