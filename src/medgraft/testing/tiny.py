"""Small random models of each real architecture, in the format of `save_pretrained`, for offline trials and checks.

Their tokenizers cover every byte or character, so any text can be trained on; untrained, they generate random text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from medgraft.errors import UnknownNameError, suggestion
from medgraft.plugin import BackboneSpec, PluginManager

IMAGE_SIZE = 32
_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": IMAGE_SIZE,
    "patch_size": 8, "initializer_range": 0.02,
}  # fmt: skip
_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {key: value for key, value in _VISION.items() if key != "initializer_range"}
_BART = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "max_position_embeddings": 160,
}  # fmt: skip
_QFORMER = {**_TEXT, "encoder_hidden_size": 32, "cross_attention_frequency": 2, "max_position_embeddings": 64}


def byte_tokenizer(template: str = "$A", **special: str) -> Any:
    """A fast tokenizer with one token per byte. `special` are transformers' names, `template` is the post-processing template.

    Special tokens have the lowest ids, in the order given.
    """
    names = list(dict.fromkeys(special.values()))
    vocabulary = {token: i for i, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_template(tokenizer, vocabulary, template, special)


def character_tokenizer(template: str = "$A", **special: str) -> Any:
    """A fast, lower-casing tokenizer of BERT's kind, with one WordPiece token per character."""
    characters = [chr(code) for code in range(33, 127)]
    names = [*dict.fromkeys(special.values()), "[UNK]"]
    vocabulary = {token: i for i, token in enumerate([*names, *characters, *(f"##{c}" for c in characters)])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_template(tokenizer, vocabulary, template, special)


def _with_template(tokenizer: Tokenizer, vocabulary: dict[str, int], template: str, special: dict[str, str]) -> Any:
    used = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_pretrained(folder: Path, model: transformers.PreTrainedModel, tokenizer: Any, image_processor: Any) -> None:
    """Save model, tokenizer and image processor into `folder`."""
    for thing in (model, tokenizer, image_processor):
        thing.save_pretrained(folder)


save = save_pretrained  # the name until version 0.1, which plugins may import


def tiny_models(plugins: PluginManager, *, of_each: int | None = None) -> list[str]:
    """Names of tiny models, at most `of_each` of a backbone, whose first ones are those that differ most."""
    return [
        name for spec, _ in plugins.specs("backbone") if isinstance(spec, BackboneSpec) for name in list(spec.tiny)[:of_each]
    ]


def write_tiny_model(name: str, folder: Path, *, plugins: PluginManager | None = None) -> str:
    """Write the tiny model `name` of `medgraft tiny-models` into `folder`; returns its backbone as `NAME:FOLDER`."""
    specs = [
        spec for spec, _ in (plugins or PluginManager.from_environment()).specs("backbone") if isinstance(spec, BackboneSpec)
    ]
    for spec in specs:
        if name in spec.tiny:
            return f"{spec.name}:{spec.write_tiny(name, folder)}"
    known = [tiny for spec in specs for tiny in spec.tiny]
    raise UnknownNameError(f"Unknown tiny model {name!r}.{suggestion(name, known)} Known: {', '.join(known)}.")


def blip(folder: Path) -> None:
    """A BLIP with 2 layers of width 32."""
    tokenizer = character_tokenizer(
        "[CLS] $A [SEP]", pad_token="[PAD]", bos_token="[DEC]", sep_token="[SEP]", cls_token="[CLS]"
    )
    config = transformers.BlipConfig(
        text_config={
            **_TEXT, "encoder_hidden_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 160,
            "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0,
        },
        vision_config=_VISION,
    )  # fmt: skip
    torch.manual_seed(0)
    save_pretrained(folder, transformers.BlipForConditionalGeneration(config), tokenizer, _blip_images())


def blip2_opt(folder: Path) -> None:
    """A BLIP-2 with OPT, with 2 layers of width 32 in each part."""
    tokenizer = byte_tokenizer("</s> $A", pad_token="<pad>", eos_token="</s>", bos_token="</s>")
    end_of_line = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    text = transformers.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=192, pad_token_id=0, bos_token_id=1, eos_token_id=end_of_line,
    )  # fmt: skip
    _save_blip2(folder, transformers.Blip2Config, transformers.Blip2ForConditionalGeneration, text, tokenizer)


def blip2_t5(folder: Path) -> None:
    """A BLIP-2 with T5, with 2 layers of width 32 in each part."""
    text, tokenizer = _t5()
    _save_blip2(folder, transformers.Blip2Config, transformers.Blip2ForConditionalGeneration, text, tokenizer)


def instructblip_t5(folder: Path) -> None:
    """An InstructBLIP with T5, with 2 layers of width 32 in each part."""
    text, tokenizer = _t5()
    _save_instructblip(folder, text, tokenizer)


