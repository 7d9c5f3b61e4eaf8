"""Generation settings: which go together, and that every backbone follows them, with kernels and without."""

import random

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from medgraft.acceleration.graphed_decoding import StaticGenerator
from medgraft.captioning import caption_images, captioned_batches
from medgraft.config import GenerationConfig
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import Strategy
from medgraft.testing.tiny import tiny_models

PLUGINS = PluginManager.from_environment()
MODELS = tiny_models(PLUGINS, of_each=2)
IMAGES = [Image.new("RGB", (40, 30), (shade, 90, 10)) for shade in (0, 100, 200, 50, 150)]
SETTINGS = {
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 3, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
    "greedy": {"min_new_tokens": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 1},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tiny_folder):
    kind, folder = tiny_folder(request.param)
    return PLUGINS.get("backbone", kind).load(str(folder))


def _each(backbone, settings, images=IMAGES, batch_size=2):
    options = GenerationConfig(max_new_tokens=6, **settings)
    batches = captioned_batches(backbone, images, options=options, prompt=backbone.default_prompt, batch_size=batch_size)
    return [each.captions for batch in batches for each in batch.images]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_backbone_follows_the_settings(model, name):
    settings = SETTINGS[name]
    found = _each(model, settings)
    assert [len(captions) for captions in found] == [settings.get("num_return_sequences", 1)] * len(IMAGES)
    state, python = torch.get_rng_state(), random.getstate()
    assert _each(model, settings) == found
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python


def test_sampling_depends_on_the_seed_and_not_on_what_was_drawn_before(model):
    settings = {"do_sample": True, "num_return_sequences": 2, "temperature": 100}
    found = _each(model, settings)
    torch.rand(5)
    assert _each(model, settings) == found != _each(model, settings | {"seed": 1})
    assert len({caption for captions in found for caption in captions}) > len(IMAGES)  # batches have numbers of their own
    one = _each(model, {"do_sample": True, "top_k": 1}, batch_size=5)
    assert one == _each(model, {}, batch_size=5)  # of one token there is no choice


def test_the_shortest_caption_counts_its_own_tokens_alone(model):
    """Neither the prompt's nor the image's."""
    end, prompt = model.end_id, model.default_prompt

    def ends_at_once(module, arguments, output):
        output.logits[..., end] = 1e4

    features = model.encode(model.pixel_values(IMAGES[:2]), prompt=prompt)
    ends = []
    for least in (0, 4):
        inputs = model.generation_inputs(2, features.device, prompt, GenerationConfig(max_new_tokens=6, min_new_tokens=least))
        inner = (getattr(model.model, name, None) for name in ("text_decoder", "language_model", "decoder"))
        decoder = next((module for module in inner if module is not None), model.model)
        hook = decoder.register_forward_hook(ends_at_once)
        with torch.no_grad():
            ids = model.generate_ids(features, *inputs)
        hook.remove()
        ends.append((ids == end).int().argmax(1))
    assert (ends[1] - ends[0]).tolist() == [4, 4] and set(ends[0].tolist()) <= {0, 1}  # T5 has a start token before


@pytest.mark.parametrize("settings", [{}, *SETTINGS.values()], ids=["plain", *SETTINGS])
def test_kernels_and_the_static_cache_change_no_caption(settings, blip_folder):
    captions = []
    for kernels in ("none", "auto"):
        backbone = prepare_model(f"blip:{blip_folder}", Strategy(), plugins=PLUGINS, kernels=kernels)[0]
        captions.append(_each(backbone, settings))
    options = GenerationConfig(max_new_tokens=6, **settings)
    features = backbone.encode(backbone.pixel_values(IMAGES))
    inputs = backbone.generation_inputs(len(IMAGES), features.device, "", options)
    both = []
    for generate_ids in (backbone.generate_ids, StaticGenerator(backbone, graph=False)):
        torch.manual_seed(0)
        with torch.no_grad():
            both.append(generate_ids(features, *inputs))
    assert captions[0] == captions[1] and torch.equal(*both)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.5}, "temperature=0.5 acts on sampling alone; add generation.do_sample=true"),
        ({"top_k": 5, "top_p": 0.5}, "top_k=5, top_p=0.5 acts on sampling alone"),
        ({"do_sample": True, "top_p": 0}, "greater than 0"),
        ({"do_sample": True, "top_p": 1.5}, "less than or equal to 1"),
        ({"do_sample": True, "temperature": 0}, "greater than 0"),
        ({"num_return_sequences": 3}, "3 is more than num_beams=1; set generation.num_beams=3, or generation.do_sample=true"),
        ({"num_return_sequences": 3, "num_beams": 2, "do_sample": True}, "num_beams=2; set generation.num_beams=3"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is more than max_new_tokens=8"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        GenerationConfig(**settings)


def test_settings_of_earlier_versions_are_recorded_as_then():
    old = {"max_new_tokens": 7, "num_beams": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0}
    assert GenerationConfig(**old).recorded() == old
    sampled = GenerationConfig(do_sample=True, top_p=0.9, seed=4)
    assert GenerationConfig(**sampled.recorded()) == sampled


def test_sampling_that_is_switched_off_takes_its_settings_along():
    sampled = GenerationConfig(do_sample=True, top_p=0.9, num_beams=2)
    assert sampled.overridden({"do_sample": False}) == GenerationConfig(num_beams=2)
    assert sampled.overridden({"top_k": 3}) == sampled.model_copy(update={"top_k": 3})


def test_the_first_of_several_beams_is_the_one_caption(blip_folder):
    backbone = PLUGINS.get("backbone", "blip").load(str(blip_folder))
    single = caption_images(backbone, IMAGES, options=GenerationConfig(max_new_tokens=6, num_beams=3)).captions
    several = _each(backbone, {"num_beams": 3, "num_return_sequences": 3}, batch_size=32)
    assert [captions[0] for captions in several] == single and all(len(set(captions)) == 3 for captions in several)
