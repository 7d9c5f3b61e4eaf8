"""What of PEFT does not work here, and why. The settings of an adapter are checked by it without torch."""

from __future__ import annotations

# methods with target_modules in their config that nevertheless cannot adapt arbitrary linear layers
UNSUITED = {
    "ADAPTION_PROMPT": "works on LLaMA's attention only",
    "FROD": "fails on layers that are not square in this version of PEFT",
    "POLY": "needs a task id with every batch",
    "SHADOW": "copies the layers of a language model",
    "TRAINABLE_TOKENS": "trains rows of an embedding, not linear layers",
    "XLORA": "mixes other adapters, which it loads from elsewhere",
}
ONLY_LOADED = ("FROD", "TRAINABLE_TOKENS")  # those of them that are loaded if they were trained elsewhere
# options that change what a forward pass has to do, beyond the modules of the adapter
UNSUITED_OPTIONS = {
    "alora_invocation_tokens": "is switched on by certain tokens, which medgraft's forward pass does not look for (aLoRA)",
    "arrow_config": "chooses among several adapters for each token (Arrow)",
    "layer_replication": "repeats layers of the base",
    "megatron_config": "needs Megatron's layers, from the module that megatron_core names",
}
# ways of initialising LoRA that change the base so that the change cannot be made again, and by what
CHANGED_BASE = {
    "pissa_niter": "a random decomposition of the base's weights",
    "corda": "data that are not in the adapter",
    "lora_ga": "data that are not in the adapter",
    "loftq": "a quantised copy of the base",
}
