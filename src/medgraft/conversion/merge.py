"""Merge an adapter into its base: an ordinary transformers folder, proven equal by logits and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from medgraft.adapter import LoadedAdapter, load_adapter
from medgraft.adapter.base_name import public_base
from medgraft.adapter.locating import locate
from medgraft.adapter.manifest import CARD
from medgraft.backbones import Backbone, prompt_for
from medgraft.captioning import opened
from medgraft.config import DataConfig
from medgraft.conversion.merged_folder import Dtype, merged_card, plain_captions, write_merged
from medgraft.conversion.new_folder import new_folder
from medgraft.conversion.outputs import outputs, sample_examples
from medgraft.errors import AdapterError, ConfigError, first_line
from medgraft.plugin import PluginManager
from medgraft.strategies import logged_warnings
from medgraft.types import Example

FORMATS = ("transformers", "onnx", "gguf")
_EXPORTERS = {
    ("onnx", "vision-encoder-decoder"): "Optimum (`optimum-cli export onnx`)",
    ("gguf", "qwen2_vl"): "llama.cpp (`convert_hf_to_gguf.py`)",
    ("gguf", "qwen2_5_vl"): "llama.cpp (`convert_hf_to_gguf.py`)",
}
_TOLERANCE = 1e-3  # of the largest logit, for merging in fp32


@dataclass(frozen=True)
class Merged:
    """A merged folder and its proof: the adapter on its base against the folder loaded by plain transformers, in fp32.

    `logits_difference` is the largest absolute one, `largest_logit` the largest absolute logit. `plain_captions` counts the
    captions that the model's own `generate` gives without medgraft too; None if it needs a prompt or other inputs.
    """

    folder: str
    model_class: str
    dtype: str
    dequantized_from: str | None
    logits_difference: float
    largest_logit: float
    images: int
    changed_captions: int
    plain_captions: int | None
    bytes: int

    def __str__(self) -> str:
        base = f" The base was dequantised from {self.dequantized_from}." if self.dequantized_from else ""
        return (
            f"Adapter on base against this folder in plain transformers: logits differ by at most {self.logits_difference:.2g} "
            f"(the largest is {self.largest_logit:.3g}), {self.changed_captions} of {self.images} captions changed.{base}"
        )


@dataclass(frozen=True)
class MergeOptions:
    """`dtype` of the weights; `images` of `data` (its test split; phantoms if None) are captioned for the proof."""

    dtype: Dtype = "fp32"
    data: DataConfig | None = None
    images: int = 16
    format: str = "transformers"


def merge_adapter(
    adapter: str | Path,
    out: Path,
    *,
    plugins: PluginManager,
    backbone: str | None = None,
    options: MergeOptions = MergeOptions(),
) -> Merged:
    """Merge `adapter` into its base, write the result to the new folder `out`, load it again, and compare.

    A quantised base is dequantised first. AdapterError for a method that PEFT cannot merge, and, if nothing is rounded, for a
    folder that computes something else; `out` is not written then.
    """
    if options.images < 1:
        raise ConfigError(f"The comparison needs at least one image; {options.images} were asked for.")
    located = locate(adapter)
    with new_folder(out) as folder:
        loaded = load_adapter(located.folder, plugins=plugins, backbone=backbone, plain=True)
        _check_format(options.format, loaded.backbone)
        examples = sample_examples(options.data, options.images, plugins=plugins)
        prompt, generation = prompt_for(loaded.backbone, loaded.prompt), loaded.generation
        before = outputs(loaded.backbone, examples, prompt, generation.single())
        quantization = _quantization(loaded)
        if quantization:
            del loaded
            loaded = load_adapter(located.folder, plugins=plugins, backbone=backbone, plain="dequantized")
        merge_into_base(loaded)
        write_merged(loaded.backbone, folder, options.dtype, generation, prompt)
        again = type(loaded.backbone).load(str(folder))
        after = outputs(again, examples, prompt, generation.single())
        alone = _equal_alone(again, examples, after.captions) if not prompt else None
        merged = Merged(
            str(out), type(again.model).__name__, options.dtype, quantization, before.largest_difference(after),
            before.largest_logit(), len(examples), before.changed_captions(after), alone,
            sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        )  # fmt: skip
        _check(merged, located.name)
        described = loaded.manifest.strategy if loaded.manifest else Path(located.name).name
        card = merged_card(out.name, public_base(loaded.base), described, f"{merged}", plain=alone == len(examples))
        (folder / CARD).write_text(card, encoding="utf-8")
    return merged


def merge_into_base(loaded: LoadedAdapter) -> None:
    """Merge what PEFT added into the weights of the base, in place; AdapterError for a method that cannot be merged."""
    model: Any = loaded.model
    if not isinstance(model, PeftModel):
        return
    method = " and ".join(sorted({config.peft_type.value for config in model.peft_config.values()}))
    try:
        with logged_warnings("tie_word_embeddings"):  # the comparison shows what it does
            loaded.backbone.model = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError, TypeError, RuntimeError) as error:  # of PEFT's methods
        raise AdapterError(f"PEFT cannot merge {method}: {first_line(error)} Use the adapter unmerged.") from error
    if left := [name for name, module in loaded.backbone.model.named_modules() if isinstance(module, BaseTunerLayer)]:
        raise AdapterError(f"PEFT did not merge {method} in {len(left)} modules, such as {left[0]}. Use the adapter unmerged.")


def _check_format(wanted: str, backbone: Backbone) -> None:
    if wanted == "transformers":
        return
    kind = backbone.config.model_type
    exporter = _EXPORTERS.get((wanted, kind))
    advice = f"merge without --format, and give the folder to {exporter}" if exporter else "no well-kept exporter is known"
    raise AdapterError(f"medgraft writes transformers folders, and no {wanted} for {kind}: {advice}.")


def _quantization(loaded: LoadedAdapter) -> str | None:
    wanted = loaded.manifest.strategy_settings.quantization if loaded.manifest else "none"
    return None if wanted == "none" else wanted


def _equal_alone(backbone: Backbone, examples: Sequence[Example], captions: Sequence[str]) -> int | None:
    """How many captions the model's own `generate` gives too, except for spaces."""
    several = any(example.more_images for example in examples)  # which the plain model does not put side by side
    if several or type(backbone).pixel_values is not Backbone.pixel_values:  # or the plain image processor not prepare
        return None
    texts: list[str] = []
    for example in examples:
        found = plain_captions(backbone, backbone.pixel_values([opened(example.image)]).to(backbone.model.device))
        if found is None:
            return None
        texts += found
    return sum("".join(a.split()) == "".join(b.split()) for a, b in zip(texts, captions, strict=True))


def _check(merged: Merged, adapter: str) -> None:
    exact = merged.dtype == "fp32" and merged.dequantized_from is None
    limit = _TOLERANCE * max(merged.largest_logit, 1.0)
    difference = torch.tensor(merged.logits_difference)
    if not torch.isfinite(difference) or (exact and merged.logits_difference > limit):
        raise AdapterError(
            f"{adapter} cannot be merged exactly: logits change by {merged.logits_difference:.2g}, more than rounding. "
            "Nothing was written; use the adapter unmerged."
        )