def instructblip_vicuna(folder: Path) -> None:
    """An InstructBLIP with Vicuna's architecture (LLaMA), with 2 layers of width 32 in each part."""
    tokenizer = byte_tokenizer("<s> $A", pad_token="<unk>", bos_token="<s>", eos_token="</s>")
    text = transformers.LlamaConfig(
        **_TEXT, vocab_size=len(tokenizer), max_position_embeddings=192, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    _save_instructblip(folder, text, tokenizer)


def vit_gpt2(folder: Path) -> None:
    """A ViT-GPT2 with 2 layers of width 32."""
    tokenizer = byte_tokenizer(eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>")
    decoder = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=160, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0
    )
    _save_encoder_decoder(folder, transformers.ViTConfig(**_VIT), decoder, tokenizer, start=0, end=0)


def deit_bert(folder: Path) -> None:
    """A DeiT of width 48 and a BERT of width 32, which need a projection between them."""
    decoder = transformers.BertConfig(**_TEXT, vocab_size=len(_bert_words()), max_position_embeddings=160)
    encoder = transformers.DeiTConfig(**{**_VIT, "hidden_size": 48})
    _save_encoder_decoder(folder, encoder, decoder, _bert_words(), start=1, end=2)


def dinov2_trocr(folder: Path) -> None:
    """A DINOv2 with register tokens, of width 48, and a TrOCR of width 32, whose configuration has the start token."""
    tokenizer = _bart_bytes()
    decoder = transformers.TrOCRConfig(**_BART, cross_attention_hidden_size=48, vocab_size=len(tokenizer))
    encoder = transformers.Dinov2WithRegistersConfig(
        **{**_VIT, "hidden_size": 48, "intermediate_size": None}, mlp_ratio=2, num_register_tokens=4
    )
    _save_encoder_decoder(folder, encoder, decoder, tokenizer)


def clip_bart(folder: Path) -> None:
    """A CLIP vision model and a BART decoder that begins captions with two tokens, 2 layers of width 32."""
    tokenizer = _bart_bytes()
    decoder = transformers.BartConfig(**_BART, vocab_size=len(tokenizer))
    _save_encoder_decoder(folder, transformers.CLIPVisionConfig(**_VIT), decoder, tokenizer, forced_bos_token_id=0)


def swin_roberta(folder: Path) -> None:
    """A Swin of two stages, which ends in 16 patches of width 32, and a RoBERTa, whose first positions are not used."""
    tokenizer = _bart_bytes()
    decoder = transformers.RobertaConfig(**_TEXT, vocab_size=len(tokenizer), max_position_embeddings=162)
    encoder = transformers.SwinConfig(
        image_size=IMAGE_SIZE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    _save_encoder_decoder(folder, encoder, decoder, tokenizer, start=0, end=2)


def beit_electra(folder: Path) -> None:
    """A BEiT with relative positions and an ELECTRA whose embeddings are narrower than its layers."""
    decoder = transformers.ElectraConfig(**_TEXT, embedding_size=16, vocab_size=len(_bert_words()), max_position_embeddings=160)
    encoder = transformers.BeitConfig(**_VIT, use_relative_position_bias=True)
    _save_encoder_decoder(folder, encoder, decoder, _bert_words(), start=1, end=2)


def _bert_words() -> Any:
    return character_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def _bart_bytes() -> Any:
    return byte_tokenizer(
        "<s> $A </s>", bos_token="<s>", pad_token="<pad>", eos_token="</s>", cls_token="<s>", sep_token="</s>"
    )


def _t5() -> tuple[transformers.PreTrainedConfig, Any]:
    tokenizer = byte_tokenizer("$A </s>", pad_token="<pad>", eos_token="</s>")
    config = transformers.T5Config(
        d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1,
        bos_token_id=1, decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return config, tokenizer


def _save_blip2(folder: Path, config_class: Any, model_class: Any, text: Any, tokenizer: Any, **qformer: int) -> None:
    config = config_class(
        vision_config=_VISION, qformer_config={**_QFORMER, **qformer}, text_config=text.to_dict(), num_query_tokens=4
    )
    torch.manual_seed(0)
    model = model_class(config)
    model.query_tokens.data.normal_(std=0.5)  # initialised to zeros, which would make all queries equal
    save_pretrained(folder, model, tokenizer, _blip_images())


def _save_instructblip(folder: Path, text: Any, tokenizer: Any) -> None:
    words = character_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    _save_blip2(
        folder, transformers.InstructBlipConfig, transformers.InstructBlipForConditionalGeneration, text, tokenizer,
        vocab_size=len(words),
    )  # fmt: skip
    words.save_pretrained(folder / "qformer_tokenizer")


def _save_encoder_decoder(
    folder: Path, encoder: Any, decoder: Any, tokenizer: Any, *, start: int | None = None, end: int | None = None, **forced: int
) -> None:
    """Save the model; `forced` are tokens that generation forces. `start` and `end` are left out if the decoder says them."""
    named = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, **{name: token for name, token in named.items() if token is not None}
    )
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.update(**forced)
    save_pretrained(
        folder, model, tokenizer, transformers.ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    )


def _blip_images() -> Any:
    return transformers.BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
