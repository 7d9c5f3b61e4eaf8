"""The parts of a vision-language model and the roles of their modules, found in its tree of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from medgraft.plugin_api import Anatomy, AttentionLayout, BackboneError, Part, PartAnatomy, Role

_MERGER = re.compile(r"(^|_)merger")  # modules that belong to the bridge, though they lie in the vision tower
_WITHIN_LAYER: dict[Role, str] = {"attn": r"attn|attention", "mlp": r"mlp|ffn|feed_forward|fc\d|experts"}
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_PLACES = (nn.Embedding, nn.Conv2d, nn.Conv3d)


def find_anatomy(model: Any) -> Anatomy:
    """The anatomy of a transformers model with image tokens; BackboneError if a part cannot be found."""
    names = {id(module): name for name, module in model.named_modules()}
    vision, text = model.get_encoder(modality="image"), model.get_decoder()
    head = model.get_output_embeddings()
    for what, found, place in (("vision tower", vision, 'get_encoder("image")'), ("language model", text, "get_decoder()")):
        if names.get(id(found), "") in ("", model.base_model_prefix):
            kind = type(model).__name__
            raise BackboneError(
                f"{kind} has no {what} that can be found: {place} gives none. It needs a backbone of its own (docs/plugins.md)."
            )
    tower, language = names[id(vision)], names[id(text)]
    owned = {"text": [language, *([names[id(head)]] if head is not None else [])], "bridge": [], "vision": [tower]}
    if mergers := [name for name, _ in vision.named_children() if _MERGER.search(name)]:
        inside = dict.fromkeys(name.partition(".")[0] for name, _ in vision.named_parameters())
        owned["bridge"] = [f"{tower}.{name}" for name in mergers]
        owned["vision"] = [f"{tower}.{name}" for name in inside if name not in mergers]
    everything = [prefix for prefixes in owned.values() for prefix in prefixes]
    rest = [name for name, _ in model.named_parameters() if not any(_inside(name, prefix) for prefix in everything)]
    start = len(model.base_model_prefix.split(".")) + 1
    owned["bridge"] += list(dict.fromkeys(".".join(name.split(".")[:start]) for name in rest))
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not any(_inside(layer, prefix) for layer in layers for prefix in owned["bridge"]):
        owned["vision"] += owned.pop("bridge")  # as in Gemma 3: a bare weight, which no adapter can be put on
    never = tuple(_never_run(model, tower))
    parts: dict[Part, PartAnatomy] = {}
    for part in ("vision", "bridge", "text"):
        if prefixes := owned.get(part):
            parts[part] = PartAnatomy(tuple(prefixes), _roles(model, part, prefixes, head, never))
    return Anatomy(parts, never_run=never)


def attention_layout(anatomy: Anatomy, model: nn.Module) -> AttentionLayout:
    """The language model's self-attention, where words look at the image's tokens."""
    own = anatomy.parts["text"]
    found = {_pattern(name) for name, module in model.named_modules() if own.owns(name) and _is_attention(module)}
    return AttentionLayout("attention to the image's tokens", "|".join(sorted(found)))


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention")


def _roles(
    model: nn.Module, part: Part, prefixes: Iterable[str], head: nn.Module | None, never: Sequence[str]
) -> dict[Role, tuple[str, ...]]:
    unused = re.compile("|".join(rf"{pattern}(\..*)?" for pattern in never) or "(?!)")
    found: dict[Role, dict[str, list[str]]] = {}
    for name, module in model.named_modules():
        mine = any(_inside(name, prefix) for prefix in prefixes) and not unused.fullmatch(name)
        if mine and (role := _role(part, name, module, head)):
            found.setdefault(role, {}).setdefault(_pattern(name), []).append(name)
    everything = [name for name, _ in model.named_modules()]
    return {
        role: tuple(_exact(pattern, names, everything) for pattern, names in patterns.items())
        for role, patterns in found.items()
    }


def _exact(pattern: str, names: Sequence[str], everything: Sequence[str]) -> str:
    """`pattern`, if it matches no other of the modules `everything` than `names`, else one with their numbers or names."""
    numbers = dict.fromkeys(_LAYER.findall(name)[0] for name in names if _LAYER.search(name))
    for tried in (pattern, pattern.replace(r"\d+", f"({'|'.join(numbers)})", 1)):
        if sum(re.fullmatch(tried, name) is not None for name in everything) == len(names):
            return tried
    return "|".join(map(re.escape, names))


def _role(part: Part, name: str, module: nn.Module, head: nn.Module | None) -> Role | None:
    if module is head:
        return "head"
    if "Norm" in type(module).__name__:
        return "norm"
    if isinstance(module, _PLACES):
        return "embed"
    if not isinstance(module, nn.Linear):
        return None
    inner = re.split(r"\.\d+\.", name, maxsplit=1)[-1]  # within a layer, if it is in one
    for role in _WITHIN_LAYER if inner != name and part != "bridge" else ():
        if re.search(_WITHIN_LAYER[role], inner):
            return role
    return "proj" if part == "bridge" or inner != name else "embed"


def _never_run(model: Any, tower: str) -> Iterable[str]:
    """Modules of the vision tower above the layer whose output is used, poolers, and towers for sound."""
    vision, config = model.get_submodule(tower), model.config
    if (sound := model.get_encoder(modality="audio")) not in (model, model.base_model):
        yield from (_pattern(name) for name, module in model.named_modules() if module is sound)
    wanted = getattr(config, "vision_feature_layer", None)  # places in the list of the input and every layer's output
    layers = getattr(getattr(config, "vision_config", None), "num_hidden_layers", 0)
    used = max(n % (layers + 1) for n in ([wanted] if isinstance(wanted, int) else wanted or [-1]))
    for name, module in vision.named_modules():
        whole, last = re.escape(f"{tower}.{name}"), name.rpartition(".")[2]
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            yield from (rf"{whole}\.{number}" for number in range(used, layers))
        closing = (last == "post_layernorm" and wanted is not None) or (last == "layernorm" and name == last and used < layers)
        if closing or last in ("head", "pooler"):
            yield whole


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\\\.)\d+(?=\\\.|$)", r"\\d+", re.escape(name))


def _inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
