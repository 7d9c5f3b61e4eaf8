"""Maps of words: against a decoder written by hand, against the papers' equations in loops, on every architecture."""

import math

import numpy as np
import pytest
import torch

from medgraft.backbones import get_backbone
from medgraft.errors import BackboneError, ConfigError
from medgraft.models import load_model
from medgraft.saliency import METHODS, MapOptions, caption_maps, layer_count
from medgraft.saliency.record import graph_below, recorded
from medgraft.saliency.relevance import cross_relevance, normalised, rollout, self_relevance, weighted
from medgraft.strategies import apply_strategy, get_strategy
from medgraft.testing.samples import images

CAPTION = "Chest X-ray with a large left-sided pleural effusion."
TINY = [
    "blip", "blip2-opt", "blip2-t5", "instructblip-t5", "instructblip-vicuna", "vit-gpt2", "deit-bert", "git", "qwen2-vl",
    "qwen2.5-vl", "blip-vqa",
]  # fmt: skip
GRADIENT = ["blip", "vit-gpt2", "deit-bert", "git", "qwen2.5-vl"]


@pytest.fixture
def load(tiny_folder, plugins):
    def get(name, strategy="zero-shot"):
        backbone, folder = tiny_folder(name)
        return load_model(f"{backbone}:{folder}", get_strategy(strategy, plugins=plugins), plugins=plugins)

    return get


@pytest.fixture
def blip(blip_folder, plugins):
    return get_backbone("blip:x", plugins=plugins)[0].load(str(blip_folder))


def _heads(states, heads):
    return states.view(states.shape[0], heads, -1).transpose(0, 1)  # [H, T, D]


