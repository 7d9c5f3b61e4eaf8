"""The folder of a merged model: what transformers needs to load it, and a card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import torch
from huggingface_hub import ModelCardData
from transformers import AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, PreTrainedModel
from transformers.utils import cached_file

from medgraft.adapter.base_name import hub_id
from medgraft.backbones import Backbone
from medgraft.config import GenerationConfig
from medgraft.errors import AdapterError
from medgraft.generation_config import SAMPLING

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_RECIPE = """
Plain transformers gives the same captions:

```python
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, {loader}

folder = "{folder}"
model = {loader}.from_pretrained(folder, dtype="float32")
processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
tokenizer = AutoTokenizer.from_pretrained(folder)
pixels = processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")["pixel_values"]
ids = model.generate(pixel_values=pixels, generation_config=model.generation_config)
print(tokenizer.batch_decode(ids, skip_special_tokens=True)[0])
```
"""
_NO_RECIPE = """
`transformers.{loader}.from_pretrained("{folder}")` loads it. Its captions there depend on how image and prompt are put
together; medgraft's command above does it as in training.
"""


def write_merged(backbone: Backbone, folder: Path, dtype: Dtype, generation: GenerationConfig, prompt: str) -> None:
    """Write model, tokenizer, image processor, configuration and generation settings; AdapterError if a weight is too large."""
    model: Any = backbone.model.to("cpu").to(DTYPES[dtype])
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{name} has values that {dtype} cannot hold. Merge into bf16 or fp32.")
    decoding = backbone.generation_inputs(1, torch.device("cpu"), prompt, generation)[1]
    model.generation_config.update(**decoding.to_diff_dict())
    model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    backbone.image_processor.save_pretrained(folder)
    if tokenizer := getattr(backbone, "qformer_tokenizer", None):  # of InstructBLIP
        tokenizer.save_pretrained(folder / "qformer_tokenizer")
    for name in ("processor_config.json", "chat_template.json"):
        found = cached_file(
            backbone.source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if found and not (folder / name).exists():
            copyfile(found, folder / name)
            if name == "processor_config.json":
                _set_image_size(folder / name, backbone)


def _set_image_size(path: Path, backbone: Backbone) -> None:
    """Write the backbone's image size into a processor's settings, which transformers prefers to preprocessor_config.json."""
    content, own = json.loads(path.read_text(encoding="utf-8")), backbone.image_settings()
    if isinstance(images := content.get("image_processor"), dict):
        images |= {key: own[key] for key in ("size", "crop_size") if own.get(key)}
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def plain_captions(backbone: Backbone, pixel_values: torch.Tensor) -> list[str] | None:
    """What the model's own `generate` makes of pixel values alone, without sampling; None for models that need more."""
    model = backbone.model
    decoding = copy.deepcopy(model.generation_config)
    decoding.update(num_return_sequences=1, do_sample=False, **dict.fromkeys(SAMPLING))
    try:
        with torch.no_grad():
            ids = model.generate(pixel_values=pixel_values, generation_config=decoding)
    except Exception:  # each family fails in its own way without a prompt
        return None
    texts: list[str] = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def loader_of(model: PreTrainedModel) -> str:
    """The name of the class of transformers that loads the model from its folder: an Auto class that finds it, or its own."""
    for auto in (AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering):
        if auto._model_mapping.get(type(model.config), None) is type(model):
            return str(auto.__name__)
    return type(model).__name__


def merged_card(folder: str, backbone: str, description: str, proof: str, *, loader: str, plain: bool) -> str:
    """The README.md of a folder called `folder`.

    `loader` is the class that loads it; `plain` says whether the model's own `generate` gives the same captions.
    """
    base = hub_id(backbone)
    metadata = ModelCardData(
        base_model=base, base_model_relation="finetune" if base else None, library_name="transformers",
        pipeline_tag="image-to-text", tags=["medgraft", "image-captioning"],
    )  # fmt: skip
    recipe = (_RECIPE if plain else _NO_RECIPE).format(folder=folder, loader=loader)
    return f"""---
{metadata.to_yaml()}
---

# {description}, merged into {base or backbone.replace("./", "")}

Made by medgraft. Not a medical device: captions are for research and may be wrong.

{proof}

## Use

```
medgraft caption image.jpg --backbone {backbone.partition(":")[0]}:{folder}
```
{recipe}"""
