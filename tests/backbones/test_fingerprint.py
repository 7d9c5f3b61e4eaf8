"""The fingerprint of a base is that of the tensors which from_pretrained loads, however they are stored."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from medgraft.backbones.checkpoint import checkpoint_files, read_checkpoint
from medgraft.backbones.fingerprint import fingerprint, loaded_digests
from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone as VitGpt2
from medgraft.backbones.weights import tensor_digest
from medgraft.errors import BackboneError
from medgraft.types import lies_in

_HEAD, _EMBEDDING = "decoder.lm_head.weight", "decoder.transformer.wte.weight"
_SINGLE, _SHARDS = "model.safetensors", "model.safetensors.index.json"
_BIN, _BIN_SHARDS = "pytorch_model.bin", "pytorch_model.bin.index.json"


def _write(folder, tensors, name=_SINGLE, **options):
    """Tensors as a single file or as two shards, by the name of the file or index."""
    if name.endswith(".index.json"):
        names, suffix = sorted(tensors), ".bin" if name == _BIN_SHARDS else ".safetensors"
        where = {tensor: f"part-{i % 2}{suffix}" for i, tensor in enumerate(names)}
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": where}))
        for shard in set(where.values()):
            _write(folder, {tensor: tensors[tensor] for tensor in names if where[tensor] == shard}, shard)
    elif name.endswith(".bin"):
        torch.save(tensors, folder / name, **options)
    else:
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / name, {"format": "pt"})


def _changed(tensors, name="decoder.transformer.ln_f.bias"):
    return {**tensors, name: tensors[name] + 1}


def _named(folder, tensors):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "own.safetensors"}))
    _write(folder, tensors, "own.safetensors")
    _write(folder, _changed(tensors))


def _each(*steps):
    return lambda folder, tensors: [step(folder, tensors) for step in steps]


def _as(name, change=lambda tensors: tensors, **options):
    return lambda folder, tensors: _write(folder, change(tensors), name, **options)


def _without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def _to(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _with(**more):
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


_BUFFERS = _with(
    decoder__transformer__h__0__attn__bias=torch.ones(1, 1, 4, 4, dtype=torch.uint8),
    decoder__transformer__h__0__attn__masked_bias=torch.tensor(-1e4),
    encoder__pooler__dense__weight=torch.ones(32, 32), unknown=torch.ones(2),
)  # fmt: skip

# (layout, how it is written, whether the weights are the same); a state dict has tied tensors under both names, and ViT's
# names of transformers 5, while save_pretrained writes one of them, and the names of transformers 4
LAYOUTS = [
    ("safetensors, tied twice, names of transformers 5", _as(_SINGLE), True),
    ("shards", _as(_SHARDS), True),
    ("bin", _as(_BIN), True),
    ("bin of torch before 1.6", _as(_BIN, _use_new_zipfile_serialization=False), True),
    ("bin shards", _as(_BIN_SHARDS), True),
    ("only the embedding of two tied", _as(_SINGLE, _without(_HEAD)), True),
    ("only the head of two tied", _as(_SINGLE, _without(_EMBEDDING)), True),
    ("old buffers, another pooler, a surplus tensor", _as(_BIN, _BUFFERS), True),
    ("fp64", _as(_SINGLE, _to(torch.float64)), True),
    ("a file that the configuration names, others beside it", _named, True),
    ("safetensors beside another bin", _each(_as(_SINGLE), _as(_BIN, _changed)), True),
    ("shards beside another bin", _each(_as(_SHARDS), _as(_BIN, _changed)), True),
    ("bin beside other bin shards", _each(_as(_BIN), _as(_BIN_SHARDS, _changed)), True),
    ("safetensors beside other shards", _each(_as(_SINGLE), _as(_SHARDS, _changed)), True),
    ("other shards beside the bin", _each(_as(_SHARDS, _changed), _as(_BIN)), False),
    ("one other number", _as(_SINGLE, _changed), False),
    ("two different tensors where others tie", _as(_SINGLE, lambda tensors: _changed(tensors, _HEAD)), False),
    ("bf16", _as(_SINGLE, _to(torch.bfloat16)), False),
    ("fp16", _as(_BIN, _to(torch.float16)), False),
]


@pytest.fixture(scope="module")
def vit_gpt2(tiny_folder):
    _, folder = tiny_folder("vit-gpt2")
    assert any(".encoder.layer." in f".{name}" for name in load_file(folder / _SINGLE)), "names of transformers 4"
    return folder, VitGpt2.load(str(folder)).model.state_dict()


def _same(one, other):
    names = [name for name in one if not lies_in(name, VitGpt2.anatomy.never_run)]
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize(("write", "same"), [row[1:] for row in LAYOUTS], ids=[row[0] for row in LAYOUTS])
def test_the_fingerprint_is_of_what_is_loaded(write, same, vit_gpt2, tmp_path):
    original, tensors = vit_gpt2
    folder = tmp_path / "base"
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns(_SINGLE))
    write(folder, tensors)
    loaded = VitGpt2.load(str(folder)).model.state_dict()
    digests = VitGpt2.checkpoint_digests(str(folder))
    assert {name: tensor_digest(loaded[name]) for name in digests} == {name: d.sha256 for name, d in digests.items()}
    known = {loaded[name].data_ptr() for name in digests}
    assert {name for name, tensor in loaded.items() if tensor.data_ptr() not in known} <= {
        "encoder.pooler.dense.weight", "encoder.pooler.dense.bias"
    }  # fmt: skip
    assert _same(loaded, tensors) == same
    assert (VitGpt2.fingerprint(str(folder)) == VitGpt2.fingerprint(str(original))) == same
    assert VitGpt2.former_fingerprint(str(folder)) != VitGpt2.former_fingerprint(str(original))


def test_tensors_that_are_converted_on_loading(tmp_path):
    config = transformers.NomicBertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=20
    )
    torch.manual_seed(0)
    model = transformers.NomicBertModel(config)
    model.save_pretrained(tmp_path / "fused")
    assert any("Wqkv" in name for name in load_file(tmp_path / "fused" / _SINGLE)), "query, key and value are one tensor"
    own = dict(model.state_dict())
    for folder in (tmp_path / "split", tmp_path / "fused"):
        folder.mkdir(exist_ok=True)
        if folder.name == "split":
            _write(folder, own)
        with torch.device("meta"):
            digests = loaded_digests(read_checkpoint(str(folder), config), transformers.NomicBertModel(config))
        assert {name: d.sha256 for name, d in digests.items()} == {name: tensor_digest(own[name]) for name in own}


def test_weights_that_are_stored_quantised_count_as_they_are(tiny_folder, tmp_path):
    """Scales have no place in the plain model, but they are weights."""
    _, folder = tiny_folder("vit-gpt2")
    shutil.copytree(folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    found = set()
    for scale in (1.0, 2.0):
        _write(tmp_path / "base", {"decoder.a.weight": torch.ones(2), "decoder.a.weight.absmax": torch.tensor(scale)})
        found.add(fingerprint(VitGpt2.checkpoint_digests(str(tmp_path / "base"))))
    assert len(found) == 2


def test_shards_that_are_missing_and_folders_without_weights(tmp_path):
    with pytest.raises(BackboneError, match=r"has no weights: none of model.safetensors, .* exists"):
        checkpoint_files(str(tmp_path), transformers.BlipConfig())
    _write(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)}, _SHARDS)
    assert [path.name for path in checkpoint_files(str(tmp_path), transformers.BlipConfig())] == [
        "part-0.safetensors",
        "part-1.safetensors",
    ]
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"is incomplete: model.safetensors.index.json lists part-1.safetensors"):
        checkpoint_files(str(tmp_path), transformers.BlipConfig())


def test_a_base_that_holds_an_adapter_is_refused(tiny_folder, tmp_path):
    _, folder = tiny_folder("vit-gpt2")
    shutil.copytree(folder, tmp_path / "base")
    (tmp_path / "base" / "adapter_config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"has an adapter_config.json: it holds an adapter. Name the base model"):
        VitGpt2.load(str(tmp_path / "base"))
