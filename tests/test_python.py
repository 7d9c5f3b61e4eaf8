"""medgraft in Python: images as files, PIL images and arrays; evaluation of given images; frames."""

import re

import numpy as np
import pytest
from PIL import Image

import medgraft
from medgraft.config import GenerationConfig
from medgraft.data import open_image
from medgraft.data.given_images import given_image
from medgraft.errors import DataError

SHORT = GenerationConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def model(blip_folder):
    return medgraft.load_backbone(f"blip:{blip_folder}", dtype="fp32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures with EXIF orientation, transparency, 16 bits, a palette and one channel."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    colours = noise.integers(0, 256, (40, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours[..., :3]).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(colours).save(folder / "clear.png")
    Image.fromarray(noise.integers(0, 4000, (40, 30)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(colours[..., :3]).quantize(16).save(folder / "palette.png")
    Image.fromarray(colours[..., 0]).save(folder / "grey.png")
    return sorted(folder.iterdir())


def test_pil_images_are_what_their_files_are(files):
    for file in files:
        assert given_image(Image.open(file)).tobytes() == open_image(file).tobytes(), file


def test_captions_of_files_images_and_arrays_are_equal(model, files):
    expected = medgraft.caption(files, backbone=model, generation=SHORT)
    assert len(expected) == len(set(files)) and all(isinstance(caption, str) for caption in expected)
    images = [open_image(file) for file in files]
    arrays = [np.asarray(image) for image in images]
    for given in (list(map(str, files)), list(map(Image.open, files)), arrays, [array / 255 for array in arrays]):
        assert medgraft.caption(given, backbone=model, generation=SHORT) == expected
    batch = np.stack([array for array in arrays if array.shape == arrays[0].shape])
    assert len(medgraft.caption(batch, backbone=model, generation=SHORT)) == len(batch) > 1
    for given in (files[0], str(files[0]), images[0], arrays[0], arrays[0].astype(np.float32) / 255):
        assert medgraft.caption(given, backbone=model, generation=SHORT) == expected[0]
        assert next(medgraft.caption_each(given, backbone=model, generation=SHORT)).captions == (expected[0],)
    one, other = (medgraft.explain(given, backbone=model, caption="a nodule") for given in (files[0], arrays[0]))
    assert np.array_equal(one.heat(1), other.heat(1)) and one.maps.words[1].text == "nodule"


def test_arrays_of_one_channel_and_of_truth_values():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for array in (grey, grey[..., None], grey / 255, (grey / 255).astype(np.float32)):
        assert given_image(array).tobytes() == Image.fromarray(grey).convert("RGB").tobytes()
    assert given_image(grey > 100).tobytes() == Image.fromarray((grey > 100) * np.uint8(255)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"this one has \[3, 8, 9\]. Move the channels to the end"),
        (np.zeros((8, 9, 4), np.uint8), r"\[H, W\] or \[H, W, 3\], this one has \[8, 9, 4\]"),
        (np.zeros(9, np.uint8), r"this one has \[9\]"),
        (np.zeros((0, 9), np.uint8), r"this one has \[0, 9\]"),
        (np.zeros((8, 9), np.int16), "uint8 or float, this one is int16"),
        (np.full((8, 9), 255.0), "from 0 to 1, this one from 255 to 255"),
        (np.full((8, 9), np.nan), "from 0 to 1, this one from nan to nan"),
        (Image.new("I;16", (8, 9)), "it has no contrast"),
        (7, "a path, a PIL image or a NumPy array .* not builtins.int"),
        (None, "not builtins.NoneType"),
    ],
)
def test_what_is_no_image_is_refused_before_a_model_is_loaded(image, message):
    with pytest.raises(DataError, match=rf"^Image 0 \(counted from 0\): .*{message}") as raised:
        medgraft.caption([image], backbone="blip:/nowhere")
    assert "\n" not in str(raised.value)


def test_given_images_are_scored_as_a_data_set_of_them_is(model, files, tmp_path):
    captions = ["a nodule.", ["no finding.", "normal."], "an effusion.", "a mass.", "a fracture."]
    found = medgraft.evaluate(list(zip(files, captions, strict=True)), backbone=model, generation=SHORT)
    assert sorted(found.predictions) == sorted(map(str, files))
    assert found.references[str(files[1])] == ("no finding.", "normal.")
    pairs = [(open_image(file), caption) for file, caption in zip(files, captions, strict=True)]
    again = medgraft.evaluate(pairs, backbone=model, generation=SHORT)
    assert sorted(again.predictions) == ["0", "1", "2", "3", "4"]
    assert again.metrics == pytest.approx(found.metrics)
    one = medgraft.evaluate((np.asarray(pairs[0][0]), "a nodule."), backbone=model, generation=SHORT)
    assert one.predictions == {"0": found.predictions[str(files[0])]}
    for wrong in ([files[0]], [(files[0], 3)], [(files[0], "a", "b")]):
        with pytest.raises(DataError, match=r"^Pair 0 \(counted from 0\) is not \(image, caption\)"):
            medgraft.evaluate(wrong, backbone="blip:/nowhere")


def test_frames(model, phantoms_folder, tmp_path):
    evaluation = medgraft.evaluate(f"phantoms:{phantoms_folder}", backbone=model, generation=SHORT)
    frame = evaluation.to_frame()
    assert frame.index.name == "id" and list(frame.index) == sorted(evaluation.predictions)
    first = frame.iloc[0]
    assert first.caption == evaluation.predictions[frame.index[0]] and first.references == evaluation.references[frame.index[0]]
    assert frame["rouge_l"].mean() == pytest.approx(evaluation.metrics["rouge_l"])
    config = medgraft.run_config(backbone="blip-nano", strategy="zero-shot", data="phantoms", max_images=6)
    record = medgraft.train(config, tmp_path / "run", progress=False)
    for runs in (medgraft.records_frame([record]), medgraft.records_frame(tmp_path / "run")):
        assert len(runs) == 1 and runs["metrics.cider"][0] == record.metrics["cider"]
        assert runs["config.train.learning_rate"][0] == config.train.learning_rate


def test_data_are_loaded_as_commands_load_them(phantoms_folder):
    data = medgraft.load_data(f"phantoms:{phantoms_folder}", splits=["test"])
    assert data.split("test") and not data.split("train")
    assert medgraft.open_image(data.split("test")[0].image).mode == "RGB"
    with pytest.raises(DataError, match=re.escape("There is no /nowhere")):
        medgraft.load_data("csv:/nowhere")
