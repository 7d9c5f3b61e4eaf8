"""Write what PEFT added to a model in PEFT's own format."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from medgraft.strategies import Applied, logged_warnings


def write_peft(folder: Path, applied: Applied) -> None:
    """Write adapter_model.safetensors and adapter_config.json.

    An adapter whose initialisation changed the base (PiSSA, OLoRA) is written as plain LoRA of twice the rank for the
    unchanged base: [B, -B0] [A; A0], where A0 and B0 are the initial matrices.
    """
    with logged_warnings("changes the base weights of the model"), TemporaryDirectory() as temporary:
        initial = Path(temporary) / "initial"
        if applied.initial:
            initial.mkdir()
            save_file(dict(applied.initial), initial / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        applied.model.save_pretrained(  # type: ignore[operator]
            folder,
            save_embedding_layers=False,  # by default PEFT contacts the hub to find out whether the vocabulary grew
            path_initial_model_for_weight_conversion=str(initial) if applied.initial else None,
        )
