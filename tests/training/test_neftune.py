"""NEFTune: the noise is transformers', on the text's embeddings, in training alone, with and without kernels."""

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from medgraft.benchmark.recording import run_id
from medgraft.config import run_config
from medgraft.errors import ConfigError
from medgraft.features.reusable_prefix import find_reusable_prefix, prefix_key
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.samples import images
from medgraft.testing.tiny import tiny_models
from medgraft.training import CaptioningModule
from medgraft.training.neftune import noisy_embeddings, text_embeddings

PLUGINS = PluginManager()
CAPTIONS = ("a nodule.", "no acute findings of any kind.")


def _module(tiny_folder, name, strategy="full", kernels="none"):
    kind, folder = tiny_folder(name)
    torch.manual_seed(0)
    backbone, applied, _ = prepare_model(
        f"{kind}:{folder}", get_strategy(strategy, plugins=PLUGINS), plugins=PLUGINS, kernels=kernels
    )
    return CaptioningModule(backbone, applied, "a picture")


def _loss(module):
    text = module.backbone.text_batch(CAPTIONS, prompt="a picture", max_tokens=160)
    torch.manual_seed(7)
    with torch.no_grad():
        return module(text.input_ids, text.attention_mask, text.labels, module.backbone.pixel_values(images(2)))["loss"].item()


@pytest.mark.parametrize("name", tiny_models(PLUGINS, of_each=2))
def test_noise_is_added_in_training_only_and_taken_off_afterwards(name, tiny_folder):
    module = _module(tiny_folder, name)
    at_rest, quiet = _loss(module.eval()), _loss(module.train())
    with noisy_embeddings(module, 50.0):
        assert _loss(module.eval()) == at_rest
        noisy = _loss(module.train())
        assert noisy != quiet and noisy == _loss(module)
    with noisy_embeddings(module, None):
        assert _loss(module) == quiet


@pytest.mark.parametrize("strategy", ["full", "lora", "decoder-frozen", "qlora"])
@pytest.mark.parametrize("kernels", ["none", "auto"])
def test_the_noise_is_that_of_transformers(strategy, kernels, tiny_folder):
    module = _module(tiny_folder, "blip", strategy, kernels).train()
    with noisy_embeddings(module, 50.0):
        found = _loss(module)
    plain = _module(tiny_folder, "blip", strategy).train()
    embedding = plain.backbone.model.get_input_embeddings().train()
    embedding.neftune_noise_alpha = 50.0
    handle = embedding.register_forward_hook(neftune_post_forward_hook)
    assert found == pytest.approx(_loss(plain), rel=1e-6)
    handle.remove()
    assert found != _loss(plain)


def test_the_noise_is_bounded_by_alpha_and_the_size_of_the_embeddings(tiny_folder):
    module = _module(tiny_folder, "blip").train()
    (embedding,) = text_embeddings(module.backbone)
    ids = torch.randint(5, 20, (4, 9))
    before = embedding(ids)
    with noisy_embeddings(module, 5.0):
        noise = embedding(ids) - before  # [B, T, C]
    bound = 5.0 / (9 * before.shape[2]) ** 0.5
    assert 0.98 * bound < noise.abs().max() <= bound * (1 + 1e-6)
    assert abs(noise.mean()) < 0.1 * bound


def test_the_decoder_of_t5_has_embeddings_of_its_own(tiny_folder):
    backbone = _module(tiny_folder, "blip2-t5").backbone
    names = {name for name, module in backbone.model.named_modules() if module in text_embeddings(backbone)}
    assert "language_model.decoder.embed_tokens" in names


def test_a_model_that_does_not_tell_its_text_embeddings_is_refused(tiny_folder, monkeypatch):
    module = _module(tiny_folder, "blip")
    tower = module.backbone.model.vision_model.embeddings
    monkeypatch.setattr(type(module.backbone.model), "get_input_embeddings", lambda self: tower)
    refused = pytest.raises(ConfigError, match=r"gives vision_model\.embeddings, and no embedding of part 'text'")
    with refused, noisy_embeddings(module, 5):
        pass


def test_features_and_ids_do_not_depend_on_it(tiny_folder):
    module = _module(tiny_folder, "blip", "encoder-frozen")
    seam = find_reusable_prefix(module.backbone).seam
    key = prefix_key(module.backbone, seam, dtype=torch.float32, prompt="")
    with noisy_embeddings(module, 5.0):
        assert prefix_key(module.backbone, seam, dtype=torch.float32, prompt="") == key
    strategy = get_strategy("lora", plugins=PLUGINS)
    plain, off, on = (
        run_config(backbone="blip:x", strategy="lora", data="phantoms", overrides=overrides)
        for overrides in ([], ["train.neftune_noise_alpha=null"], ["train.neftune_noise_alpha=5"])
    )
    ids = [run_id(config, strategy, "", "", {}) for config in (plain, off, on)]
    assert ids[0] == ids[1] != ids[2] and "neftune_noise_alpha" not in plain.model_dump_json()
