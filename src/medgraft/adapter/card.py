"""The model card of an adapter, a README.md in the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from medgraft.adapter.base_name import hub_id
from medgraft.adapter.manifest import ADAPTER_INT8, ADAPTER_WEIGHTS, CHANGES, TENSORS, Manifest
from medgraft.adapter.serving import serving_section
from medgraft.plugin import KnownScores, PluginManager
from medgraft.training.chosen_weights import ChosenWeights


def card_text(manifest: Manifest, folder: Path, name: str) -> str:
    """The card of the package in `folder`: how it was trained, its scores, and how to use it from a folder called `name`."""
    training, settings = manifest.training, manifest.strategy_settings
    base, fingerprint = _base_title(manifest), manifest.base_fingerprint[:16]
    where = ", ".join(f"{part} {plan.mode}" for part, plan in settings.plans.items() if part in training["parts"])
    loaded = f"; base model in {settings.quantization}" if settings.quantization != "none" else ""
    return f"""---
{_metadata(manifest).to_yaml()}
---

# {manifest.strategy} on {base}

Made by medgraft {manifest.versions.get("medgraft")}. Not a medical device: captions are for research and may be wrong.

## How it was made

- Strategy `{manifest.strategy}`: {where}{loaded}.
- {training["trainable_parameters"]:,} trained parameters.
{_training(manifest)}{_lineage(manifest)}- Base {base}, with weights `{fingerprint}` (SHA-256); another base is refused.

{_scores(manifest)}{_forgetting(manifest.evaluation)}## Use

{_medgraft_recipe(manifest, name)}{_plain_recipe(manifest, name)}
{serving_section(folder, manifest, name)}"""


def _metadata(manifest: Manifest) -> ModelCardData:
    """What the hub indexes. No licence, as that of base and data is not known."""
    base, peft_reads_it = hub_id(manifest.backbone), manifest.strategy_settings.uses_adapter and not _compact(manifest)
    return ModelCardData(
        base_model=base, base_model_relation="adapter" if base else None,
        library_name="peft" if peft_reads_it else "medgraft",
        pipeline_tag="image-to-text", tags=["medgraft", "image-captioning", manifest.strategy],
    )  # fmt: skip


def _base_title(manifest: Manifest) -> str:
    name, _, source = manifest.backbone.partition(":")
    return hub_id(manifest.backbone) or (f"{name} from a folder `{_folder(source)}`" if source else name)


def _folder(source: str) -> str:
    return source.removeprefix("./")


def _scores(manifest: Manifest) -> str:
    if not manifest.metrics:
        return ""
    shown = KnownScores(PluginManager.from_environment()).shown(sorted(manifest.metrics))
    rows = "\n".join(f"| {name} | {manifest.metrics[name]:.4f} |" for name in shown)
    evaluation = manifest.evaluation
    scored = f"On {evaluation['images']} images of `{manifest.data['name']}`, split `{evaluation['split']}`:"
    seen = f" {evaluation['seen_in_training']}" if "seen_in_training" in evaluation else ""
    return f"## Scores\n\n{scored}{seen}\n\n| metric | value |\n|---|---|\n{rows}\n\n"


def _training(manifest: Manifest) -> str:
    """Lines on the training; empty for a package that was not trained, or of whose training nothing is known."""
    training, side = manifest.training, manifest.image_size
    if "steps" not in training:
        return ""
    several = ", ".join(f"{what} {rate:g}" for what, rate in training.get("learning_rates", {}).items())
    rates = f"{training['learning_rate']:g}{f' ({several})' if several else ''}"
    size = f"- Images of {side} pixels a side; transformers needs `interpolate_pos_encoding=True`.\n" if side else ""
    chosen = f"- {ChosenWeights(**training['chosen'])}\n" if training.get("chosen") else ""
    return f"""- {training["steps"]} steps, peak learning rate {rates}, seed {manifest.seed}.
- Data `{manifest.data["name"]}`: {training["images"]} training images.
- Training took {training["seconds"]:.0f} s on {training["hardware"]}.
{size}{chosen}"""


def _lineage(manifest: Manifest) -> str:
    """A line for each adapter that training went on from, the newest first, and one for those that this is made from."""
    made = f"- Made by {manifest.conversion}.\n" if manifest.conversion else ""
    return made + "".join(f"- Went on from {ancestor}.\n" for ancestor in reversed(manifest.lineage))


def _medgraft_recipe(manifest: Manifest, folder: str) -> str:
    name, _, source = manifest.backbone.partition(":")
    where, note = "", ""
    if source.startswith("./"):
        where = f', backbone="{name}:{_folder(source)}"'
        note = f"`{_folder(source)}` is the folder of the base: any folder with the weights named above.\n\n"
    return f"""{note}```python
import medgraft

adapter = medgraft.load_adapter("{folder}"{where})
print(medgraft.caption(["image.jpg"], adapter=adapter))
```
"""


def _plain_recipe(manifest: Manifest, folder: str) -> str:
    """How to use it without medgraft, if it can be; empty for a package of a version that did not note the model's class."""
    model_class, source = manifest.training.get("model_class"), manifest.backbone.partition(":")[2]
    if compact := _compact(manifest):
        alone = " Plain PEFT would load the LoRA alone." if ADAPTER_WEIGHTS in manifest.files else ""
        return f"\nOnly medgraft reads {' and '.join(f'`{name}`' for name in compact)}.{alone}\n"
    if model_class is None:
        return ""
    settings = manifest.strategy_settings
    imports, code, weights = [f"from transformers import {model_class}"], [], f'"{_folder(source)}"'
    if not source:  # the weights come with a plugin
        imports.append("import medgraft")
        code.append(f'weights = medgraft.load_backbone("{manifest.backbone}").source')
        weights = "weights"
    code.append(f'base = {model_class}.from_pretrained({weights}, dtype="float32")')
    if settings.uses_adapter:
        imports.append("from peft import PeftModel")
        code.append(f'model = PeftModel.from_pretrained(base, "{folder}")')
    if TENSORS in manifest.files:
        imports.append("from safetensors.torch import load_file")
        code.append(f'tensors = load_file("{folder}/{TENSORS}")')
        code.append("unexpected = base.load_state_dict(tensors, strict=False).unexpected_keys")
        code.append("assert not unexpected, unexpected")
    library = "PEFT" if settings.uses_adapter else "transformers"
    quantized = settings.quantization != "none"
    note = f" (values differ a little from those on a base in {settings.quantization})" if quantized else ""
    lines = "\n".join([*sorted(imports, key=lambda line: line.split()[1]), "", *code])
    return f"\nIn plain {library}{note}:\n\n```python\n{lines}\n```\n"


def _compact(manifest: Manifest) -> list[str]:
    """The files that only medgraft reads."""
    return sorted({ADAPTER_INT8, CHANGES} & manifest.files.keys())


def _forgetting(evaluation: Mapping[str, Any]) -> str:
    """What training cost on general images, if that was measured."""
    lost = evaluation.get("forgetting")
    if lost is None:
        return ""
    return (
        f"Forgetting: the loss on the base's own captions of general images changed by {lost:+.3f} nats per token. "
        "0 means that nothing was lost.\n\n"
    )
