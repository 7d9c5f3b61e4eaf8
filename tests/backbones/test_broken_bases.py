"""A base that is not whole, or is another model, is refused in one line before anything is trained; nothing is unpickled."""

import shutil

import pytest
import torch
import transformers
from checkpoint_layouts import merges, read_json, word_list, write_json, write_weights
from safetensors.torch import load_file

from medgraft.benchmark import dry_run_suite
from medgraft.cli.main import main
from medgraft.config import SuiteConfig
from medgraft.errors import BackboneError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.strategies import Strategy
from medgraft.testing.tiny import tiny_models

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 990345061\n"
TINY = tiny_models(PluginManager(), of_each=2)


class _Trap:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return open, ("trapped", "w")


@pytest.fixture
def base(tiny_folder, tmp_path):
    """`base(TINY)` gives (backbone, a copy of its folder)."""

    def copy(tiny="blip"):
        backbone, folder = tiny_folder(tiny)
        return backbone, shutil.copytree(folder, tmp_path / "base")

    return copy


def _load(backbone, folder):
    return load_model(f"{backbone}:{folder}", Strategy(), plugins=PluginManager())


def _refused(backbone, folder, match):
    with pytest.raises(BackboneError, match=match) as caught:
        _load(backbone, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _as_bin(folder, **options):
    write_weights(folder, load_file(folder / WEIGHTS), "bin", **options)
    (folder / WEIGHTS).unlink()


def _without_tokenizer(folder, keep=()):
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(keep):
        (folder / name).unlink()


@pytest.mark.parametrize("keep", [(), ("tokenizer_config.json",)], ids=["no file", "settings alone"])
@pytest.mark.parametrize("tiny", TINY)
def test_a_base_without_a_tokenizer_is_refused(tiny, keep, base):
    backbone, folder = base(tiny)
    _without_tokenizer(folder, keep)
    _refused(backbone, folder, r"base has no tokenizer: tokenizer\.json, .* missing\. Copy the tokenizer's files")


def test_it_is_refused_before_training(base, phantoms_folder, tmp_path, capsys):
    _, folder = base()
    _without_tokenizer(folder)
    words = ["train", "--backbone", f"blip:{folder}", "--strategy", "lora", "--data", f"roco:{phantoms_folder}"]
    assert main([*words, "--out", str(tmp_path / "run"), "-q"]) == 2
    assert f"medgraft: {folder} has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()


def _other_vocabulary(folder):
    words = read_json(folder, "tokenizer.json")
    words["model"]["vocab"] |= {f"word{i}": 1000 + i for i in range(500)}
    write_json(folder, "tokenizer.json", words)


def _no_merges(folder):
    merges(folder, folder, "GPT2Tokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()


def _half_a_word_list(folder):
    word_list(folder, folder)
    (folder / "tokenizer.json").unlink()
    words = (folder / "vocab.txt").read_text().split("\n")
    (folder / "vocab.txt").write_text("\n".join(words[: len(words) // 2]))


def _sentencepiece(folder):
    (folder / "tokenizer.json").unlink()
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"})
    (folder / "spiece.model").write_bytes(b"\n\x0e\n\x05<pad>\x15")


@pytest.mark.parametrize(
    ("tiny", "change", "match"),
    [
        ("blip", _other_vocabulary, r"has a tokenizer of 69\d tokens, but its model knows only 193: it is of another model"),
        ("vit-gpt2", _no_merges, r"has a vocab\.json without its merges\.txt"),
        ("blip", _half_a_word_list, r"vocab\.txt is cut off or of another model: it makes 9\d tokens, and the model has 193"),
        ("blip2-t5", _sentencepiece, r"of SentencePiece alone\. To read it: pip install sentencepiece( protobuf)?$"),
        (
            "instructblip-t5", lambda folder: shutil.rmtree(folder / "qformer_tokenizer"),
            r"base/qformer_tokenizer has no tokenizer: tokenizer\.json, .* is missing",
        ),
        (
            "blip", lambda folder: (folder / "preprocessor_config.json").unlink(),
            r"has no image processor: preprocessor_config\.json or processor_config\.json is missing",
        ),
    ],
)  # fmt: skip
def test_tokenizers_and_image_processors_that_are_not_the_models_own(tiny, change, match, base):
    if change is _sentencepiece and transformers.utils.is_sentencepiece_available():
        pytest.skip("sentencepiece is installed")
    backbone, folder = base(tiny)
    change(folder)
    _refused(backbone, folder, match)


SETTINGS = ["config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("name", [*SETTINGS, WEIGHTS, "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda whole: POINTER, r"/{name} is a Git LFS pointer, not the file itself\. Run `git lfs pull`"),
        (lambda whole: b"", r"/{name} is empty\. Download it again"),
        (lambda whole: whole[: len(whole) // 2], r"/{name} (was cut off: it has [\d,]+|is no JSON, perhaps cut off: .*)"),
        (lambda whole: b"<!DOCTYPE html><html>404" * 9, r"/{name} is no (JSON|safetensors file|file of torch)"),
    ],
    ids=["pointer", "empty", "half", "another file"],
)
def test_files_that_are_not_whole_are_named(name, content, match, base):
    backbone, folder = base()
    if name == "pytorch_model.bin":
        _as_bin(folder)
    (folder / name).write_bytes(content((folder / name).read_bytes()))
    _refused(backbone, folder, match.format(name=name.replace(".", r"\.")))


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards_that_are_not_whole_are_named(kind, base):
    backbone, folder = base()
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_weights(folder, tensors, kind, shards=3)
    second = sorted(folder.glob(f"*.{kind}"))[1]
    second.write_bytes(second.read_bytes()[:5000])
    _refused(backbone, folder, rf"{second.name} was cut off")
    second.unlink()
    _refused(backbone, folder, rf"index\.json lists {second.name}, which is missing")
    next(folder.glob("*.index.json")).write_text("{}")
    _refused(backbone, folder, r"index\.json lists no weight files")


def test_old_files_of_torch_are_read_and_cut_off_ones_named(base):
    backbone, folder = base()
    _as_bin(folder, _use_new_zipfile_serialization=False)
    _load(backbone, folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    _refused(backbone, folder, r"pytorch_model\.bin was cut off or damaged")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(zipped, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone, folder = base()
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    trapped = {**tensors, "trap": _Trap()}
    torch.save(trapped, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    _refused(backbone, folder, r"pytorch_model\.bin holds Python objects other than tensors, which could run code")
    with pytest.raises(BackboneError, match="holds Python objects"):
        PluginManager().get("backbone", backbone).fingerprint(str(folder))
    assert not (tmp_path / "trapped").exists()


def _question_answering(folder):
    config = transformers.BlipConfig.from_pretrained(folder)
    transformers.BlipForQuestionAnswering(config).save_pretrained(folder)


def _nameless(change):
    def go(folder):
        change(folder)
        config = read_json(folder, "config.json")
        del config["architectures"]
        write_json(folder, "config.json", config)

    return go


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_question_answering, r"is BlipForQuestionAnswering by its config\.json, not BlipForConditionalGeneration: \d+ of its"),
        (_nameless(_question_answering), r"is another model, not BlipForConditionalGeneration: \d+ .* such as text_encoder\."),
    ],
)
def test_another_architecture_is_refused_by_name(change, match, base):
    backbone, folder = base()
    change(folder)
    _refused(backbone, folder, match)


def test_surplus_tensors_are_told_and_known_buffers_are_not(base, logged):
    backbone, folder = base()
    tensors = load_file(folder / WEIGHTS)
    tensors["text_decoder.bert.embeddings.position_ids"] = torch.arange(160)[None]
    (folder / WEIGHTS).unlink()
    write_weights(folder, tensors, "safetensors")
    with logged() as lines:
        _load(backbone, folder)
    assert lines == []
    write_weights(folder, {**tensors, "itm_head.weight": torch.ones(2, 32)}, "safetensors")
    with logged() as lines:
        _load(backbone, folder)
    (line,) = lines
    assert "has 1 tensors that BlipForConditionalGeneration has no place for and does not use, such as itm_head.weight" in line


def test_tensors_of_other_shapes_are_one_line(base):
    backbone, folder = base()
    config = read_json(folder, "config.json")
    config["text_config"]["intermediate_size"] = 48
    write_json(folder, "config.json", config)
    _refused(backbone, folder, r"has tensors of other shapes than its config\.json says")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("model_base_caption_capfilt_large.pth", r"is a checkpoint of LAVIS; Salesforce/blip-image-captioning-base on the hub"),
        ("blip2_pretrained_opt2.7b.pth", r"is a checkpoint of LAVIS; Salesforce/blip2-opt-2\.7b on the hub has the same"),
        ("checkpoint_best.pth", r"is a checkpoint of LAVIS or of BLIP's repository, .* Convert it with .*convert_\*_original"),
    ],
)
@pytest.mark.parametrize("as_file", [True, False])
def test_lavis_checkpoints_are_answered_with_what_to_use(name, match, as_file, tmp_path):
    (tmp_path / name).write_bytes(b"PK")
    _refused("blip", tmp_path / name if as_file else tmp_path, match)


@pytest.mark.parametrize(
    ("lacking", "match"),
    [
        (WEIGHTS, "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
        ("preprocessor_config.json", "has no image processor"),
        (None, None),
    ],
)
def test_a_dry_run_says_which_files_of_a_base_are_missing(lacking, match, base, phantoms_folder, plugins):
    backbone, folder = base()
    if lacking:
        (folder / lacking).unlink()
    names = {"backbones": [f"{backbone}:{folder}"], "strategies": ["lora"], "data": f"roco:{phantoms_folder}"}
    suite = SuiteConfig.model_validate({"name": "s", **names})
    said = [line for line in dry_run_suite(suite, plugins=plugins).missing if str(folder) in line]
    assert len(said) == bool(lacking)
    assert not lacking or match in said[0]
