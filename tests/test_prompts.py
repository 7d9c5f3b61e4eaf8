"""Images with prompts of their own: captions, losses and stored features are those of each image with its prompt alone."""

import pytest
import torch

import medgraft
from medgraft.captioning import caption_images
from medgraft.config import GenerationConfig
from medgraft.data.collate import PixelCache
from medgraft.errors import ConfigError, DataError
from medgraft.features import open_cached_features
from medgraft.inference import Inference
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import get_strategy
from medgraft.testing.samples import images
from medgraft.testing.tiny import tiny_models
from medgraft.training.collator import Collator
from medgraft.training.module import CaptioningModule
from medgraft.types import Example

PLUGINS = PluginManager()
PROMPTS = ["a picture of", "Is there a nodule in the left lung?", "a photo of", "", "What is seen on this image of the chest?"]
OPTIONS = GenerationConfig(max_new_tokens=5)


def _prepared(name, strategy="lora"):
    return prepare_model(name, get_strategy(strategy, plugins=PLUGINS), plugins=PLUGINS, kernels=())


@pytest.mark.parametrize("name", tiny_models(PLUGINS, of_each=1))
@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_image_is_captioned_as_with_its_prompt_alone(name, batch_size, tiny_folder):
    backbone, _, _ = _prepared(":".join(map(str, tiny_folder(name))))
    pictures = images(5)
    options = {"options": OPTIONS, "batch_size": batch_size}
    together = caption_images(backbone, pictures, prompt=PROMPTS, **options).captions
    alone = [
        caption_images(backbone, [picture], prompt=prompt, **options).captions[0]
        for picture, prompt in zip(pictures, PROMPTS, strict=False)
    ]
    assert together == alone


def test_images_are_in_order_and_unreadable_ones_in_their_places(tiny_folder, tmp_path):
    backbone, _, _ = _prepared(":".join(map(str, tiny_folder("blip"))))
    paths = [tmp_path / f"{number}.png" for number in range(70)]
    for path, picture in zip(paths, images(5) * 14, strict=True):
        picture.save(path)
    paths[33].write_text("no image")
    inference = Inference(backbone, "a picture of", batch_size=2)
    prompts = [PROMPTS[number % 3] if number % 4 else None for number in range(70)]
    found = [each for batch in inference.batches(paths, OPTIONS, prompts) for each in batch.images]
    assert [each.image for each in found] == paths
    assert [path for path, each in zip(paths, found, strict=True) if each.problem] == [paths[33]]
    for number in (0, 1, 34, 69):
        wanted = Inference(backbone, prompts[number] or "a picture of").caption([paths[number]], OPTIONS).captions
        assert [found[number].captions[0]] == wanted


@pytest.mark.parametrize("name", ["blip", "blip-vqa", "instructblip-t5", "blip2-t5", "vlm-llava"])
def test_the_loss_is_the_mean_over_the_labels_of_each_row_alone(name, tiny_folder, tmp_path):
    backbone, applied, _ = _prepared(":".join(map(str, tiny_folder(name))))
    examples = []
    for number, picture in enumerate(images(3)):
        picture.save(tmp_path / f"{number}.png")
        examples.append(
            Example(str(number), tmp_path / f"{number}.png", (), "train", prompt=PROMPTS[number] if number else None)
        )
    pairs = list(zip(examples, ("yes", "a nodule in the left lung", "no"), strict=True))
    collator = Collator(backbone, PixelCache(backbone, 0), "the run's prompt", 128)
    module = CaptioningModule(backbone, applied, "the run's prompt").eval()
    with torch.no_grad():
        together = module(**collator(pairs))["loss"]
        batches = [collator([pair]) for pair in pairs]
        counts = torch.tensor([int((batch["labels"] != -100).sum()) for batch in batches])
        alone = torch.stack([module(**batch)["loss"] for batch in batches])
    assert together.item() == pytest.approx((alone * counts).sum().item() / counts.sum().item(), rel=1e-5)
    assert ("prompts" in collator(pairs)) == name.startswith("instructblip")


def test_features_that_depend_on_the_prompt_are_stored_for_one_prompt_alone(tiny_folder, tmp_path):
    backbone, _, _ = _prepared(":".join(map(str, tiny_folder("instructblip-t5"))), "zero-shot")
    options = {"dtype": torch.float32, "max_gb": 1}
    one, prefix = open_cached_features(backbone, prompt="a picture of", **options)
    assert one.seam.name == "bridge" and "reused from seam 'bridge'" in str(prefix)
    several, prefix = open_cached_features(backbone, prompt=None, **options)
    assert several.seam.name == "vision" and "seam 'bridge' depends on the prompts, which differ" in str(prefix)
    picture = tmp_path / "a.png"
    images(1)[0].save(picture)
    for cached in (several, None):
        found = caption_images(backbone, [picture, picture], options=OPTIONS, prompt=PROMPTS[:2], cached=cached).captions
        assert found == [caption_images(backbone, [picture], options=OPTIONS, prompt=p).captions[0] for p in PROMPTS[:2]]
    assert several.built == 1


def test_a_prompt_that_leaves_no_room_is_an_error(tiny_folder):
    backbone, _, _ = _prepared(":".join(map(str, tiny_folder("blip"))))
    with pytest.raises(ConfigError, match="leaves none"):
        backbone.text_batch(["a", "b"], prompt=["short", "long " * 200], max_tokens=40)


def test_questions_in_python_one_for_all_or_one_for_each_image(tiny_folder):
    name, pictures = ":".join(map(str, tiny_folder("blip"))), images(2)
    options = {"backbone": name, "generation": OPTIONS}
    both = medgraft.caption(pictures, prompt=PROMPTS[:2], **options)
    assert both == [medgraft.caption(pictures[i], prompt=PROMPTS[i], **options) for i in range(2)]
    assert medgraft.caption(pictures, prompt=PROMPTS[0], **options)[0] == both[0]
    assert [each.captions[0] for each in medgraft.caption_each(pictures, prompt=PROMPTS[:2], **options)] == both
    with pytest.raises(DataError, match="3 prompts for 2 images"):
        medgraft.caption(pictures, prompt=PROMPTS[:3], **options)
