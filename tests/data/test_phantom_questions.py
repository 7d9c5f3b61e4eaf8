"""Questions about phantoms."""

from collections import Counter

from medgraft.config import DataConfig, RunSettings, SuiteConfig
from medgraft.data import load_data
from medgraft.metrics import with_task_metrics


def _load(plugins, **options):
    return load_data(DataConfig(name="phantom-vqa", options={"count": 60, **options}), plugins=plugins)


def test_answers_are_the_facts(plugins):
    data = _load(plugins, questions=10)
    assert data.prompted and len({example.id for example in data.examples}) == len(data.examples)
    for example in data.examples:
        facts, (answer,) = example.facts, example.captions
        assert example.prompt == facts["question"]
        match facts["question_type"]:
            case "normal":
                assert answer == ("no" if facts["finding"] else "yes")
            case "presence":
                named = facts["question"].removeprefix("Is there ").removesuffix("?").removeprefix("a ").removeprefix("an ")
                assert answer == ("yes" if named == facts["finding"] else "no")
            case "finding" | "side" | "site" | "view" as what:
                assert answer == facts[what] and answer
            case what:
                assert what == "modality" and answer.split()[-1].casefold() in ("radiograph", "ct", "mri", "ultrasound")


def test_the_same_questions_each_time_as_many_as_are_asked_for(plugins):
    first, second = (list(_load(plugins, questions=2).examples) for _ in range(2))
    assert first == second
    assert set(Counter(example.image for example in first).values()) == {2}
    by_split = {example.image: example.split for example in first}
    assert all(by_split[example.image] == example.split for example in first)


def test_the_metrics_are_those_of_the_task(plugins):
    captions, questions = DataConfig(name="phantoms"), DataConfig(name="phantom-vqa")
    usual = with_task_metrics(RunSettings(), [captions], plugins=plugins).metrics
    assert usual[:3] == ("bleu", "rouge_l", "cider") and "vqa" not in usual
    assert with_task_metrics(RunSettings(), [questions], plugins=plugins).metrics == ("vqa",)
    both = with_task_metrics(RunSettings(), [questions, captions], ["bertscore:x", "cider"], plugins=plugins).metrics
    assert both[0] == "vqa" and both[-2:] == ("bertscore:x", "cider") and len(set(both)) == len(both)
    suite = SuiteConfig(name="s", backbones=("blip",), strategies=("lora",), data=(questions,), metrics=("bleu",))
    assert with_task_metrics(suite, suite.data, plugins=plugins) is suite
