"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500): BLIP-2 with a Q-Former that also reads the instruction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch

from medgraft.backbones import loading
from medgraft.backbones.blip2 import QFORMER_ANATOMY, Blip2Backbone
from medgraft.backbones.text_batch import padded
from medgraft.types import Prompts, Seam, prompt_of_each


class InstructBlipBackbone(Blip2Backbone):
    """InstructBLIP checkpoints, with Flan-T5 or Vicuna as language model; the instruction is the prompt.

    The bridge's output depends on the instruction, so stored features are valid for one prompt only.
    """

    # nothing reads the last layer's outputs for the instruction tokens
    anatomy = replace(QFORMER_ANATOMY, no_gradient=(r"qformer\.encoder\.layer\.\d+\.(intermediate|output)",))
    seams = (Seam("vision", ("vision",)), Seam("bridge", ("vision", "bridge"), depends_on_prompt=True))
    model_class = "InstructBlipForConditionalGeneration"
    model_types = ("instructblip",)
    default_prompt = "A short image description."
    qformer_tokenizer: Any

    @classmethod
    def from_model(cls, source: str, model: Any) -> Self:
        """See Backbone.from_model; also loads the Q-Former's own tokenizer into `qformer_tokenizer`."""
        backbone = super().from_model(source, model)
        backbone.qformer_tokenizer = loading.load_tokenizer(source, subfolder="qformer_tokenizer")
        return backbone

    def _query_outputs(self, queries: torch.Tensor, image: torch.Tensor, prompt: Prompts) -> torch.Tensor:
        prompts = prompt_of_each(prompt, image.shape[0])
        ids, mask = (each.to(image.device) for each in padded(self.qformer_tokenizer(list(prompts))["input_ids"], 0))  # [B, P]
        outputs: torch.Tensor = self.model.qformer(
            input_ids=ids,
            attention_mask=torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=image,
        ).last_hidden_state
        return outputs[:, : queries.shape[1]]
