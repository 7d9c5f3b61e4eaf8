"""Captions counted in tokens: truncated ones, unknown tokens, and captions that generation cuts off."""

import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from medgraft.backbones import RemoteCaptioner, Usage
from medgraft.captioning import Generated, caption_images
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.inference import RemoteInference
from medgraft.plugin import PluginManager
from medgraft.testing.tiny import tiny_models
from medgraft.text_statistics import GenerationStatistics, TextStatistics, caption_warnings
from medgraft.token_counts import generation_statistics, text_statistics
from medgraft.types import Example

PLUGINS = PluginManager.from_environment()
MODELS = tiny_models(PLUGINS, of_each=2)
CHINESE = "右肺上叶结节"


def _examples(*captions, split="train"):
    return [Example(str(number), Path("x.png"), (caption, ""), split) for number, caption in enumerate(captions)]


def _load(name, tiny_folder):
    kind, folder = tiny_folder(name)
    return PLUGINS.get("backbone", kind).load(str(folder))


@pytest.fixture(scope="module")
def blip(blip_folder):  # BERT's real vocabulary
    return PLUGINS.get("backbone", "blip").load(str(blip_folder))


@pytest.fixture(scope="module", params=MODELS)
def model(request, tiny_folder):
    return _load(request.param, tiny_folder)


def _count(backbone, training, *, evaluated=(), prompt="", limit=128):
    return text_statistics(backbone, _examples(*training), _examples(*evaluated), prompt=prompt, max_text_tokens=limit)


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_longer_captions_are_those_that_training_truncates(model, prompt):
    captions = ["no acute findings in the chest."[:end] for end in range(4, 32, 3)] + ["a mass. " * 400]
    limit = len(model.prompt_ids(prompt)) - model.image_tokens + 12
    found = _count(model, captions, prompt=prompt, limit=limit)
    rows = model.text_batch(captions, prompt=prompt, max_tokens=limit).labels
    ended = sum(model.end_id in row.tolist() for row in rows)
    assert 0 < found.longer < len(captions)
    assert found.longer == len(captions) - ended
    assert (found.captions, found.max_text_tokens) == (len(captions), limit)


def test_lengths_by_hand(blip):
    # BERT: 3 words and a full stop; [DEC] and [SEP] count
    found = _count(blip, ["a lung mass."] * 98 + ["a mass."] * 1 + ["mass " * 50], limit=20)
    assert found.percentiles == {50: 6, 90: 6, 99: 6, 100: 52}
    assert found.longer == 1
    assert found.warnings() == [
        "1 of 100 training captions are longer than 20 tokens (train.max_text_tokens) and are truncated; "
        "the median is 6, the 99th percentile 6, the longest 52 tokens."
    ]
    assert not _count(blip, ["a lung mass."]).warnings()


def test_the_models_limit_is_named_where_it_is_lower(blip):
    found = _count(blip, ["mass " * 600], limit=4000)
    assert (found.max_text_tokens, found.longer) == (512, 1)
    assert "longer than 512 tokens (the model takes no more)" in found.warnings()[0]


def test_chinese_on_blip_is_unknown(blip):
    # some of them are in BERT's English vocabulary
    known = {character: blip.token_ids([character])[0][0] != blip.tokenizer.unk_token_id for character in CHINESE}
    found = _count(blip, ["a mass."], evaluated=[CHINESE, CHINESE])
    assert found.unknown == {character: 2 for character, is_known in known.items() if not is_known}
    assert found.unknown_share == pytest.approx(2 * (6 - sum(known.values())) / (3 + 12))
    (warning,) = found.warnings()
    assert "of all training and evaluated captions are unknown to the tokenizer" in warning and "肺 (2)" in warning
    assert found.captions == 1  # of training


def test_a_few_unknown_tokens_are_counted_without_a_warning(blip):
    found = _count(blip, ["a large mass in the left lung."] * 300 + ["肺"])
    assert 0 < found.unknown_share < 0.001 and found.unknown == {"肺": 1} and not found.warnings()


def test_unknown_words_stay_short(blip):
    assert list(_count(blip, ["x" * 5000]).unknown) == ["x" * 20]


@pytest.mark.parametrize("name", ["blip2-opt", "blip2-t5", "instructblip-vicuna", "vit-gpt2", "qwen2-vl"])
def test_tokenizers_of_bytes_know_every_text(name, tiny_folder):
    if name not in MODELS:
        pytest.skip(f"the plugin with {name} is not installed")
    backbone = _load(name, tiny_folder)
    end = backbone.tokenizer.convert_ids_to_tokens(backbone.end_id)
    found = _count(backbone, [CHINESE, "🫁 ∞", f"a {end} b"])
    assert (found.unknown_share, found.unknown) == (0.0, {})


def test_without_training_no_limit_applies(blip):
    long_prompt = "a photo of " * 30  # leaves no caption a place, which matters in training alone
    found = _count(blip, [], evaluated=["a mass."], prompt=long_prompt, limit=20)
    assert (found.captions, found.longer, found.percentiles, found.warnings()) == (0, 0, {}, [])
    with pytest.raises(ConfigError, match="leaves none"):
        _count(blip, ["a mass."], prompt=long_prompt, limit=20)


def test_records_keep_the_statistics(blip):
    found = _count(blip, ["mass " * 50, CHINESE], limit=20)
    assert TextStatistics.model_validate_json(found.model_dump_json()) == found


def test_many_captions_take_seconds(blip):
    captions = [f"axial ct of patient {number} showing a mass in the left lung, with effusion." for number in range(5_000)]
    start = time.process_time()
    assert _count(blip, captions).captions == 5_000
    assert time.process_time() - start < 3  # measured: 0.4 s