def _by_hand(weights, config, features, ids):
    """Cross-attention [H, T, S] of each layer of BLIP's decoder for one sequence, from its tensors alone, in float64."""
    w = {name.removeprefix("text_decoder.bert."): value.double() for name, value in weights.items()}
    heads, eps = config.num_attention_heads, config.layer_norm_eps

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(x, source, name, mask):
        query, key, value = _heads(linear(x, f"{name}.query"), heads), *(
            _heads(linear(source, f"{name}.{what}"), heads) for what in ("key", "value")
        )  # fmt: skip
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
        return (shares @ value).transpose(0, 1).reshape(x.shape[0], -1), shares

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x, "embeddings.LayerNorm")
    future = torch.triu(torch.ones(len(ids), len(ids), dtype=torch.bool), 1)
    found = []
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        own, _ = attention(x, x, f"{layer}.attention.self", future)
        x = norm(linear(own, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        seen, shares = attention(x, features.double(), f"{layer}.crossattention.self", None)
        x = norm(linear(seen, f"{layer}.crossattention.output.dense") + x, f"{layer}.crossattention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        x = norm(linear(inner, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
        found.append(shares)
    return found


def test_attention_equals_that_of_a_decoder_written_by_hand(blip):
    with torch.no_grad():
        features = blip.encode(blip.pixel_values(images(1)))
    ids = torch.tensor([*blip.prompt_ids(""), *blip.token_ids([CAPTION])[0], blip.end_id])
    wanted = _by_hand(blip.model.state_dict(), blip.config.text_config, features[0], ids)
    text = blip.text_batch([CAPTION])
    with torch.no_grad(), recorded(blip, {"words": blip.attention_layout.words}) as seen:
        blip.decode(features, text)
    for ours, by_hand in zip(seen.layers("words"), wanted, strict=True):
        torch.testing.assert_close(ours[0].double(), by_hand, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:-1]))
    maps = caption_maps(blip, features, [CAPTION], seam=blip.seams[0])[0]
    assert [word.text for word in maps.words] == ["Chest", "X-ray", "with", "a", "large", "left-sided", "pleural", "effusion"]
    mean = torch.stack(wanted).mean((0, 1))  # [T, S]
    start = CAPTION.index("effusion")
    spelt = [i for i, (a, b) in enumerate(blip.token_spans([CAPTION])[0]) if start <= a and b <= start + len("effusion")]
    assert spelt
    rows = mean[[len(blip.prompt_ids("")) + token - 1 for token in spelt]]  # each piece is predicted one place before it stands
    side = maps.words[-1].grid.shape[0]
    np.testing.assert_allclose(maps.words[-1].grid, rows.mean(0)[1:].view(side, side).numpy(), atol=1e-5)


def test_the_last_word_of_a_caption_that_leaves_no_place_for_the_end_token_has_a_map(blip):
    caption = "a " * (blip.max_positions - len(blip.prompt_ids("")))
    assert len(caption_maps(blip, blip.pixel_values(images(1)), [caption])[0].words) == 511


def test_layers_and_heads_can_be_chosen_and_average_to_the_default(blip):
    pixels = blip.pixel_values(images(1))

    def grid(**which):
        return caption_maps(blip, pixels, [CAPTION], options=MapOptions(**which))[0].words[3].grid

    assert layer_count(blip) == 2
    np.testing.assert_allclose(np.mean([grid(layers=[i]) for i in range(2)], axis=0), grid(), atol=1e-7)
    heads = blip.config.text_config.num_attention_heads
    np.testing.assert_allclose(np.mean([grid(heads=[i]) for i in range(heads)], axis=0), grid(), atol=1e-7)
    with pytest.raises(ConfigError, match="no layer 7; this model has 2"):
        grid(layers=[7])
    with pytest.raises(ConfigError, match="no head -1"):
        grid(heads=[-1])
    with pytest.raises(ConfigError, match="No layer is selected"):
        grid(layers=[])
    with pytest.raises(ConfigError, match="uses all layers"):
        grid(layers=[0], method="gradient")


def test_attention_is_computed_as_before_afterwards(blip):
    kinds = [type(module) for module in blip.model.modules()]
    caption_maps(blip, blip.pixel_values(images(1)), [CAPTION], options=MapOptions("gradient"))
    assert [type(module) for module in blip.model.modules()] == kinds
    assert not any(p.grad is not None for p in blip.model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_gives_maps_of_words(name, load):
    backbone = load(name)
    pixels = backbone.pixel_values(images(2))
    captions = [CAPTION, "A stone."]
    maps = caption_maps(backbone, pixels, captions, prompt=backbone.default_prompt)
    assert [len(of_caption.words) for of_caption in maps] == [8, 2]
    alone = caption_maps(backbone, pixels[1:], captions[1:], prompt=backbone.default_prompt)[0]
    for together, by_itself in zip(maps[1].words, alone.words, strict=True):
        np.testing.assert_allclose(together.grid, by_itself.grid, atol=1e-5)
    for word in (word for of_caption in maps for word in of_caption.words):
        assert word.grid.min() >= 0 and 0 < word.grid.sum() <= 1 + 1e-5
        assert CAPTION[word.start : word.end] == word.text or captions[1][word.start : word.end] == word.text
    text = backbone.text_batch(["A stone"], prompt=backbone.default_prompt)
    labelled = (text.labels[0] != -100).nonzero()[:, 0]
    spelled = len(backbone.token_spans(["A stone"])[0])
    text.labels[0, labelled[spelled:]] = -100  # an end token
    with torch.no_grad():
        loss = backbone.decode(backbone.encode(pixels[:1], prompt=backbone.default_prompt), text)[0]
    (maps,) = caption_maps(backbone, pixels[:1], ["A stone"], prompt=backbone.default_prompt)
    assert math.prod(word.probability for word in maps.words) == pytest.approx(math.exp(-float(loss) * spelled), rel=1e-3)


@pytest.mark.parametrize("name", GRADIENT)
def test_gradients_reach_frozen_models(name, load):
    backbone = load(name)
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    pixels = backbone.pixel_values(images(1))
    frozen = caption_maps(backbone, pixels, [CAPTION], prompt=backbone.default_prompt, options=MapOptions("gradient"))[0]
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert max(word.grid.max() for word in frozen.words) > 0
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(True)
    trained = caption_maps(backbone, pixels, [CAPTION], prompt=backbone.default_prompt, options=MapOptions("gradient"))[0]
    for ours, theirs in zip(frozen.words, trained.words, strict=True):
        np.testing.assert_allclose(ours.grid, theirs.grid, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("strategy", ["lora", "qlora", "lora-int8", "dora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_wrapped_and_quantised_models_have_maps(strategy, method, load, plugins):
    backbone = load("blip", strategy)
    apply_strategy(backbone.model, backbone.anatomy, get_strategy(strategy, plugins=plugins))
    maps = caption_maps(backbone, backbone.pixel_values(images(1)), [CAPTION], options=MapOptions(method))[0]
    assert len(maps.words) == 8 and all(word.grid.shape == (4, 4) for word in maps.words)


def test_a_fresh_adapter_changes_no_map(load, plugins):
    plain, wrapped = load("blip"), load("blip")
    apply_strategy(wrapped.model, wrapped.anatomy, get_strategy("lora", plugins=plugins))
    pixels = plain.pixel_values(images(1))
    for method in METHODS:
        for ours, theirs in zip(
            *(caption_maps(b, pixels, [CAPTION], options=MapOptions(method))[0].words for b in (plain, wrapped)), strict=True
        ):
            np.testing.assert_allclose(ours.grid, theirs.grid, rtol=1e-3, atol=1e-6)


def test_maps_from_stored_features_equal_those_from_pixels(load):
    for name in ("blip", "blip2-opt", "git", "vit-gpt2"):
        backbone = load(name)
        pixels = backbone.pixel_values(images(2))
        with torch.no_grad():
            features = backbone.forward_to(backbone.seams[0].name, pixels, prompt=backbone.default_prompt)
        given = {"prompt": backbone.default_prompt}
        for a, b in zip(
            caption_maps(backbone, pixels, [CAPTION] * 2, **given),
            caption_maps(backbone, features, [CAPTION] * 2, seam=backbone.seams[0], **given),
            strict=True,
        ):
            np.testing.assert_allclose(a.mean(), b.mean(), atol=1e-7)


def test_methods_that_a_model_does_not_have_say_which_it_has(load):
    queries, chat = load("blip2-opt"), load("qwen2.5-vl")
    with pytest.raises(BackboneError, match=r"not defined through the queries .* Use 'attention'"):
        caption_maps(queries, queries.pixel_values(images(1)), ["a"], options=MapOptions("gradient"))
    with pytest.raises(BackboneError, match="no attention of its vision tower"):
        caption_maps(chat, chat.pixel_values(images(1)), ["a"], options=MapOptions("rollout"))
    with pytest.raises(ConfigError, match="no method 'grad'"):
        caption_maps(chat, chat.pixel_values(images(1)), ["a"], options=MapOptions("grad"))


def _random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_rollout_by_loops():
    layers = [_random(1, 3, 4, 4, seed=i).softmax(-1) for i in range(3)]
    wanted = np.eye(4)
    for layer in layers:
        mean = layer[0].mean(0).numpy()
        step = np.array([[0.5 * mean[i, j] + 0.5 * (i == j) for j in range(4)] for i in range(4)])
        wanted = np.array([[sum(step[i, k] * wanted[k, j] for k in range(4)) for j in range(4)] for i in range(4)])
    np.testing.assert_allclose(rollout(layers)[0].numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(wanted.sum(1), 1, atol=1e-6)


def test_relevance_by_the_papers_equations_in_loops():
    vision = [_random(1, 2, 5, 5, seed=i) for i in range(2)]
    text = [_random(1, 2, 3, 3, seed=10 + i).tril() for i in range(2)]
    cross = [_random(1, 2, 3, 5, seed=20 + i) for i in range(2)]
    gradients = {id(a): _random(*a.shape, seed=30 + i) - 0.5 for i, a in enumerate((*vision, *text, *cross))}

    def weigh(a):  # equation 5, entry by entry
        g, heads = gradients[id(a)][0].numpy(), a.shape[1]
        return np.array(
            [
                [sum(max(g[h, i, j] * float(a[0, h, i, j]), 0) for h in range(heads)) / heads for j in range(a.shape[3])]
                for i in range(a.shape[2])
            ]
        )

    def norm(r):  # equations 8 and 9
        added = r - np.eye(len(r))
        sums = added.sum(1)
        return np.array([added[i] / sums[i] if sums[i] > 0 else added[i] * 0 for i in range(len(r))]) + np.eye(len(r))

    image = np.eye(5)
    for layer in vision:
        image = image + weigh(layer) @ image  # equation 6
    words, both = np.eye(3), np.zeros((3, 5))
    for own, across in zip(text, cross, strict=True):
        a = weigh(own)
        words, both = words + a @ words, both + a @ both  # equations 6 and 7
        both = both + norm(words).T @ weigh(across) @ norm(image)  # equation 10
    of = {
        name: [weighted(a, gradients[id(a)]) for a in several] for name, several in (("v", vision), ("t", text), ("c", cross))
    }
    np.testing.assert_allclose(self_relevance(of["v"])[0].numpy(), image, rtol=1e-5)
    np.testing.assert_allclose(cross_relevance(of["t"], of["c"], self_relevance(of["v"]))[0].numpy(), both, rtol=1e-5)
    assert torch.equal(weighted(vision[0], None), torch.zeros(1, 5, 5))
    assert torch.equal(normalised(torch.eye(3)[None]), torch.eye(3)[None])


def test_gradients_are_those_of_the_words_logit(blip):
    """Nudging one attention weight changes the logit as its gradient says."""
    pixels, text = blip.pixel_values(images(1)), blip.text_batch([CAPTION])
    with graph_below(blip.model), recorded(blip, {"words": blip.attention_layout.words}) as seen:
        logits = blip.decode(blip.encode(pixels), text)[1]
        layer = seen.layers("words")[-1]
        gradient = torch.autograd.grad(logits[0, 4, text.labels[0, 5]], layer)[0]
    where = (0, 0, 4, 7)  # the only head, the place that predicts label 5, image token 7
    module = blip.model.text_decoder.bert.encoder.layer[-1].crossattention.self
    original = torch.nn.Softmax.forward

    def nudged(by):
        def forward(self, scores):
            weights = original(self, scores)
            if nudged.active:
                weights = weights.clone()
                weights[where] += by
            return weights

        return forward

    def logit(by):
        nudged.active = False
        begin = module.register_forward_pre_hook(lambda *_: setattr(nudged, "active", True))
        end = module.register_forward_hook(lambda *_: setattr(nudged, "active", False))
        torch.nn.Softmax.forward = nudged(by)
        try:
            with torch.no_grad(), blip.eager_attention():
                return float(blip.decode(blip.encode(pixels), text)[1][0, 4, text.labels[0, 5]])
        finally:
            torch.nn.Softmax.forward = original
            begin.remove()
            end.remove()

    slope = (logit(0.5) - logit(-0.5)) / 1.0
    assert slope == pytest.approx(float(gradient[where]), rel=0.05, abs=1e-6)
    assert slope != 0
