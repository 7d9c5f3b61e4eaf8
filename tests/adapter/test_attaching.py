"""PEFT adapters from elsewhere load whole, with their values, or are refused in one line that says why."""

import json
import re
import shutil

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

import medgraft
from medgraft.adapter import in_place_digests, load_adapter, save_weights, write_package
from medgraft.errors import AdapterError, ConfigError, MedgraftError, StrategyError
from medgraft.models import load_model
from medgraft.plugin import PluginManager
from medgraft.prepare import prepare_model
from medgraft.strategies import Strategy, get_strategy
from medgraft.testing.samples import images
from medgraft.testing.strategy_checks import _manifest

PLUGINS = PluginManager()
WEIGHTS, CONFIG, P = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Adapter .default.")  # PEFT's, when it makes adapters
QUERY = "text_decoder.bert.encoder.layer.0.attention.self.query"


def beside_unsigned(lines):
    """What was logged beside that a plain PEFT adapter is unsigned, which is said once."""
    unsigned = [line for line in lines if "is a plain PEFT adapter: without medgraft's digests" in line]
    assert len(unsigned) == 1, lines
    return [line for line in lines if line not in unsigned]


def lora(*targets, **options):
    return LoraConfig(r=4, target_modules=list(targets or ("query", "value")), init_lora_weights=False, **options)


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    """So that logits can be PEFT's to the bit."""
    monkeypatch.setenv("MEDGRAFT_ACCELERATION", "none")


@torch.no_grad()
def logits(backbone, tokenizer=None):
    backbone.model.eval()
    backbone.tokenizer, own = tokenizer or backbone.tokenizer, backbone.tokenizer
    text = backbone.text_batch(["a nodule.", "no acute findings."], prompt="a picture", max_tokens=160)
    found = backbone.decode(backbone.encode(backbone.pixel_values(images(2)), prompt="a picture"), text)[1]
    backbone.tokenizer = own
    return found


@pytest.fixture
def theirs(tiny_folder, tmp_path):
    """`theirs(MODEL, CONFIG, ...)` gives the folder of an adapter made with PEFT alone, the backbone, and its logits."""

    def make(name, config, part="", grow=0, **saving):
        kind, source = tiny_folder(name)
        backbone = load_model(f"{kind}:{source}", Strategy(), plugins=PLUGINS)
        base = backbone.model.get_submodule(part)
        if grow:
            base.resize_token_embeddings(len(base.get_input_embeddings().weight) + grow, mean_resizing=False)
        model = get_peft_model(base, config)
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "theirs", **{"save_embedding_layers": False, **saving})
        return tmp_path / "theirs", f"{kind}:{source}", logits(backbone)

    return make


