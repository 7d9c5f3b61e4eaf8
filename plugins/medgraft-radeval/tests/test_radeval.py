"""The plugin without radeval; and, where it is installed, radeval's own code with small models, value for value."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from medgraft.metrics import CaptionSet, measure
from medgraft.plugin import KnownScores, PluginManager
from medgraft_radeval.chest_films import chest_film_notes, is_chest_film
from medgraft_radeval.metrics import f1_scores

MANAGER = PluginManager()
METRICS = ("radgraph", "ratescore", "chexbert", "green")
HERE = str(Path(__file__).parent)


def _python(code, **environment):
    """What Python prints for `code`, in a process of its own that looks nothing up on the network."""
    values = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([HERE, *sys.path]), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listing_and_checking_names_imports_neither_radeval_nor_torch():
    code = f"""
import sys
from medgraft.cli.main import main
from medgraft.plugin import PluginManager
main(["list", "metrics"])
assert set({METRICS}) <= set(PluginManager().names("metric"))
print([name for name in ("torch", "radeval", "RadEval") if name in sys.modules])
"""
    assert _python(code).splitlines()[-1] == "[]"


def test_every_score_has_a_direction_a_range_and_a_line():
    specs = {spec.name: spec for spec, owner in MANAGER.specs("metric") if owner == "medgraft-radeval"}
    assert set(specs) == set(METRICS)
    scores = [score for spec in specs.values() for score in spec.scores]
    assert all(score.summary and (score.better is None or "0 to 1" in score.summary) for score in scores)
    assert {score.heading for score in scores if not score.detail} == {"RadGraph F1", "RaTEScore", "CheXbert F1", "GREEN"}
    assert KnownScores(MANAGER).main(["chexbert_5_macro_f1", "chexbert_14_micro_f1"]) == "chexbert_14_micro_f1"


CAPTIONS = CaptionSet(("no effusion", "a mass"), (("no effusion",), ("a mass",)))


@pytest.mark.skipif(find_spec("radeval") is not None, reason="radeval is installed")
def test_without_radeval_the_other_metrics_are_scored():
    metrics = [*METRICS[:-1], "green:trust_remote_code"]
    found = measure(CAPTIONS, metrics=[*metrics, "green", "rouge_l"], plugins=MANAGER)
    assert set(found.values) == {"rouge_l"}
    missing = dict.fromkeys(metrics, "radeval is not installed: pip install 'medgraft-radeval[radeval]'")
    assert found.unavailable == missing | {
        "green": "it runs code that comes with its model from the hub; green:trust_remote_code allows that"
    }


@pytest.mark.parametrize(
    ("facts", "reference", "film"),
    [
        ({"study": "chest-xray", "view": "PA"}, "no mass", True),
        ({"study": "chest-ct", "view": "axial"}, "no mass", False),
        ({"modality": "X-Ray", "location": "Lung"}, "yes", True),
        ({"modality": "X-Ray", "location": "Abdomen"}, "yes", False),
        ({"modality": "MRI", "location": "Chest_lung"}, "yes", False),
        ({"organ": "HEAD"}, "yes", False),
        ({"organ": "CHEST"}, "yes", None),  # VQA-RAD tells no modality
        ({"view": "LATERAL", "indication": None}, "The lungs are clear. CT is recommended.", True),
        ({"view": None}, "The lungs are clear.", None),
        ({}, "Chest X-ray without effusion.", True),
        ({}, "Posteroanterior chest radiograph.", True),
        ({}, "Plain radiograph of the knee.", False),
        ({}, "Contrast-enhanced CT of the chest.", False),
        ({}, "Let us see a mass.", None),
        ({}, "Heart size is normal.", None),
    ],
)
def test_chest_films_are_told_by_facts_then_by_words(facts, reference, film):
    assert is_chest_film(facts, [reference]) is film


@pytest.mark.parametrize(
    ("films", "others", "unknown", "begins"),
    [
        (3, 3, 0, None),
        (3, 1, 2, None),
        (2, 4, 0, "Fewer than half of the scored images are chest films (2 of 6 are, 4 are not, 0 unknown)"),
        (2, 2, 2, "It is not known whether half of the scored images are chest films (2 of 6 are, 2 are not, 2 unknown)"),
    ],
)
def test_a_note_says_that_the_images_are_others(films, others, unknown, begins):
    texts = ["chest radiograph"] * films + ["brain MRI"] * others + ["a mass"] * unknown
    notes = chest_film_notes(CaptionSet(("",) * len(texts), tuple((text,) for text in texts)))
    assert len(notes) == (begins is not None) and all(note.startswith(begins) for note in notes)


def test_f1_of_labels_is_micro_and_macro():
    counts = np.array([[[2, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]], [[0] * 4] * 3], dtype=float)  # [2, 3, labels]
    found = f1_scores(counts, [0, 2])
    assert found["chexbert_14_micro_f1"][0] == pytest.approx(2 * 3 / (2 * 3 + 2))
    assert found["chexbert_14_macro_f1"][0] == pytest.approx((4 / 5 + 0 + 0 + 1) / 4)
    assert found["chexbert_5_micro_f1"][0] == pytest.approx(4 / 5) and found["chexbert_5_macro_f1"][0] == pytest.approx(2 / 5)
    assert np.isnan(found["chexbert_14_micro_f1"][1]) and found["chexbert_14_macro_f1"][1] == 0


AS_RADEVAL = """
import contextlib, json, logging, multiprocessing, os, sys, warnings
from pathlib import Path
from small_hub import write_hub
with contextlib.redirect_stdout(sys.stderr):
    write_hub(Path(os.environ["HF_HOME"]))
