"""What to write when a check fails: the methods and attributes that decide it, described in docs/plugins.md."""

from __future__ import annotations

from typing import Literal

Kind = Literal["backbone", "strategy", "dataset", "metric"]

_SECTIONS: dict[Kind, str] = {
    "backbone": "What a backbone defines", "strategy": "Other kinds", "dataset": "Other kinds", "metric": "Other kinds",
}  # fmt: skip
DECIDED_BY: dict[Kind, dict[str, str]] = {
    "backbone": {
        "loads": "model_class, model_types, load, fingerprint",
        "prepares_images": "pixel_values, from_model",
        "declares_seams": "seams, anatomy",
        "owns_every_parameter": "anatomy",
        "knows_every_linear_layer": "anatomy",
        "builds_a_meta_model": "model_class",
        "masks_labels": "text_batch, token_ids, end_id",
        "has_one_loss": "loss, decode",
        "ignores_padding": "decode, pad_id",
        "takes_a_prompt_for_each_row": "text_batch, forward_to, decode",
        "cuts_long_captions": "text_batch, max_positions",
        "resumes_at_every_seam": "forward_to, decode, seams",
        "depends_on_the_image": "pixel_values, forward_to, prompt_ids, image_tokens",
        "generates_as_trained": "generate_ids, prompt_ids, logits_offset",
        "generates_alike_in_batches": "generate_ids, pad_id",
        "respects_limits": "generate_ids, max_positions",
        "gives_attention_maps": "attention_layout, attention_index, visible_region",
        "takes_other_sizes": "image_step, set_image_size, interpolates",
        "takes_several_images": "several_images, decode, generate_ids",
        "survives_pickling": "pixel_values, text_batch",
        "refuses_other_models": "load, model_types",
    },
    "strategy": {
        "applies": "roles, quantization",
        "trains_its_scope": "mode, roles",
        "loads_as_saved": "method, options",
        "merges": "method, options",
    },
    "dataset": dict.fromkeys(
        ("is_readable", "has_images", "is_repeatable", "keeps_groups_together", "refuses_other_folders"), "read"
    ),
    "metric": dict.fromkeys(
        ("gives_numbers", "is_repeatable", "takes_empty_captions", "takes_several_references"), "measure"
    ),
}  # fmt: skip


def advice(kind: Kind, check: str) -> str:
    """The names that decide the check, a function's name, and the section that describes them. KeyError for another check."""
    return f"{DECIDED_BY[kind][check]} (docs/plugins.md, {_SECTIONS[kind]})"
