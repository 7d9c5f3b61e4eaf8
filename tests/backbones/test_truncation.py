"""Captions that are too long are cut without an end token; those that fit have the tensors that they always had."""

import pytest
import torch

from medgraft.backbones.text_batch import padded
from medgraft.errors import ConfigError
from medgraft.plugin import PluginManager
from medgraft.testing.tiny import tiny_models

PLUGINS = PluginManager.from_environment()
MODELS = tiny_models(PLUGINS, of_each=2)
SHORT, LONG = "a nodule.", "no acute findings in the chest."
PROMPTS = ["", "a photo of"]


@pytest.fixture(scope="module", params=MODELS)
def backbone(request, tiny_folder):
    name, folder = tiny_folder(request.param)
    return PLUGINS.get("backbone", name).load(str(folder))


def _reads_the_prompt_in_an_encoder(backbone):
    return backbone.logits_offset == 0  # T5


def _whole(backbone, prompt):
    """The tokens that the long caption needs: those of the prompt, where it counts, its own and the end token."""
    before = 0 if _reads_the_prompt_in_an_encoder(backbone) else len(backbone.prompt_ids(prompt)) - backbone.image_tokens
    return before + len(backbone.token_ids([LONG])[0]) + 1


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("missing", [-1, 0, 1, 2, 9])
def test_no_end_token_behind_a_cut(backbone, prompt, missing):
    head = backbone.prompt_ids(prompt)
    text = backbone.text_batch([LONG, SHORT], prompt=prompt, max_tokens=_whole(backbone, prompt) - missing)
    long, short = ([*ids, backbone.end_id] for ids in backbone.token_ids([LONG, SHORT]))
    if missing > 0:
        long = long[:-missing]
        assert long[-1] != backbone.end_id
    before = [] if _reads_the_prompt_in_an_encoder(backbone) else [-100] * len(head)
    rows = [[*before, *long], [*before, *short]]
    assert text.labels.tolist() == padded(rows, -100)[0].tolist()
    if before:
        ids, mask = padded([[*head, *long], [*head, *short]], backbone.pad_id)
    else:
        ids, mask = padded([head, head], backbone.pad_id)
    assert torch.equal(text.input_ids, ids) and torch.equal(text.attention_mask, mask)


def test_the_models_own_limit_cuts_as_well(backbone):
    caption = "word " * backbone.max_positions
    text = backbone.text_batch([caption], max_tokens=10**9)
    labels = text.labels[text.labels != -100].tolist()
    before = 0 if _reads_the_prompt_in_an_encoder(backbone) else len(backbone.prompt_ids(""))
    assert labels == backbone.token_ids([caption])[0][: backbone.max_positions - before]


def test_the_prompt_is_never_cut(backbone):
    prompt = "word " * 40
    if _reads_the_prompt_in_an_encoder(backbone):
        assert backbone.text_batch([SHORT], prompt=prompt, max_tokens=8).input_ids[0].tolist() == backbone.prompt_ids(prompt)
    else:
        with pytest.raises(ConfigError, match="leaves none"):
            backbone.text_batch([SHORT], prompt=prompt, max_tokens=20)