# captions that were cut off


class _Ending:
    """A forward hook that makes the end token certain from the call number `step` on, and impossible before."""

    def __init__(self, backbone, step):
        self.backbone, self.step, self.calls = backbone, step, 0

    def __call__(self, module, arguments, output):
        self.calls += 1
        if self.calls >= self.step:
            output.logits[:, -1, self.backbone.end_id] = 1e4
        else:
            output.logits[:, -1, self.backbone.end_id] = -1e4
        return output


def _decoder(backbone):
    model = backbone.model
    inner = (getattr(model, name, None) for name in ("text_decoder", "language_model", "decoder"))
    return next((module for module in inner if module is not None), model)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("step", "cut_off"), [(2, 0), (6, 0), (7, 3)], ids=["early", "at the last token", "never"])
def test_captions_without_an_end_are_counted(model, beams, step, cut_off):
    images = [Image.new("RGB", (40, 30), (shade, 90, 10)) for shade in (0, 100, 200)]
    hook = _decoder(model).register_forward_hook(_Ending(model, step))
    options = GenerationConfig(max_new_tokens=6, num_beams=beams)
    generated = caption_images(model, images, options=options, prompt=model.default_prompt, batch_size=3)
    hook.remove()
    assert (len(generated.captions), generated.cut_off, generated.max_new_tokens) == (3, cut_off, 6)


def test_rows_of_a_batch_are_counted_one_by_one(blip, monkeypatch):
    end, rows = blip.end_id, iter([[[5, 6, 7], [5, -1, 0], [-1, 0, 0]], [[5, 6, -1]]])
    ids = [torch.tensor(each).where(torch.tensor(each) >= 0, end) for each in rows]
    batches = iter(ids)
    monkeypatch.setattr(blip, "generate_ids", lambda *arguments: next(batches))
    images = [Image.new("RGB", (8, 8))] * 4
    assert caption_images(blip, images, options=GenerationConfig(max_new_tokens=3), batch_size=3).cut_off == 1


def test_the_models_own_limit_counts_too(tiny_folder):
    backbone = _load("blip2-opt", tiny_folder)
    hook = _decoder(backbone).register_forward_hook(_Ending(backbone, 10**6))
    generated = caption_images(backbone, [Image.new("RGB", (8, 8))], options=GenerationConfig(max_new_tokens=10**5))
    hook.remove()
    assert (generated.cut_off, generated.max_new_tokens) == (1, backbone.max_positions - len(backbone.prompt_ids("")))


_CUT_OFF = "{} of 3 generated captions were cut off at {} tokens (generation.max_new_tokens)."
_TRY = (
    "Raise it; if captions repeat themselves, try generation.no_repeat_ngram_size=3 or generation.repetition_penalty=1.2, or "
    "train longer, so that the model learns where a caption ends."
)
_LONG = "33% of the references are longer than {} tokens (generation.max_new_tokens), the median is 4."


@pytest.mark.parametrize(
    ("cut_off", "limit", "expected"),
    [
        (0, 7, []),
        (None, 7, []),
        (1, 7, [_CUT_OFF.format(1, 7)]),
        (2, 7, [_CUT_OFF.format(2, 7) + " " + _TRY]),
        (0, 6, [_CUT_OFF.format(0, 6) + " " + _LONG.format(6)]),
        (1, 6, [_CUT_OFF.format(1, 6) + " " + _LONG.format(6)]),
    ],
)
def test_one_line_tells_what_was_cut_off(blip, cut_off, limit, expected):
    examples = _examples("a lung mass.", "a lung mass.", "a mass in the left lung.", split="test")  # 4, 4 and 7 tokens
    assert generation_statistics(blip, examples, Generated(["a"] * 3, cut_off, limit)).warnings() == expected


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ([], None),
        (["a mass."], None),
        (["a mass.", "a mass."], None),  # two may well be alike
        (["a mass.", "a cyst.", "a mass.", "clear."], None),
        (["a mass.", "a cyst.", " a mass."], "2 of 3 generated captions are equal ('a mass.'). The model may ignore the image"),
        (["a mass " * 20] * 3, "3 of 3 generated captions are equal ('" + ("a mass " * 20)[:60].strip() + "...')."),
        ([""], "1 of 1 generated captions are empty. Try generation.min_new_tokens=5"),
        (["", "a mass.", " "], "2 of 3 generated captions are empty."),
    ],
)
def test_one_line_tells_that_most_captions_are_alike(captions, expected):
    found = caption_warnings(captions)
    assert [line[: len(expected or "")] for line in found] == ([expected] if expected else [])


def test_without_a_tokenizer_references_are_not_counted():
    found = generation_statistics(None, _examples("a mass."), Generated(["a"], 1, 5))
    assert found == GenerationStatistics(captions=1, cut_off=1, max_new_tokens=5)
    assert str(found.model_copy(update={"cut_off": None})).startswith("An unknown number of 1 generated captions")


class _Silent(RemoteCaptioner):
    """An API that does not say whether it was cut off."""

    load = fingerprint = estimate = classmethod(lambda cls, *given: None)

    def caption(self, images, *, prompt, options):
        return ["a mass."] * len(images)

    def usage(self):
        return Usage()


def test_an_api_that_does_not_say_leaves_it_unknown():
    generated = RemoteInference(_Silent(), "").caption([Image.new("RGB", (8, 8))] * 2)
    assert generated == Generated(["a mass."] * 2, None, 96)
