"""Whether a model was loaded from all of its tensors and only from its own: what is missing, and what is left over."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from medgraft.errors import BackboneError
from medgraft.types import lies_in

_logger = logging.getLogger("medgraft")
# buffers of earlier versions of transformers, which are computed anew
_BUFFERS = re.compile(r"(.*\.)?(position_ids|masked_bias|attn\.bias|crossattention\.bias|inv_freq|relative_position_index)")
_QUANTIZED = re.compile(
    r".*\.(SCB|weight_format|absmax|nested_absmax|quant_map|quant_state\..+|qweight|qzeros|g_idx|weight_scale(_inv)?|weight_packed)"
)
# whose checkpoints differ from each other by the question encoder: the backbone for what this class does not take
_OTHER_BLIP = {"BlipForConditionalGeneration": "blip-vqa", "BlipForQuestionAnswering": "blip"}
_A_PART = 0.05  # of a file's tensors: more are another model's part, not a leftover


def check_loaded(source: str, model: Any, info: Mapping[str, Iterable[str]], never_run: tuple[str, ...]) -> None:
    """Raise BackboneError unless `model` has all of its tensors and the file is of this model; tell of what is left over.

    `info` is what transformers says of loading. Modules that match `never_run` may be missing. A file with whole parts that
    the model lacks, or with the name of another architecture and more tensors, is another model's.
    """
    kind = type(model).__name__
    if missing := sorted(name for name in info["missing_keys"] if not lies_in(name, never_run)):
        raise BackboneError(
            f"{source} is no complete {kind}: {len(missing)} tensors are missing, such as {missing[0]}."
            f"{_other_backbone(source, kind, missing)}"
        )
    surplus = sorted(n for n in info["unexpected_keys"] if not _BUFFERS.fullmatch(n) and not lies_in(n, never_run))
    if not surplus:
        return
    if quantized := [name for name in surplus if _QUANTIZED.fullmatch(name)]:
        raise BackboneError(
            f"{source} holds quantised weights ({quantized[0]}), but its config.json has no quantization_config that says how. "
            "Use the config.json that was saved with them, or the unquantised checkpoint."
        )
    parts = {name for name, _ in model.named_children()}
    foreign = sorted({name.partition(".")[0] for name in surplus} - parts - {model.base_model_prefix})
    others = [name for name in model.config.architectures or () if name != kind]
    in_foreign = sum(name.partition(".")[0] in foreign for name in surplus)
    if (others and foreign) or in_foreign > _A_PART * len(model.state_dict()):
        named = f"{others[0]} by its config.json" if others else "another model"
        raise BackboneError(
            f"{source} is {named}, not {kind}: {len(surplus)} of its tensors have no place there, such as {surplus[0]}. "
            f"Name a checkpoint of {kind}.{_other_backbone(source, kind, surplus)}"
        )
    _logger.warning(
        f"{source} has {len(surplus)} tensors that {kind} has no place for and does not use, such as {surplus[0]}. "
        "Is it the checkpoint that you want?"
    )


def _other_backbone(source: str, kind: str, tensors: Iterable[str]) -> str:
    """The backbone that takes a BLIP checkpoint where `kind` does not, by the `tensors` that it lacks or has left over."""
    encoder = {name.partition(".")[0] for name in tensors} == {"text_encoder"}
    return f" Backbone {_OTHER_BLIP[kind]} takes it: {_OTHER_BLIP[kind]}:{source}." if encoder and kind in _OTHER_BLIP else ""
