"""The models of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from PIL.Image import Image

from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.inference import Captioner, Inference
from medgraft.progress import progress_bars
from medgraft.saliency import Explanation
from medgraft.saliency.maps import attention_layout_of


@dataclass(frozen=True)
class DemoModel:
    """A model in this process, with the name that the page shows and its generation settings."""

    name: str
    inference: Inference
    generation: GenerationConfig

    @property
    def prompt(self) -> str:
        """The model's own prompt, used where no other is given."""
        return self.inference.prompt

    @property
    def takes_prompts(self) -> bool:
        """Whether a prompt changes what the model is given."""
        backbone = self.inference.backbone
        return backbone.prompt_ids("image") != backbone.prompt_ids("") or any(s.depends_on_prompt for s in backbone.seams)

    def caption(self, image: Image, prompt: str | None = None) -> str:
        """The caption of an RGB image, or the answer to `prompt`."""
        with progress_bars(False):
            return self._asked(prompt).caption([image], self.generation).captions[0]

    def explain(self, image: Image, caption: str, prompt: str | None = None) -> Explanation:
        """The maps of the words of `caption`, perhaps none; BackboneError for a model without attention maps."""
        attention_layout_of(self.inference.backbone, "attention")
        (maps,) = self._asked(prompt).maps([image], [caption])
        return Explanation(image, maps, self.inference.backbone.visible_region(*image.size))

    def _asked(self, prompt: str | None) -> Inference:
        return self.inference if prompt is None else replace(self.inference, prompt=prompt)


def local_models(found: Mapping[str, tuple[Captioner, GenerationConfig]]) -> list[DemoModel]:
    """The models by name; ConfigError for one behind an API, because no image of the page may leave this machine."""
    models = []
    for name, (captioner, generation) in found.items():
        if not isinstance(captioner, Inference):
            raise ConfigError(
                f"{name} is a model behind an API, and images of the demo do not leave this machine. Name a local model, or "
                "send images to the API by medgraft caption."
            )
        models.append(DemoModel(name, captioner, generation))
    return models