multiprocessing.set_start_method(None, force=True)
logging.getLogger().handlers.clear()
def state():
    root, transformers = logging.getLogger(), logging.getLogger("transformers")
    levels = root.level, transformers.level, len(root.handlers)
    return len(warnings.filters), multiprocessing.get_start_method(allow_none=True), levels
from medgraft.metrics import CaptionSet, get_metric, measure
from medgraft.plugin import PluginManager
pairs = [
    ("There is cardiomegaly. No effusion.", "Mild cardiomegaly with a small effusion."),
    ("The lungs are clear.", "Lungs are clear. No pneumothorax is seen."),
    ("A mass in the left lung.", "Right lower lobe opacity, perhaps pneumonia."),
    ("Normal heart size.", "Heart size is normal."),
]
odd = [("", "Normal."), ("no", "There is an effusion."), ("Edema is seen.", "ok")]
metrics, plugins = ("radgraph", "ratescore", "chexbert", "green"), PluginManager()
def scored(some, extra=()):
    captions = CaptionSet(tuple(p for p, _ in some), tuple((r, *extra) for _, r in some))
    found = measure(captions, metrics=[name.replace("green", "green:trust_remote_code") for name in metrics], plugins=plugins)
    each = {k: list(v) for m in found.measured.values() for k, v in m.per_image.items()}
    return {"unavailable": found.unavailable, "values": found.values, "each": each, "notes": found.notes}
before = state()
ours = {"usual": scored(pairs), "with odd": scored([pairs[0], *odd, *pairs[1:]]), "several": scored(pairs, ["zzz"])}
ours["undisturbed"] = before == state()
predictions, references = (list(side) for side in zip(*pairs))
theirs = {}
with contextlib.redirect_stdout(sys.stderr):
    import numpy as np
    from radeval import RadEval
    for name in metrics:
        if reason := [why for each, why in ours["usual"]["unavailable"].items() if each.startswith(name)]:
            theirs[name] = reason[0]
        elif name == "chexbert":  # RadEval puts it on a GPU in every case, and its report fails with scikit-learn 1.9
            from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert
            from sklearn.metrics import classification_report
            scorer = F1CheXbert(device="cpu")
            right, guessed = (np.array(scorer.get_labels(texts)) for texts in (references, predictions))
            theirs[name] = {}
            for n, some in (("14", list(range(14))), ("5", scorer.top5_idx)):
                report = classification_report(right[:, some], guessed[:, some], output_dict=True, zero_division=0)
                theirs[name] |= {f"chexbert_{n}_{k}_f1": report[f"{k} avg"]["f1-score"] for k in ("micro", "macro")}
        else:
            found = RadEval(metrics=[name], per_sample=True, show_progress=False)(refs=references, hyps=predictions)
            theirs[name] = {key: [float(value) for value in values] for key, values in found.items()}
print(json.dumps([ours, theirs]))
"""


@pytest.mark.slow
def test_without_its_models_there_is_a_reason(tmp_path):
    pytest.importorskip("radeval", reason="radeval is an extra: pip install 'medgraft-radeval[radeval]'")
    code = f"""
import json
from medgraft.metrics import CaptionSet, measure
from medgraft.plugin import PluginManager
metrics = ["radgraph", "green", "green:trust_remote_code"]
print(json.dumps(measure({CAPTIONS}, metrics=metrics, plugins=PluginManager()).unavailable))
"""
    found = json.loads(_python(code, HF_HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)).splitlines()[-1])
    assert "cannot be loaded: Cannot download the file" in found["radgraph"]
    assert found["green"].endswith("green:trust_remote_code allows that")
    assert found["green:trust_remote_code"].endswith(
        "On first use radeval fetches StanfordAIMI/GREEN-radllama2-7b from the hub."
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """What the metrics and radeval itself give for the same texts, with the small models."""
    pytest.importorskip("radeval", reason="radeval is an extra: pip install 'medgraft-radeval[radeval]'")
    home = str(tmp_path_factory.mktemp("hub"))
    return json.loads(_python(AS_RADEVAL, HF_HOME=home, XDG_CACHE_HOME=home).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_values_are_those_of_radeval(metric, compared):
    ours, theirs = compared
    usual, odd, several = ours["usual"], ours["with odd"]["each"], ours["several"]["each"]
    if metric == "ratescore" and isinstance(theirs[metric], str):
        pytest.skip(f"medspacy does not run here: {theirs[metric]}")
    assert not isinstance(theirs[metric], str), theirs[metric]
    assert ours["undisturbed"]
    for name, values in theirs[metric].items():
        got = usual["each"][name] if isinstance(values, list) else usual["values"][name]
        assert got == pytest.approx(values, abs=1e-6) and np.mean(values) > 0
        if isinstance(values, list):  # texts without a sentence or an entity change no other image's value
            assert [odd[name][0], *odd[name][4:]] == pytest.approx(values, abs=1e-6)
            assert all(best >= value for best, value in zip(several[name], values, strict=True)) or name != first_score(metric)


@pytest.mark.slow
def test_odd_texts_and_other_images_are_told(compared):
    odd = compared[0]["with odd"]["each"]
    assert odd["radgraph_partial"][1] == 0 and odd["green_unreadable"] == [0] * 7
    if "ratescore" in odd:
        assert odd["ratescore"][1:4] == [0.5] * 3 and odd["ratescore_no_entity"][1:4] == [1] * 3
    assert len(compared[0]["usual"]["notes"]) == 1


def first_score(metric):
    """The score that chooses the best of several references."""
    return {"radgraph": "radgraph_partial"}.get(metric, metric)
