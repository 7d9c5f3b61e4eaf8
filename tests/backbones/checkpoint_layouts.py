"""Writes tiny checkpoints in the layouts of published ones: their files, the names of their tensors, keys of their settings.

Each writer takes a folder of `medgraft tiny-models`, as transformers 5 saves it, and an empty folder. The weights stay the
same, so whatever is computed from the layout has to be what the tiny model computes.

    python tests/backbones/checkpoint_layouts.py OUT      writes all of them
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


class Layout(NamedTuple):
    """A published checkpoint whose layout is written, the tiny model whose weights it gets, and the writer."""

    like: str
    tiny: str
    write: Callable[[Path, Path], None]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def write_json(folder: Path, name: str, values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


def write_weights(folder: Path, tensors: Tensors, kind: str, shards: int = 1, **options: Any) -> None:
    """`kind` is bin or safetensors; with `shards`, as many files and an index, by names as on the hub."""
    stem = "pytorch_model" if kind == "bin" else "model"
    names = [f"{stem}.{kind}"] if shards == 1 else [f"{stem}-{i + 1:05d}-of-{shards:05d}.{kind}" for i in range(shards)]
    where = {name: names[i * shards // len(tensors)] for i, name in enumerate(sorted(tensors))}
    for file in names:
        own = {name: tensors[name].contiguous().clone() for name in where if where[name] == file}
        if kind == "bin":
            torch.save(own, folder / file, **options)
        else:
            save_file(own, folder / file, {"format": "pt"})
    if shards > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder, f"{stem}.{kind}.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def word_list(tiny: Path, folder: Path, **special: str) -> None:
    """BERT's slow tokenizer alone: vocab.txt, and the settings that BertTokenizer wrote in 2022."""
    vocabulary = read_json(tiny, "tokenizer.json")["model"]["vocab"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", encoding="utf-8")
    names = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    settings = {
        "do_basic_tokenize": True, "do_lower_case": True, "never_split": None, "strip_accents": None, "model_max_length": 512,
        "special_tokens_map_file": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
    }  # fmt: skip
    write_json(folder, "tokenizer_config.json", {**settings, **names, **special})
    write_json(folder, "special_tokens_map.json", names)


def merges(tiny: Path, folder: Path, kind: str, **settings: Any) -> None:
    """GPT-2's slow tokenizer alone: vocab.json and merges.txt; special tokens as dictionaries, as in 2022."""
    tokenizer = read_json(tiny, "tokenizer.json")["model"]
    write_json(folder, "vocab.json", tokenizer["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = read_json(tiny, "tokenizer_config.json")
    form = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: {**form, "content": token} for name, token in own.items() if name.endswith("_token")}
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": kind, "errors": "replace", **special, **settings})


def image_processor(tiny: Path, folder: Path, **changes: Any) -> None:
    """The tiny model's preprocessor_config.json without the keys that are None in `changes`, and with the others."""
    values = {**read_json(tiny, "preprocessor_config.json"), **changes}
    write_json(folder, "preprocessor_config.json", {key: value for key, value in values.items() if value is not None})


def config_of_4(tiny: Path, version: str | None, dtype: str = "float32", **changes: Any) -> dict[str, Any]:
    """The tiny model's config.json with the keys of transformers 4: torch_dtype, and all of 2022's defaults in each part."""
    values = {
        key: value for key, value in read_json(tiny, "config.json").items() if key not in ("dtype", "transformers_version")
    }
    parts = {key: {**_DEFAULTS, **value, "torch_dtype": None} for key, value in values.items() if isinstance(value, dict)}
    for part in parts.values():
        part.pop("dtype", None)
    return {**values, **parts, "torch_dtype": dtype, "transformers_version": version, **changes}


_DEFAULTS = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "finetuning_task": None, "forced_bos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
    "return_dict": True, "return_dict_in_generate": False, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False, "tokenizer_class": None, "top_k": 50,
    "top_p": 1.0, "torchscript": False, "transformers_version": "4.26.0.dev0", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


def _blip(tiny: Path, folder: Path) -> None:
    changes = {"_commit_hash": None, "text_config_dict": None, "vision_config_dict": None}
    config = config_of_4(tiny, None, **changes)
    config["text_config"] |= {"is_decoder": True, "model_type": "blip_text_model", "projection_dim": 32}
    write_json(folder, "config.json", config)
    tensors = load_file(tiny / "model.safetensors")
    words = tensors["text_decoder.bert.embeddings.word_embeddings.weight"]
    positions = len(tensors["text_decoder.bert.embeddings.position_embeddings.weight"])
    tensors["text_decoder.bert.embeddings.position_ids"] = torch.arange(positions)[None]
    tensors["text_decoder.cls.predictions.decoder.weight"] = words
    tensors["text_decoder.cls.predictions.decoder.bias"] = tensors["text_decoder.cls.predictions.bias"]
    write_weights(folder, tensors, "bin")
    image_processor(tiny, folder, processor_class="BlipProcessor")
    word_list(tiny, folder, processor_class="BlipProcessor")


def _git(tiny: Path, folder: Path) -> None:
    write_json(folder, "config.json", config_of_4(tiny, "4.26.0.dev0"))
    tensors = load_file(tiny / "model.safetensors")
    for name in ("git.embeddings", "git.image_encoder.vision_model.embeddings"):
        count = len(
            tensors[f"{name}.position_embeddings.weight" if name == "git.embeddings" else f"{name}.position_embedding.weight"]
        )
        tensors[f"{name}.position_ids"] = torch.arange(count)[None]
    write_weights(folder, tensors, "bin")
    image_processor(
        tiny, folder, image_processor_type=None, do_rescale=None, rescale_factor=None, do_convert_rgb=None,
        feature_extractor_type="CLIPFeatureExtractor", size=32, crop_size=32,
    )  # fmt: skip
    word_list(tiny, folder)


def _vit_gpt2(tiny: Path, folder: Path) -> None:
    config = config_of_4(tiny, "4.15.0")
    config["decoder"]["task_specific_params"] = {"text-generation": {"do_sample": True, "max_length": 50}}
    write_json(folder, "config.json", config)
    tensors = load_file(tiny / "model.safetensors")
    places = len(tensors["decoder.transformer.wpe.weight"])
    for layer in range(2):
        for name in ("attn", "crossattention"):
            causal = torch.ones(places, places, dtype=torch.uint8).tril()[None, None]
            tensors[f"decoder.transformer.h.{layer}.{name}.bias"] = causal
            tensors[f"decoder.transformer.h.{layer}.{name}.masked_bias"] = torch.tensor(-1e4)
    tensors["decoder.lm_head.weight"] = tensors["decoder.transformer.wte.weight"]
    write_weights(folder, tensors, "bin", _use_new_zipfile_serialization=False)
    image_processor(
        tiny, folder, image_processor_type=None, do_rescale=None, rescale_factor=None, do_convert_rgb=None,
        feature_extractor_type="ViTFeatureExtractor", size=32, resample=2,
    )  # fmt: skip
    merges(tiny, folder, "GPT2Tokenizer", add_prefix_space=False, model_max_length=1024)


def _blip2(tiny: Path, folder: Path) -> None:
    write_json(folder, "config.json", config_of_4(tiny, "4.27.0.dev0", text_config_dict=None, vision_config_dict=None))
    tensors = load_file(tiny / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.decoder.embed_tokens.weight"]
    write_weights(folder, tensors, "bin", shards=2)
    image_processor(tiny, folder, processor_class="Blip2Processor", image_processor_type="BlipImageProcessor")
    merges(tiny, folder, "GPT2Tokenizer", add_bos_token=True, processor_class="Blip2Processor")


def _instructblip(tiny: Path, folder: Path) -> None:
    write_json(folder, "config.json", config_of_4(tiny, None, qformer_config_dict=None))
    write_weights(folder, load_file(tiny / "model.safetensors"), "safetensors", shards=3)
    image_processor(tiny, folder, processor_class="InstructBlipProcessor")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    word_list(tiny / "qformer_tokenizer", folder / "qformer_tokenizer", truncation_side="left")


def _qwen(tiny: Path, folder: Path) -> None:
    config = config_of_4(tiny, "4.41.2")
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    own = {key: value for key, value in text.items() if key not in _DEFAULTS and key not in ("model_type", "torch_dtype")}
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["vision_config"] = {key: value for key, value in config["vision_config"].items() if key not in _DEFAULTS}
    config["vision_config"].pop("torch_dtype")
    write_json(folder, "config.json", {**config, **own, "rope_theta": rope["rope_theta"], "rope_scaling": scaling})
    write_weights(folder, load_file(tiny / "model.safetensors"), "safetensors", shards=2)
    size = read_json(tiny, "preprocessor_config.json")["size"]
    image_processor(
        tiny, folder, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"], size=None, resample=None,
        do_convert_rgb=None, processor_class="Qwen2VLProcessor",
    )  # fmt: skip
    write_json(folder, "chat_template.json", {"chat_template": (tiny / "chat_template.jinja").read_text(encoding="utf-8")})
    merges(tiny, folder, "Qwen2Tokenizer", add_prefix_space=False)


LAYOUTS = (
    Layout("Salesforce/blip-image-captioning-base of 2022", "blip", _blip),
    Layout("microsoft/git-base-coco of 2023", "git", _git),
    Layout("nlpconnect/vit-gpt2-image-captioning", "vit-gpt2", _vit_gpt2),
    Layout("Salesforce/blip2-opt-2.7b of 2023", "blip2-opt", _blip2),
    Layout("Salesforce/instructblip-vicuna-7b of 2023", "instructblip-vicuna", _instructblip),
    Layout("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl", _qwen),
)


def main(out: Path) -> None:
    from medgraft.testing.tiny import write_tiny_model

    for layout in LAYOUTS:
        tiny = out / "tiny" / layout.tiny
        write_tiny_model(layout.tiny, tiny)
        folder = out / layout.like.split()[0]
        folder.mkdir(parents=True)
        layout.write(tiny, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
