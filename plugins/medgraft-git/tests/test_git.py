"""GIT through the conformance kit, and against transformers' own forward and generate."""

import pytest
import torch

from medgraft.config import GenerationConfig
from medgraft.plugin import PluginManager
from medgraft.strategies import get_strategy
from medgraft.testing import check_backbone, check_strategy
from medgraft.testing.samples import CAPTIONS, images

MANAGER = PluginManager()


@pytest.fixture
def backbone(tiny_folder):
    name, folder = tiny_folder("git")
    return MANAGER.get("backbone", name).load(str(folder))


def test_keeps_the_contract(tiny_folder):
    name, folder = tiny_folder("git")
    check_backbone(MANAGER.get("backbone", name), folder)


@pytest.mark.parametrize("strategy", PluginManager(disabled=frozenset({"medgraft-git"})).names("strategy"))
def test_every_strategy(strategy, tiny_folder):
    name, folder = tiny_folder("git")
    check_strategy(get_strategy(strategy, plugins=MANAGER), f"{name}:{folder}", plugins=MANAGER)


@pytest.mark.parametrize("beams", [1, 3])
def test_says_what_transformers_says(backbone, beams):
    pixels, text = backbone.pixel_values(images(2)), backbone.text_batch(CAPTIONS)
    with torch.no_grad():
        reference = backbone.model(
            pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask, labels=text.labels
        )
        ids = backbone.model.generate(pixel_values=pixels, max_new_tokens=8, num_beams=beams, do_sample=False)
        loss, logits = backbone.decode(backbone.encode(pixels), text)
    torch.testing.assert_close(loss, reference.loss)
    torch.testing.assert_close(logits, reference.logits[:, -logits.shape[1] :])
    said = backbone.generate(backbone.encode(pixels), options=GenerationConfig(max_new_tokens=8, num_beams=beams))
    assert said == [backbone.readable(line) for line in backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_the_model_is_whole_again_after_an_error(backbone):
    own = backbone.model.git.image_encoder
    with pytest.raises(RuntimeError):
        backbone.decode(torch.zeros(2, 3, 7), backbone.text_batch(CAPTIONS))
    assert backbone.model.git.image_encoder is own
