"""Which adapters vLLM can serve beside their base, by its rules for LoRA.

The rules are those of vLLM's documentation and source: vllm/config/lora.py (ranks), vllm/lora/peft_helper.py (features),
vllm/lora/utils.py (names of tensors), and the attribute `supports_tower_connector_lora` of its models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from medgraft.adapter.manifest import ADAPTER_CONFIG, ADAPTER_INT8, ADAPTER_WEIGHTS, Manifest

VLLM = "0.31"  # the version whose documentation was read
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
# modules of the language models that it serves with LoRA, by backbone; a T5 has other names
_LANGUAGE = {"blip2": r"language_model\.(model\.decoder|lm_head)\b", "qwen-vl": r"(model\.language_model|lm_head)\b"}
_NO_PART_OF_LORA = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices")


@dataclass(frozen=True)
class Serving:
    """What keeps vLLM from serving an adapter beside its base, and if nothing does, the options that `vllm serve` needs."""

    obstacles: tuple[str, ...]
    options: tuple[str, ...] = ()


def serving(backbone: str, config: Mapping[str, Any] | None, keys: Iterable[str]) -> Serving:
    """Whether vLLM serves an adapter of `backbone` (a name such as `blip2`).

    `config` is the content of adapter_config.json, None without one, and `keys` are the tensors' names in its weights file.
    """
    if config is None:
        return Serving(("weights of the base were trained in place",))
    obstacles = []
    if backbone not in _LANGUAGE:
        obstacles.append(f"{backbone} is no model that it serves with adapters")
    if config.get("peft_type") != "LORA":
        return Serving((*obstacles, f"the method is {config.get('peft_type')}, not LoRA"))
    obstacles += [f"{name} is set" for name in _NO_PART_OF_LORA if config.get(name)]
    if config.get("bias", "none") != "none":
        obstacles.append("biases were trained")
    if config["r"] > _RANKS[-1]:
        obstacles.append(f"rank {config['r']} is above {_RANKS[-1]}")
    found = {key: _KEY.fullmatch(key) for key in keys}
    if strange := [key for key, match in found.items() if match is None]:
        obstacles.append(f"it does not read tensors named as {strange[0]}")
    modules = {match[1] for match in found.values() if match}
    towers = {name for name in modules if not re.match(_LANGUAGE.get(backbone, ""), name)}
    if other := sorted(name for name in towers if name.startswith("language_model.")):
        obstacles.append(f"it serves no language model with layers named as {other[0]}")
    if obstacles:
        return Serving(tuple(obstacles))
    rank = next(rank for rank in _RANKS if rank >= config["r"])
    return Serving((), ("--enable-lora", f"--max-lora-rank {rank}", *(["--enable-tower-connector-lora"] if towers else [])))


def serving_section(folder: Path, manifest: Manifest, name: str) -> str:
    """The card's section on servers, for the package in `folder`, which will be called `name`."""
    backbone, _, source = manifest.backbone.partition(":")
    if ADAPTER_INT8 in manifest.files:
        found = Serving(("only medgraft reads weights in int8",))
    elif manifest.training.get("in_place") or ADAPTER_CONFIG not in manifest.files:
        found = serving(backbone, None, ())
    else:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            found = serving(backbone, config, file.keys())
    if found.obstacles:
        return f"""## Serving

vLLM cannot load this adapter beside its base, by the documentation of version {VLLM}: {"; ".join(found.obstacles)}.
`medgraft adapter merge` makes an ordinary transformers model of it, for servers and pipelines that load models of its kind.
"""
    tower = "Adapters on vision towers and bridges are experimental there.\n" if len(found.options) > 2 else ""
    return f"""## Serving

vLLM can load this adapter beside its base, by the documentation of version {VLLM}:

```
vllm serve {source or backbone} {" ".join(found.options)} --lora-modules {name}={name}
```

{tower}`medgraft adapter merge` makes an ordinary transformers model of it, for every other server.
"""
