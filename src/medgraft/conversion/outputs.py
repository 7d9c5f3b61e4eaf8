"""What a model computes for some images, in fp32 and without kernels, to compare it with another form of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgraft import hardware
from medgraft.backbones import Backbone
from medgraft.config import DataConfig, GenerationConfig
from medgraft.data import load_data
from medgraft.inference import Inference
from medgraft.plugin import PluginManager
from medgraft.types import SPLITS, Example, own_prompts

_BATCH = 8


@dataclass(frozen=True)
class Outputs:
    """Captions, and the logits [N, V] that predict the tokens of the reference captions."""

    captions: tuple[str, ...]
    logits: tuple[torch.Tensor, ...]

    def largest_logit(self) -> float:
        """The largest absolute logit."""
        return max(float(logits.abs().max()) for logits in self.logits)

    def largest_difference(self, other: Outputs) -> float:
        """The largest absolute difference of a logit."""
        return max(float((a - b).abs().max()) for a, b in zip(self.logits, other.logits, strict=True))

    def changed_captions(self, other: Outputs) -> int:
        """How many captions differ."""
        return sum(a != b for a, b in zip(self.captions, other.captions, strict=True))


def sample_examples(data: DataConfig | None, images: int, *, plugins: PluginManager) -> Sequence[Example]:
    """`images` examples of the test split of `data`, or else phantoms."""
    if data is not None:
        wanted = data.model_copy(update={"max_images": images})
        return load_data(wanted, plugins=plugins, splits=("test",)).split("test")
    phantoms = load_data(DataConfig(name="phantoms", options={"count": images}), plugins=plugins)
    return phantoms.split(*SPLITS)


@torch.no_grad()
def outputs(backbone: Backbone, examples: Sequence[Example], prompt: str, generation: GenerationConfig) -> Outputs:
    """Caption `examples` and compute the logits of their first reference captions."""
    where = hardware.device()
    backbone.to_device()
    inference = Inference(backbone, prompt, batch_size=_BATCH)
    captions = inference.caption([example.images for example in examples], generation, [example.prompt for example in examples])
    logits = []
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        asked = own_prompts([example.prompt for example in batch], prompt)
        text = backbone.text_batch([example.captions[0] for example in batch], prompt=asked).to(where)
        for rows, features in inference.features_of([example.images for example in batch], asked):
            part = text.rows(rows)
            computed = backbone.decode(features, part)[1]  # [B, T, V]
            predicted = part.labels[:, backbone.logits_offset :] != -100
            logits.append(computed[:, : predicted.shape[1]][predicted].float().cpu())
    return Outputs(tuple(captions.captions), tuple(logits))