def renamed(folder, change, **config):
    """Rewrite an adapter with other names of tensors and other settings."""
    save_file({change(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    content = json.loads((folder / CONFIG).read_text()) | config
    (folder / CONFIG).write_text(json.dumps(content))


def vit_of_transformers_4(name):
    name = name.replace("encoder.layers.", "encoder.encoder.layer.")
    for new, old in (("q_proj", "attention.query"), ("v_proj", "attention.value"), ("mlp.fc1", "intermediate.dense")):
        name = name.replace(new, old)
    return name


def qwen_of_transformers_4(name):
    return name.replace("model.language_model.", "model.").replace(f"{P}model.visual.", f"{P}visual.")


VIT, OLD_VIT = ("q_proj", "v_proj", "c_attn"), ["query", "value", "c_attn"]
NAMES = {  # model, config, the part that was trained alone, renaming, changed settings, what the log says
    "as it is": ("blip", lora(), "", str, {}, None),
    "compiled": ("blip", lora(), "", lambda n: n.replace(P, f"{P}_orig_mod."), {}, "of a wrapper"),
    "compiled, full names": (
        "blip", lora(QUERY), "", lambda n: n.replace(P, f"{P}_orig_mod."), {"target_modules": [f"_orig_mod.{QUERY}"]},
        "of a wrapper",
    ),
    "parallel": ("blip", lora(), "", lambda n: f"module.{n}", {}, "of a wrapper"),
    "no prefix": ("blip", lora(), "", lambda n: n.removeprefix(P), {}, "another way of saving"),
    "ViT of transformers 4": (
        "vit-gpt2", lora(*VIT), "", vit_of_transformers_4, {"target_modules": OLD_VIT}, "8 tensors are those of an older",
    ),
    "ViT of transformers 4, ranks": (
        "vit-gpt2", lora(*VIT, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.attention.v_proj": 3}), "",
        vit_of_transformers_4,
        {"target_modules": OLD_VIT, "rank_pattern": {"attention.query": 2},
         "alpha_pattern": {"layer.0.attention.attention.value": 3}},
        "older transformers",
    ),
    "ViT of transformers 4, IA3": (
        "vit-gpt2", IA3Config(target_modules=["v_proj", "fc1", "c_attn"], feedforward_modules=["fc1"]), "",
        vit_of_transformers_4,
        {"target_modules": ["value", "intermediate.dense", "c_attn"], "feedforward_modules": ["intermediate.dense"]}, "older",
    ),
    "Qwen of transformers 4": (
        "qwen2-vl", lora("q_proj", "qkv"), "", qwen_of_transformers_4, {}, "tensors are those of an older transformers",
    ),
    "Qwen of transformers 4, expression": (
        "qwen2.5-vl", lora("q_proj"), "", qwen_of_transformers_4, {"target_modules": r"model\.layers.*\.q_proj"}, "older",
    ),
    "language model alone": ("blip2-opt", lora("q_proj"), "language_model", str, {}, "of its OPTForCausalLM alone"),
    "vision tower alone": ("vit-gpt2", lora("q_proj"), "encoder", str, {}, "of its ViTModel alone"),
    "old settings": (
        "blip", lora(), "", str, {"enable_lora": None, "merge_weights": False, "task_type": "X"}, "ignores 'enable_lora'",
    ),
    "targets that are not here": ("blip", lora(), "", str, {"target_modules": ["query", "value", "fc3"]}, "not have: fc3"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_are_mapped_where_that_is_certain(case, theirs, logged):
    model, config, part, change, settings, said = NAMES[case]
    folder, base, expected = theirs(model, config, part)
    renamed(folder, change, **settings)
    with logged() as lines:
        loaded = medgraft.load_adapter(folder, backbone=base)
    assert torch.equal(logits(loaded.backbone), expected)
    more = beside_unsigned(lines)
    assert [line for line in more if said and said in line] if said else not more, lines


@pytest.mark.parametrize(
    "config",
    [
        lora(use_dora=True), lora(use_rslora=True, rank_pattern={"layer.0.attention.self.query": 2}), lora(bias="all"),
        lora(bias="lora_only"), lora(lora_bias=True), lora(modules_to_save=["cls"]), lora("word_embeddings", "query"),
        lora(trainable_token_indices={"word_embeddings": [5]}),
        TrainableTokensConfig(token_indices=[5, 6], target_modules=["word_embeddings"]),
        *(LoraConfig(r=4, target_modules=["query"], init_lora_weights=i) for i in ("pissa", "olora", "orthogonal", "mica")),
    ],
    ids=lambda config: f"{config.peft_type.value}-{getattr(config, 'init_lora_weights', '')!s}",
)  # fmt: skip
def test_what_peft_can_do_gives_its_logits(config, theirs, logged):
    folder, base, expected = theirs("blip", config)
    with logged() as lines:
        loaded = medgraft.load_adapter(folder, backbone=base)
    assert torch.equal(logits(loaded.backbone), expected)
    assert not beside_unsigned(lines)


REFUSED = {  # renaming, settings, message
    "surplus": (
        lambda n: n.replace("layer.1.attention.self.query.lora_A", "layer.9.attention.self.query.lora_A"), {},
        "1 of its 16 tensors have no place there, such as .*layer.9.attention.*; 1 of the 16 tensors that it needs are not in",
    ),
    "rank": (str, {"r": 8}, r"r is 8, but .*query.lora_A.weight has the shape \[4, 32\]. Copy the adapter again"),
    **{
        method: (str, {"peft_type": method}, f"{method} puts learned vectors before the prompt, which medgraft's forward")
        for method in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE")
    },
    "XLORA": (str, {"peft_type": "XLORA"}, "XLORA does not work in medgraft: it mixes other adapters.*Train another"),
    "POLY": (str, {"peft_type": "POLY"}, "POLY does not work in medgraft: it needs a task id"),
    "ADAPTION_PROMPT": (str, {"peft_type": "ADAPTION_PROMPT"}, "ADAPTION_PROMPT does not work"),
    "unknown": (str, {"peft_type": "LOROX"}, "'LOROX' is no method of the installed PEFT .* A newer one may have it"),
    "aLoRA": (str, {"alora_invocation_tokens": [3]}, "alora_invocation_tokens is set, so .* Train it without"),
    "layers": (str, {"layer_replication": [[0, 2]]}, "layer_replication is set"),
    **{
        init: (str, {"init_lora_weights": init}, f"init_lora_weights='{init}' changed the base by")
        for init in ("pissa_niter_4", "corda", "lora_ga", "loftq")
    },
    "no targets": (str, {"target_modules": None}, "does not fit .*target_modules"),
    "numbers": (str, {"target_modules": [3]}, "target_modules must be a text or a list of texts"),
    "expression": (str, {"target_modules": "("}, r"'\(' is no regular expression: missing \).*Write names of modules"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_by_name(case, theirs):
    change, settings, message = REFUSED[case]
    folder, base, _ = theirs("blip", lora())
    renamed(folder, change, **settings)
    with pytest.raises(AdapterError, match=message) as caught:
        medgraft.load_adapter(folder, backbone=base)
    assert "\n" not in str(caught.value)


def test_one_tensor_more_or_less_is_refused(theirs):
    folder, base, _ = theirs("blip", lora())
    tensors = load_file(folder / WEIGHTS)
    for more in (f"{P}{QUERY}.lora_C.weight", f"{P}text_decoder.cls.predictions.transform.dense.weight"):
        save_file(tensors | {more: torch.zeros(32, 32)}, folder / WEIGHTS)
        with pytest.raises(AdapterError, match=rf"1 of its 17 tensors have no place there, such as {more}; a name there is"):
            medgraft.load_adapter(folder, backbone=base)
    save_file(dict(list(tensors.items())[1:]), folder / WEIGHTS)
    with pytest.raises(AdapterError, match="1 of the 16 tensors that it needs are not in it, such as"):
        medgraft.load_adapter(folder, backbone=base)


def test_an_adapter_of_blips_question_answering_is_refused_by_the_captioner(tiny_folder, tmp_path):
    _, source = tiny_folder("blip")
    model = transformers.BlipForQuestionAnswering(transformers.BlipConfig.from_pretrained(source))
    get_peft_model(model, lora("qkv", "query")).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(AdapterError, match=r"8 of its 20 tensors have no place there, such as .*text_encoder"):
        medgraft.load_adapter(tmp_path, backbone=f"blip:{source}")


def test_a_part_of_a_model_that_occurs_twice_is_not_guessed(theirs):
    folder, base, _ = theirs("blip2-t5", lora("q"), "language_model.encoder")
    with pytest.raises(AdapterError, match="does not fit"):
        medgraft.load_adapter(folder, backbone=base)


def test_missing_weights_are_said_plainly(theirs):
    folder, base, _ = theirs("blip", lora())
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"has no weights. Save the adapter as adapter_model.safetensors"):
        medgraft.load_adapter(folder, backbone=base)
    (folder / "adapter_model.bin").touch()
    with pytest.raises(AdapterError, match=r"has only adapter_model.bin, which can run code when it is loaded. Save"):
        medgraft.load_adapter(folder, backbone=base)


@pytest.mark.parametrize(
    ("model", "part", "targets", "saved"),
    [
        ("blip", "", "query", None),
        ("vit-gpt2", "decoder", "c_attn", None),
        ("blip2-opt", "", "q_proj", ["embed_tokens", "lm_head"]),
    ],
)
def test_a_grown_vocabulary_comes_with_its_tokenizer(model, part, targets, saved, theirs, tiny_folder, logged):
    folder, base, expected = theirs(model, lora(targets, modules_to_save=saved), part, grow=3, save_embedding_layers=True)
    own = transformers.AutoTokenizer.from_pretrained(tiny_folder(model)[1])
    with pytest.raises(AdapterError, match=r"has shape \(\d+, 32\), but the vocabulary of .* has \d+ rows. Put the tokenizer"):
        medgraft.load_adapter(folder, backbone=base)
    longer = transformers.AutoTokenizer.from_pretrained(tiny_folder(model)[1])
    longer.add_tokens(["nodule", "opacity", "effusion"])
    longer.save_pretrained(folder)
    with logged() as lines:
        backbone = medgraft.load_adapter(folder, backbone=base).backbone
    assert "3 tokens more" in " ".join(lines)
    assert "nodule" in backbone.tokenizer.tokenize("a nodule")
    assert torch.equal(logits(backbone, own), expected)
    longer.add_tokens(["one", "more"])
    longer.save_pretrained(folder)
    with pytest.raises(AdapterError, match="its tokenizer has token"):
        medgraft.load_adapter(folder, backbone=base)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_plain_adapter_on_a_quantised_base_gives_pefts_logits(quantization, theirs):
    folder, base, full = theirs("blip", lora())
    found = logits(medgraft.load_adapter(folder, backbone=base, quantization=quantization).backbone)
    plain = load_model(base, Strategy(quantization=quantization), plugins=PLUGINS)
    PeftModel.from_pretrained(plain.model, folder)
    assert torch.equal(found, logits(plain)) and not torch.equal(found, full)


def test_the_base_that_an_adapter_names_is_used_or_offered(theirs, logged, tmp_path):
    folder, base, expected = theirs("blip", lora())
    with logged() as lines:
        assert torch.equal(logits(medgraft.load_adapter(folder).backbone), expected)
    assert beside_unsigned(lines) == [f"The adapter names its base, and {base} is used."]
    hub = "Salesforce/blip-image-captioning-base"
    for named, mapping, message in (
        (hub, None, rf"its base is {hub}, which is no model on this machine. Add --backbone blip:{hub}\."),
        ("some/model", {"base_model_class": "BlipForConditionalGeneration"}, r"Add --backbone blip:some/model\."),
        ("some/model", None, r"Add --backbone NAME:some/model\."),
        (None, None, r"does not say which base it is for. Add --backbone NAME:SOURCE\."),
    ):
        renamed(folder, str, base_model_name_or_path=named, auto_mapping=mapping)
        with pytest.raises(AdapterError, match=message):
            medgraft.load_adapter(folder)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    renamed(folder, str, base_model_name_or_path=str(tmp_path / "bert"))
    with pytest.raises(AdapterError, match="a model of type 'bert', for which there is no backbone"):
        medgraft.load_adapter(folder)


def test_a_cached_snapshot_is_used_outright(theirs, tmp_path, monkeypatch):
    folder, base, expected = theirs("blip", lora())
    snapshot = tmp_path / "hub/models--some--model/snapshots/abc"
    shutil.copytree(base.partition(":")[2], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    renamed(folder, str, base_model_name_or_path="some/model")
    assert torch.equal(logits(medgraft.load_adapter(folder).backbone), expected)


OWN = {  # what strategy lora is given; None: saved and loaded with the same logits, else the error
    "lora_only": ({"bias": "lora_only"}, None),
    "bias": ({"bias": "all"}, None),
    "lora_bias": ({"lora_bias": True}, None),
    "head": ({"modules_to_save": ["cls"]}, None),
    "tokens": ({"trainable_token_indices": [3]}, None),
    "mica": ({"init_lora_weights": "mica"}, None),
    "decoder": ({"modules_to_save": ["decoder"]}, "inside of it text_decoder.bert.* which PEFT cannot load"),
    "nothing": ({"modules_to_save": ["nothing"]}, "no module of this backbone has a name that ends with 'nothing'"),
    "frozen": ({"vision": "frozen", "bias": "all"}, "train vision_model.*bias, but part 'vision' is 'frozen'. Set strategy"),
    "aLoRA": ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens cannot be set"),
    "quantised": ({"init_lora_weights": "pissa", "quantization": "nf4"}, "a base in nf4 cannot follow"),
    "both": (
        {"init_lora_weights": "pissa", "modules_to_save": ["cls"]},
        "is saved as plain LoRA, which has no modules_to_save",
    ),
    **{init: ({"init_lora_weights": init}, "activations|gradients|quantised") for init in ("eva", "lora_ga", "corda", "loftq")},
}


def _saved(model, options, tiny_folder, folder):
    kind, source = tiny_folder(model)
    base = f"{kind}:{source}"
    backbone, applied, _ = prepare_model(base, get_strategy("lora", options, plugins=PLUGINS), plugins=PLUGINS)
    digests = in_place_digests(applied)
    for parameter in applied.model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05)
    write_package(folder, _manifest(base, backbone, applied), lambda new: save_weights(new, applied, digests))
    return base, backbone, {name for name, parameter in applied.model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("case", OWN)
def test_options_of_lora_are_trained_saved_and_loaded_or_refused(case, tiny_folder, tmp_path, logged):
    options, message = OWN[case]
    if message is not None:
        with pytest.raises((ConfigError, StrategyError), match=message):
            _saved("blip", options, tiny_folder, tmp_path)
        return
    with logged() as lines:
        base, backbone, trained = _saved("blip", options, tiny_folder, tmp_path)
        loaded = load_adapter(tmp_path, plugins=PLUGINS, backbone=base)
    assert torch.equal(logits(loaded.backbone), logits(backbone))
    assert {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad} == trained
    assert not lines


def test_a_decoder_saved_as_a_whole_is_loaded(tiny_folder, tmp_path):
    base, backbone, _ = _saved("vit-gpt2", {"modules_to_save": ["decoder"]}, tiny_folder, tmp_path)
    assert torch.equal(logits(load_adapter(tmp_path, plugins=PLUGINS, backbone=base).backbone), logits(backbone))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialisation_that_changes_the_base_is_saved_as_plain_lora(init, tiny_folder, tmp_path):
    options = {"init_lora_weights": init, "r": 4, "lora_alpha": 8}
    base, backbone, _ = _saved("blip", options, tiny_folder, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["init_lora_weights"], config["r"], config["lora_alpha"]) == (True, 8, 16)
    first, second = (logits(load_adapter(tmp_path, plugins=PLUGINS, backbone=base).backbone) for _ in range(2))
    torch.testing.assert_close(first, logits(backbone), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)


def test_a_package_keeps_its_quantisation(tiny_folder, tmp_path):
    _saved("blip", {}, tiny_folder, tmp_path)
    with pytest.raises(AdapterError, match="quantization"):
        medgraft.load_adapter(tmp_path, quantization="nf4")


def test_lora_layers_keep_pefts_repr(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("MEDGRAFT_ACCELERATION")
    for quantization, name in (("none", "lora.Linear("), ("nf4", "lora.Linear4bit("), ("int8", "lora.Linear8bitLt(")):
        kind, source = tiny_folder("blip")
        strategy = get_strategy("lora", {"quantization": quantization}, plugins=PLUGINS)
        model = prepare_model(f"{kind}:{source}", strategy, plugins=PLUGINS)[0].model
        assert repr(model.get_submodule(QUERY)).startswith(name)


def test_a_prompt_is_given_in_python_and_on_the_command_line(theirs, tmp_path, capsys, monkeypatch):
    from medgraft.cli.main import main
    from medgraft.inference import captioner_for

    folder, base, _ = theirs("blip", lora())
    loaded = medgraft.load_adapter(folder, backbone=base, prompt="an x-ray of")
    assert captioner_for(loaded.backbone, prompt=loaded.prompt, dtype=torch.float32).prompt == "an x-ray of"
    bare = medgraft.load_backbone(base, prompt="an x-ray of")
    assert captioner_for(bare, prompt=None, dtype=torch.float32).prompt == "an x-ray of"
    images(1)[0].save(tmp_path / "image.png")
    prompts = []
    plain = type(bare).generate_ids
    monkeypatch.setattr(
        type(bare),
        "generate_ids",
        lambda self, features, ids, options: prompts.append(ids) or plain(self, features, ids, options),
    )
    for model in (["--adapter", str(folder)], ["--backbone", base]):
        command = ["caption", str(tmp_path / "image.png"), *model, "--prompt", "an x-ray", "--max-new-tokens", "3"]
        assert main([*command, "--quantization", "nf4"]) == 0, capsys.readouterr()
    expected = bare.prompt_ids("an x-ray")
    assert [ids[0].tolist() for ids in prompts] == [expected, expected]


def test_every_refusal_is_a_medgraft_error_in_one_line(tmp_path):
    for content in ("", "[]", "{", '{"peft_type": ["LORA"]}', '{"peft_type": "LORA", "r": "x"}', "\xff"):
        (tmp_path / CONFIG).write_bytes(content.encode("latin-1"))
        with pytest.raises(MedgraftError) as caught:
            medgraft.load_adapter(tmp_path, backbone="blip-nano")
        assert not re.search(r"\n|Traceback", str(caught.value))
