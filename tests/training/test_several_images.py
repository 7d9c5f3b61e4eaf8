"""Studies of several images: their features lie side by side, and one of fewer images is computed as it is alone."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from medgraft.acceleration import causal_loss
from medgraft.acceleration.graphed_decoding import StaticGenerator
from medgraft.backbones.blip import BlipBackbone
from medgraft.backbones.side_by_side import refuse_several_images, side_by_side
from medgraft.captioning import captioned_batches
from medgraft.config import GenerationConfig, run_config
from medgraft.data import open_image
from medgraft.data.augmentation import Views, recurring_images
from medgraft.data.collate import CaptionPairs, PixelCache
from medgraft.data.roco import Roco
from medgraft.errors import BackboneError, ConfigError
from medgraft.features import load_resident, open_cached_features
from medgraft.inference import Inference
from medgraft.prepare import prepare_model
from medgraft.saliency import MapOptions, caption_maps
from medgraft.strategies import get_strategy
from medgraft.testing.backbone_checks import backbone_findings
from medgraft.training import CaptioningModule, build_features
from medgraft.training.collator import Collator

CASES = ("blip", "blip-vqa", "vit-gpt2", "clip-bart")


@pytest.fixture(scope="module")
def studies(phantoms_folder):
    """Four studies of 1, 2, 2 and 3 images, with captions of different lengths."""
    train = iter([example for example in Roco().read(phantoms_folder) if example.split == "train"])
    made = [replace(next(train), more_images=tuple(next(train).image for _ in range(more))) for more in (0, 1, 1, 2)]
    return [replace(each, captions=(each.captions[0] + " A second sentence." * n,)) for n, each in enumerate(made)]


def _prepared(name, tiny_folder, plugins, kernels="auto", strategy="encoder-frozen"):
    kind, folder = tiny_folder(name)
    strategy = get_strategy(strategy, plugins=plugins)
    backbone, applied, _ = prepare_model(f"{kind}:{folder}", strategy, plugins=plugins, kernels=kernels)
    return backbone, CaptioningModule(backbone, applied, backbone.default_prompt).eval()


@pytest.mark.parametrize("kernels", ["auto", "none"])
@pytest.mark.parametrize("name", CASES)
def test_an_uneven_batch_is_computed_as_each_study_is_alone(name, kernels, tiny_folder, plugins, studies):
    backbone, module = _prepared(name, tiny_folder, plugins, kernels)
    collator, pairs = Collator(backbone, PixelCache(backbone, 0), "", 160), list(CaptionPairs(studies))
    whole = collator(pairs)
    assert whole["image_counts"] == [1, 2, 2, 3] and len(whole["pixel_values"]) == 8
    assert "image_counts" not in collator(pairs[1:3])
    loss = module(**whole)["loss"]
    loss.backward()
    gradient = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    batches = [collator([pair]) for pair in pairs]
    labels = [int((batch["labels"] != -100).sum()) for batch in batches]
    alone = sum(module(**batch)["loss"] * count for batch, count in zip(batches, labels, strict=True)) / sum(labels)
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    for found, parameter in zip(gradient, [p for p in module.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["blip", "vit-gpt2", "clip-bart"])
def test_every_image_counts_and_their_order_does_not(name, tiny_folder, plugins, studies):
    backbone, _ = _prepared(name, tiny_folder, plugins)
    inference, (study,) = Inference(backbone), [studies[3].images]
    likelihood = lambda *images: inference.log_likelihood([images], "an effusion on the left.")[0]  # noqa: E731
    both = likelihood(*study[:2])
    assert abs(both - likelihood(study[0])) > 1e-6 and abs(both - likelihood(study[0], study[2])) > 1e-6
    assert both == pytest.approx(likelihood(*study[1::-1]), abs=1e-5)


def test_each_image_of_a_study_has_a_view_of_its_own(studies):
    config = run_config(backbone="blip", strategy="lora", data="phantoms", overrides=["augmentation.rotation=5"])
    ((example, _),) = [CaptionPairs(studies, Views.of(config))[3]]
    assert [image.path for image in example.images] == list(studies[3].images)
    assert all(image.view is not None for image in example.images)
    fixed = config.model_copy(update={"features": config.features.model_copy(update={"views": 2})})
    assert len(set(recurring_images(fixed, studies))) == 16


def test_rows_without_labels_are_left_out_of_the_loss(tiny_folder, plugins, studies):
    backbone, module = _prepared("blip", tiny_folder, plugins)
    batch = Collator(backbone, PixelCache(backbone, 0), "", 160)(list(CaptionPairs(studies)))
    batch["labels"][0] = -100  # as of what fills a last batch up: the only study of one image
    assert torch.isfinite(module(**batch)["loss"])


def test_stored_features_are_those_of_each_image_and_give_the_same_losses(tiny_folder, plugins, studies, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path))
    backbone, module = _prepared("blip", tiny_folder, plugins)
    config = run_config(backbone="blip", strategy="encoder-frozen", data="phantoms")
    pairs, cache = list(CaptionPairs(studies)), PixelCache(backbone, 0)
    plain = Collator(backbone, cache, "", 160)
    expected = [module(**plain(rows))["loss"].item() for rows in (pairs, pairs[1:3])]
    cached, _ = open_cached_features(backbone, dtype=torch.float32, prompt="", max_gb=1)
    build_features(cached, config, studies[1:])  # the first study's image comes as pixels
    assert cached.built == 7
    module.prefix = backbone.seams[0]
    stored = Collator(backbone, cache, "", 160, cached)
    mixed = stored(pairs)
    assert mixed["feature_rows"].tolist() == list(range(1, 8)) and len(mixed["pixel_values"]) == 1
    assert [module(**batch)["loss"].item() for batch in (mixed, stored(pairs[1:3]))] == expected
    build_features(cached, config, studies)
    module.resident = load_resident(cached, [i for each in studies for i in each.images], torch.device("cpu"), 10**9)
    resident = Collator(backbone, cache, "", 160, cached, module.resident.rows)
    assert [module(**resident(rows))["loss"].item() for rows in (pairs, pairs[1:3])] == expected


@pytest.mark.parametrize("name", ["blip", "vit-gpt2"])
def test_captions_of_uneven_studies_are_those_of_each_alone(name, tiny_folder, plugins, studies, tmp_path):
    backbone, _ = _prepared(name, tiny_folder, plugins)
    options = GenerationConfig(max_new_tokens=12, num_beams=2)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = (studies[0].image, tmp_path / "broken.png")
    order = [each.images for each in (studies[3], studies[1], studies[0], studies[2])]
    order[3:3] = [broken, studies[0].image, tuple(Image.open(path).convert("RGB") for path in studies[1].images)]
    found = [each for batch in captioned_batches(backbone, order, options=options, batch_size=2) for each in batch.images]
    assert [each.image for each in found] == order
    assert [bool(each.problem) for each in found] == [False, False, False, True, False, False, False]
    assert "broken.png" in found[3].problem
    for each in found[:3] + found[4:]:
        ((alone,),) = (batch.images for batch in captioned_batches(backbone, [each.image], options=options))
        assert each.captions == alone.captions
    assert found[1].captions == found[5].captions  # files or opened


def test_kernels_of_accelerators_compute_the_same_for_studies(tiny_folder, plugins, studies):
    backbone, module = _prepared("blip", tiny_folder, plugins, "none")
    batch = Collator(backbone, PixelCache(backbone, 0), "", 160)(list(CaptionPairs(studies)))
    expected = module(**batch)["loss"].item()
    with torch.no_grad():
        each = backbone.encode(backbone.pixel_values([open_image(path) for path in studies[3].images]))
    pairs, singles = (next(side_by_side(each[[0, 1, 2, 0]], [n] * (4 // n)))[1] for n in (2, 1))
    inputs = [backbone.generation_inputs(len(of), of.device, "", GenerationConfig(max_new_tokens=9)) for of in (pairs, singles)]
    plain = [backbone.captions(backbone.generate_ids(of, *given)) for of, given in zip((pairs, singles), inputs, strict=True)]
    undo = causal_loss.install(backbone)
    assert isinstance(backbone.loss, causal_loss.CausalLoss)
    assert module(**batch)["loss"].item() == pytest.approx(expected, rel=1e-5)
    static = StaticGenerator(backbone, graph=False)
    for _ in range(2):  # from studies of two images to single ones and back
        found = [backbone.captions(static(of, *given)) for of, given in zip((pairs, singles), inputs, strict=True)]
        assert found == plain
    undo()


def test_losses_of_studies_are_those_of_training(tiny_folder, plugins, studies):
    backbone, module = _prepared("blip", tiny_folder, plugins)
    batch = Collator(backbone, PixelCache(backbone, 0), "", 160)(list(CaptionPairs(studies)))
    inference = Inference(backbone, batch_size=3)
    found = inference.mean_loss([each.images for each in studies], [each.captions[0] for each in studies], 160)
    assert found == pytest.approx(module(**batch)["loss"].item(), rel=1e-5)


def test_maps_are_of_the_first_image_beside_the_others(tiny_folder, plugins, studies):
    backbone, _ = _prepared("blip", tiny_folder, plugins)
    pixels = Inference(backbone).pixel_values(studies[1].images)
    (alone,), (both,), (turned,) = (
        caption_maps(backbone, inputs, ["an effusion."]) for inputs in (pixels[:1], pixels, pixels.flip(0))
    )
    assert alone.words[0].grid.shape == both.words[0].grid.shape
    shares = [maps.words[0].grid.sum() for maps in (alone, both, turned)]
    assert shares[0] > 0.9 and shares[1] + shares[2] == pytest.approx(shares[0], rel=0.1)  # class tokens have the rest
    with pytest.raises(ConfigError, match=r"takes one image, and a study here has 2. Use method 'attention'."):
        caption_maps(backbone, pixels, ["an effusion."], options=MapOptions(method="gradient"))


def test_other_backbones_refuse_and_name_those_that_take_them(tiny_folder, plugins, studies):
    kind, folder = tiny_folder("git")
    backbone = plugins.get("backbone", kind).load(str(folder))
    message = (
        r"^GitBackbone sees one image at a time, and a study has several together: set data.images=first, or use a backbone "
        r"that takes them: blip, .*vit-gpt2\.$"
    )
    with pytest.raises(BackboneError, match=message):
        next(captioned_batches(backbone, [studies[1].images]))
    with pytest.raises(BackboneError, match=message):
        refuse_several_images(type(backbone), plugins)
    assert next(captioned_batches(backbone, [studies[0].images])).images[0].captions


def test_features_of_studies_stay_in_their_order():
    features = torch.arange(6.0).view(6, 1, 1)
    found = {tuple(rows): of.flatten(1).tolist() for rows, of in side_by_side(features, [1, 2, 1, 2])}
    assert found == {(0, 2): [[0], [3]], (1, 3): [[1, 2], [4, 5]]}


class _FirstAlone(BlipBackbone):
    """Reads a fixed number of tokens."""

    def decode(self, features, text):
        return super().decode(features[:, :17], text)


def test_the_kit_finds_a_backbone_that_reads_the_first_image_alone(blip_folder):
    problems = [
        each.problem for each in backbone_findings(_FirstAlone, str(blip_folder)) if "every image of a study" in each.check
    ]
    assert problems == ["the second image of a study does not change its logits"]
