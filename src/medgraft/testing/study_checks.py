"""The check of a backbone that sees several images of a study together."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from medgraft.backbones import Backbone
from medgraft.backbones.side_by_side import side_by_side
from medgraft.config import GenerationConfig
from medgraft.testing.samples import CAPTIONS, images


class StudyChecks(ABC):
    """A part of the checks of a backbone."""

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The backbone that is checked."""

    @torch.no_grad()
    def takes_several_images(self) -> None:
        """With several_images, every image of a study counts, and a study does not depend on the rest of the batch."""
        backbone = self.backbone
        if not backbone.several_images:
            return
        prompt, options = backbone.default_prompt, GenerationConfig(max_new_tokens=8)
        text = backbone.text_batch(CAPTIONS, prompt=prompt, max_tokens=160)
        each = backbone.encode(backbone.pixel_values(images(3)), prompt=prompt)[[0, 1, 2, 0]]
        ((_, studies),) = side_by_side(each, [2, 2])
        together, first = (backbone.decode(features, text)[1] for features in (studies, each[[0, 2]]))
        assert not torch.allclose(together, first, rtol=1e-4), "the second image of a study does not change its logits"
        for row in range(2):
            alone = backbone.decode(studies[row : row + 1], text.rows([row]))[1]
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        captions = backbone.generate(studies, prompt=prompt, options=options)
        one = [backbone.generate(row[None], prompt=prompt, options=options)[0] for row in studies]
        assert captions == one, f"studies of two images: together {captions}, alone {one}"
