"""Ways of initialising LoRA: which are supported, and which change the base model."""

from __future__ import annotations

from typing import Any

from medgraft.errors import ConfigError
from medgraft.strategies.base import Strategy

_CHANGING = ("pissa", "olora")  # they move a part of the base's weights into the adapter
_UNMADE = {
    "eva": "needs activations on data, which medgraft does not compute",
    "lora_ga": "needs gradients on data, which medgraft does not compute",
    "corda": "needs activations on data, which medgraft does not compute",
    "loftq": "replaces the base by a quantised copy, for which no plain LoRA can be saved",
}
_NOT_CONVERTED = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices")


def changes_base(strategy: Strategy) -> bool:
    """Whether the strategy's initialisation changes the base's weights, so that its adapter is converted when it is saved."""
    return strategy.uses_adapter and _init(strategy).startswith(_CHANGING)


def moves_base(config: Any) -> bool:
    """Whether the initialisation in PEFT's `config` moves a part of the base's weights into the adapter."""
    return str(getattr(config, "init_lora_weights", True)).lower().startswith(_CHANGING)


def check_init(strategy: Strategy) -> None:
    """Raise ConfigError for an initialisation that cannot be made here, or whose adapter could not be saved as plain LoRA."""
    init = _init(strategy)
    for start, why in _UNMADE.items():
        if init.startswith(start):
            raise ConfigError(f"init_lora_weights={init!r} {why}. Use true, pissa or olora.")
    if not changes_base(strategy):
        return
    if strategy.quantization != "none":
        raise ConfigError(
            f"init_lora_weights={init!r} changes the base's weights, which a base in {strategy.quantization} cannot follow "
            "exactly. Use strategy.quantization=none or init_lora_weights=true."
        )
    others = [name for name in _NOT_CONVERTED if strategy.options.get(name)]
    if strategy.options.get("use_rslora"):  # the doubled rank of each layer has a scale that these do not give
        others += [name for name in ("rank_pattern", "alpha_pattern") if strategy.options.get(name)]
    others += ["bias"] if strategy.options.get("bias", "none") != "none" else []
    if others:
        raise ConfigError(
            f"init_lora_weights={init!r} is saved as plain LoRA, which has no {others[0]}. Leave one of the two options out."
        )


def _init(strategy: Strategy) -> str:
    return str(strategy.options.get("init_lora_weights", True)).lower()
