"""BLIP for question answering against transformers' own, with the special tokens of the published checkpoints."""

import pytest
import torch
import transformers

from medgraft.backbones.blip_vqa import BlipVqaBackbone
from medgraft.config import GenerationConfig
from medgraft.errors import ConfigError
from medgraft.saliency import caption_maps
from medgraft.testing.samples import images
from medgraft.testing.tiny import save_pretrained

QUESTIONS = ["is the liver healthy?", "what disease is seen in the lower left lung?"]
ANSWERS = ["no", "atelectasis, effusion"]
PAD, CLS, SEP, DEC = 0, 101, 102, 30522


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Random weights, and a tokenizer whose special tokens have the ids of bert-base-uncased."""
    folder = tmp_path_factory.mktemp("vqa")
    words = [f"[unused{number}]" for number in range(30522)]
    words[PAD], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words[1000 : 1000 + 2 * len(letters)] = [*letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={**sizes, "encoder_hidden_size": 32, "initializer_range": 0.3},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "initializer_range": 0.3},
    )
    torch.manual_seed(0)
    save_pretrained(
        folder, transformers.BlipForQuestionAnswering(config), transformers.BertTokenizer(str(folder / "vocab.txt")),
        transformers.BlipImageProcessorPil(size={"height": 32, "width": 32}),
    )  # fmt: skip
    return BlipVqaBackbone.load(str(folder))


@pytest.fixture
def pixels(backbone):
    return backbone.pixel_values(images(2))


@pytest.fixture
def reference(backbone):
    """The same weights in transformers alone."""
    return transformers.BlipForQuestionAnswering.from_pretrained(backbone.source).eval()


def _asked(backbone, question):
    return torch.tensor([backbone.tokenizer(question)["input_ids"]])


def test_a_batch_is_question_and_answer_with_the_published_tokens(backbone):
    text = backbone.text_batch(ANSWERS, prompt=QUESTIONS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        asked = text.input_ids[row][text.attention_mask[row] == 1].tolist()
        assert asked == [CLS, *backbone.token_ids([question])[0], SEP]
        assert text.labels[row][text.labels[row] != -100].tolist() == [*backbone.token_ids([answer])[0], SEP]
    assert (text.input_ids[0, text.attention_mask[0] == 0] == PAD).all() and text.attention_mask[0].min() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_labels_of_transformers_losses(backbone, reference, pixels, smoothing, monkeypatch):
    monkeypatch.setattr(backbone.config.text_config, "label_smoothing", smoothing)
    reference.text_decoder.label_smoothing = smoothing
    text = backbone.text_batch(ANSWERS, prompt=QUESTIONS)
    losses, counts = [], []
    with torch.no_grad():
        loss, _ = backbone.decode(backbone.encode(pixels), text)
        for row in range(2):
            labels = text.labels[row : row + 1, : int((text.labels[row] != -100).sum())]
            words = torch.nn.functional.pad(labels, (1, 0), value=DEC)
            # one question at a time: transformers 5 does not hide a question's padding from the decoder
            output = reference(
                input_ids=_asked(backbone, QUESTIONS[row]), pixel_values=pixels[row : row + 1], decoder_input_ids=words,
                labels=words.masked_fill(words == DEC, -100),
            )  # fmt: skip
            losses.append(output.loss)
            counts.append(labels.shape[1])
    wanted = sum(each * count for each, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_transformers(backbone, reference, pixels, beams):
    for question in QUESTIONS:
        ids = _asked(backbone, question).expand(2, -1)
        wanted = reference.generate(ids, pixels, max_new_tokens=8, num_beams=beams, do_sample=False)[:, 1:]
        options = GenerationConfig(max_new_tokens=8, num_beams=beams)
        with torch.no_grad():
            features = backbone.encode(pixels)
            inputs = backbone.generation_inputs(2, features.device, question, options)
            found = backbone.generate_ids(features, *inputs)
        assert torch.equal(found, wanted)
        assert len(set(map(tuple, found.tolist()))) == 2, "both images have the same answer, which shows little"


def test_maps_are_the_answers_attention_over_that_of_the_questions_words(backbone, reference, pixels):
    question, answer = QUESTIONS[1], ANSWERS[1]
    ids, read = _asked(backbone, question), torch.tensor([[DEC, *backbone.token_ids([answer])[0]]])
    with torch.no_grad():
        image = reference.vision_model(pixels[:1]).last_hidden_state
        asked = reference.text_encoder(input_ids=ids, encoder_hidden_states=image, output_attentions=True)
        told = reference.text_decoder(
            input_ids=read, encoder_hidden_states=asked.last_hidden_state, output_attentions=True, use_cache=False
        )
    to_question, to_image = (
        torch.stack(output.cross_attentions).mean((0, 2))[0] for output in (told, asked)
    )  # [answer, question], [question, patches]
    place = len(backbone.token_ids(["atelectasis, "])[0])
    wanted = (to_question @ to_image)[place : place + len("effusion")].mean(0)[1:].view(4, 4)
    # beside a longer question, this one's padding gets no share of it
    maps = caption_maps(backbone, pixels, [answer, "yes"], prompt=[question, f"{question} {question}"])[0]
    assert [word.text for word in maps.words] == ["atelectasis", "effusion"]
    torch.testing.assert_close(torch.tensor(maps.words[1].grid).float(), wanted, rtol=1e-4, atol=1e-6)


def test_a_question_longer_than_the_encoder_reads_is_an_error(backbone):
    with pytest.raises(ConfigError, match=r"begins 'why why .* has 1538 tokens, and the encoder reads at most 512\. Shorten"):
        backbone.text_batch(["yes"], prompt="why " * 512)
