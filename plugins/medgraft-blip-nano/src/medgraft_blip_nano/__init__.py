"""blip-nano: a real BLIP of 6 M parameters with its weights, so that medgraft works offline on a laptop."""

from collections.abc import Iterator

import medgraft


@medgraft.hookimpl
def medgraft_backbones() -> Iterator[medgraft.BackboneSpec]:
    """The embedded default backbone."""
    yield medgraft.BackboneSpec(
        "blip-nano",
        "a 6 M parameter BLIP pretrained on synthetic scenes, weights included",
        "medgraft_blip_nano.backbone:BlipNano",
    )
