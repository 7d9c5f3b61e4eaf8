"""The model card of an adapter, a README.md in the format of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from medgraft.adapter.manifest import Manifest
from medgraft.config import CONTROLS

_USE_PEFT = """
It is an ordinary PEFT adapter as well:

```python
from peft import PeftModel
model = PeftModel.from_pretrained(base_model, "{folder}")
```
"""


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md: how the adapter was trained, its scores, and how to use it."""
    training, evaluation = manifest.training, manifest.evaluation
    settings = manifest.strategy_settings
    shown = {name: value for name, value in sorted(manifest.metrics.items()) if not name.endswith(CONTROLS)}
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in shown.items())
    scored = (
        f"On {evaluation['images']} images of `{manifest.data['name']}`, split `{evaluation['split']}`:"
        if manifest.metrics
        else ""
    )
    table = f"## Scores\n\n{scored}\n\n| metric | value |\n|---|---|\n{rows}\n\n" if manifest.metrics else ""
    where = ", ".join(f"{part} {plan.mode}" for part, plan in settings.plans.items() if part in training["parts"])
    base = f"; base model in {settings.quantization}" if settings.quantization != "none" else ""
    plain = (
        _USE_PEFT.format(folder=folder.name)
        if "adapter_model.safetensors" in manifest.files and not training["in_place"]
        else ""
    )
    text = f"""---
library_name: {"peft" if settings.uses_adapter else "medgraft"}
base_model: {manifest.backbone.partition(":")[2] or manifest.backbone}
tags: [medgraft, image-captioning, {manifest.strategy}]
---

# {manifest.strategy} on {manifest.backbone}

Made by medgraft {manifest.versions.get("medgraft")}. Not a medical device: captions are for research and may be wrong.

## How it was made

- Strategy `{manifest.strategy}`: {where}{base}.
- {training["trainable_parameters"]:,} trained parameters, {training["steps"]} steps.
- Peak learning rate {training["learning_rate"]:g}, seed {manifest.seed}.
- Data `{manifest.data["name"]}`: {training["images"]} training images.
- Training took {training["seconds"]:.0f} s on {training["hardware"]}.
- Base weights `{manifest.base_fingerprint[:16]}` (SHA-256 over all tensors); another base is refused.
{training.get("note", "")}
{table}## Use

```python
import medgraft
adapter = medgraft.load_adapter("{folder.name}")
print(medgraft.caption(["image.jpg"], adapter=adapter))
```
{plain}"""
    (folder / "README.md").write_text(text, encoding="utf-8")
