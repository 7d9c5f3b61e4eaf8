"""The tutorial's side for Qwen2.5-VL: LoRA on its language model's attention, with liger-kernel where a job says so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

ATTENTION = r".*language_model\..*(q_proj|k_proj|v_proj|o_proj)"
PROMPT = "Describe this medical image in one sentence."


def load_qwen(job):
    """The model in bf16, as its tutorials load it, with an adapter in fp32."""
    dtype = torch.bfloat16 if job["bf16"] else torch.float32
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(job["model"], dtype=dtype)
    model.config.use_cache = False
    if job.get("liger"):
        _apply_liger(model)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=ATTENTION))


def _apply_liger(model):
    """liger-kernel's layers and its loss that never has all logits in memory.

    Version 0.8.5 reads an output class, and a field of another, that transformers 5.23 no longer has.
    """

    @dataclass
    class Output(CausalLMOutputWithPast):
        rope_deltas: torch.Tensor | None = None

    if not hasattr(modeling_qwen2_5_vl, "Qwen2_5_VLCausalLMOutputWithPast"):
        modeling_qwen2_5_vl.Qwen2_5_VLCausalLMOutputWithPast = Output
        modeling_qwen2_5_vl.BaseModelOutputWithPast.rope_deltas = None
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2_5_vl

    apply_liger_kernel_to_qwen2_5_vl(model=model)


class QwenCaptions(Dataset):
    """Images, padded to squares, and captions as a chat, processed when they are asked for."""

    def __init__(self, job, tokenizer):
        self.pairs, self.side, self.tokenizer = job["train"], job["side"], tokenizer
        size = {"shortest_edge": self.side**2, "longest_edge": self.side**2}
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(job["model"], size=size)
        tokens = (self.side // (self.processor.patch_size * self.processor.merge_size)) ** 2
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        chat = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        self.head = self._ids(chat.replace("<|image_pad|>", "<|image_pad|>" * tokens))
        self.image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def _ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        path, caption = self.pairs[index]
        square = ImageOps.pad(Image.open(path).convert("RGB"), (self.side, self.side), method=Image.Resampling.BICUBIC)
        image = self.processor([square], return_tensors="pt")
        ids = [*self.head, *self._ids(caption), self.tokenizer.eos_token_id]
        return {"pixel_values": image["pixel_values"], "image_grid_thw": image["image_grid_thw"], "ids": ids}

    def collate(self, rows):
        """Rows padded at the right; the caption and its end are labels."""
        longest = max(len(row["ids"]) for row in rows)
        padding = [longest - len(row["ids"]) for row in rows]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row["ids"] + [pad] * n for row, n in zip(rows, padding, strict=True)])
        mask = torch.tensor([[1] * (longest - n) + [0] * n for n in padding])
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : len(self.head)] = -100
        return {
            "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
            "image_grid_thw": torch.cat([row["image_grid_thw"] for row in rows]),
            "mm_token_type_ids": (ids == self.image_token).int(), "input_ids": ids, "attention_mask": mask, "labels": labels,
        }  # fmt: skip
