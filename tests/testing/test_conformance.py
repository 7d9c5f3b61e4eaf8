"""Every built-in backbone x strategy through the conformance kit, on small random models of each real architecture."""

from dataclasses import replace

import pytest

from medgraft.backbones import Backbone
from medgraft.backbones.vision_encoder_decoder import VisionEncoderDecoderBackbone
from medgraft.benchmark import why_unsupported
from medgraft.data.roco import Roco
from medgraft.metrics.bleu import Bleu
from medgraft.metrics.cider import Cider
from medgraft.metrics.rouge_l import RougeL
from medgraft.plugin import PluginManager
from medgraft.strategies import PartPlan, Strategy, get_strategy
from medgraft.testing import ConformanceError, check_backbone, check_dataset, check_metric, check_strategy, plugin_findings
from medgraft.testing.tiny import tiny_models

OTHERS = ("medgraft-git", "medgraft-qwen-vl", "medgraft-vlm", "medgraft-api", "medgraft-blip-nano")
MANAGER = PluginManager(disabled=frozenset(OTHERS))
UNSUPPORTED = {
    ("instructblip-t5", "bitfit"): "The strategy trains biases in part 'text', but it has none.",
    ("vit-gpt2", "oft"): "PEFT's OFT does not adapt layers of class Conv1D, which part 'text' has. Freeze this part, or use "
    "another method, such as LoRA.",
}


@pytest.mark.parametrize("name", tiny_models(MANAGER))
def test_backbones(name, tiny_folder):
    backbone, folder = tiny_folder(name)
    check_backbone(MANAGER.get("backbone", backbone), folder)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MANAGER.names("strategy"))
@pytest.mark.parametrize("name", tiny_models(MANAGER, of_each=1))
def test_backbones_with_strategies(name, strategy, tiny_folder):
    backbone, folder = tiny_folder(name)
    plan = get_strategy(strategy, plugins=MANAGER)
    reason = why_unsupported(f"{backbone}:{folder}", plan, plugins=MANAGER)
    assert reason == UNSUPPORTED.get((name, strategy))
    if reason is None:
        check_strategy(plan, f"{backbone}:{folder}", plugins=MANAGER)


@pytest.mark.slow
def test_backbones_that_bring_their_weights_pass_as_they_are():
    everything = PluginManager()
    alone = [spec for spec, _ in everything.specs("backbone") if not spec.tiny and issubclass(spec.resolve(), Backbone)]
    assert [spec.name for spec in alone] == ["blip-nano"]
    found = list(plugin_findings("blip-nano", plugins=everything))
    assert len(found) > 60
    assert not [finding for finding in found if finding.problem]


@pytest.mark.parametrize("metric", [Bleu, Cider, RougeL])
def test_metrics(metric):
    check_metric(metric)


def test_datasets(phantoms_folder):
    check_dataset(Roco, phantoms_folder)


class _Careless(VisionEncoderDecoderBackbone):
    """Breaks the contract in ways that are easily overlooked."""

    def text_batch(self, captions, *, prompt="", max_tokens=128):
        text = super().text_batch(captions, prompt=prompt, max_tokens=max_tokens)
        return type(text)(text.input_ids, text.attention_mask, text.input_ids.clone())  # padding is predicted

    def generate(self, features, *, prompt="", options=None):
        return ["always the same"] * (1 if len(features) == 1 else 2)


def test_the_kit_finds_what_is_wrong(tiny_folder):
    _, folder = tiny_folder("vit-gpt2")
    with pytest.raises(ConformanceError) as caught:
        check_backbone(_Careless, folder)
    said = str(caught.value)
    assert "_Careless: Labels are the caption and its end token, and nothing else" in said
    assert "_Careless: A caption does not depend on the rest of the batch" in said
    assert "Loads in eval mode" not in said  # what is right is not listed


def test_the_kit_says_where_a_layer_without_a_role_belongs(tiny_folder):
    class Unnamed(VisionEncoderDecoderBackbone):
        anatomy = replace(VisionEncoderDecoderBackbone.anatomy, never_run=())

    with pytest.raises(ConformanceError, match=r"1 of \d+ linear layers have no role, such as encoder\.pooler.*never_run"):
        check_backbone(Unnamed, tiny_folder("vit-gpt2")[1])


def test_the_kit_finds_a_strategy_that_cannot_work(tiny_folder):
    backbone, folder = tiny_folder("vit-gpt2")
    hopeless = Strategy(text=PartPlan(mode="full", roles=("norm",)), learning_rate=1e-30)
    with pytest.raises(ConformanceError, match=r"trained tensors did not change.*never_run or no_gradient"):
        check_strategy(hopeless, f"{backbone}:{folder}", plugins=MANAGER)


def test_the_kit_finds_a_reader_that_swallows_errors(phantoms_folder):
    class Lax(Roco):
        def read(self, path):
            try:
                yield from super().read(path)
            except Exception:
                return

    with pytest.raises(ConformanceError, match="an empty folder was read without an error"):
        check_dataset(Lax, phantoms_folder)


def test_the_kit_finds_a_metric_that_depends_on_order():
    class Ordered(Bleu):
        def compute(self, *, predictions, references):
            return {"first": float(len(predictions[0]))}

    with pytest.raises(ConformanceError, match="depend on the order of images"):
        check_metric(Ordered)
