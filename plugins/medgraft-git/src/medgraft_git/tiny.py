"""A small random GIT, for trying and checking offline."""

from pathlib import Path

import torch
import transformers

from medgraft.plugin_api import character_tokenizer, save_pretrained


def git(folder: Path) -> None:
    """2 layers a part, width 32, 32 px."""
    tokenizer = character_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.GitConfig(
        **layers, vision_config={**layers, "image_size": 32, "patch_size": 8}, vocab_size=len(tokenizer),
        max_position_embeddings=160, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    save_pretrained(folder, transformers.GitForCausalLM(config), tokenizer, images)
