"""The words of the code are the field's own, but for a few that the design page defines."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import medgraft

SOURCE = Path(medgraft.__file__).parent
DESIGN = (Path(__file__).parent.parent / "docs/design.md").read_text(encoding="utf-8")
OWN = ["anatomy", "part", "phantoms", "record", "role", "seam", "strategy", "suite"]

# whole identifiers that were words of this project alone, and what the field says
OLD = {
    "Cut": "ReusablePrefix", "DISCARDED_STEPS": "TIMING_WARMUP_STEPS", "FeatureSupply": "CachedFeatures",
    "Gaze": "AttentionLayout", "Looked": "SaliencyResult", "Looks": "SaliencyScores", "OneProduct": "FusedLora",
    "Packing": "PackedBatch", "Projection": "EffectiveWeight", "WORDS_MULTIPLE": "pad_to_multiple_of",
    "continuation": "generate_ids", "find_cut": "find_reusable_prefix", "label_shift": "logits_offset",
    "open_supply": "open_cached_features", "read_by_linear": "consumer_casts_input", "reads_prompt": "depends_on_prompt",
    "resting": "no_gradient", "room": "max_caption_tokens, or limit", "sight": "attention_index", "stage": "forward_to",
    "through": "forward_through", "tries": "trials", "weights_shown": "eager_attention",
}  # fmt: skip
# the same, also as a word of a longer identifier
OLD_PARTS = {
    "meant": "references", "perceptron": "mlp", "rehearsal": "dry_run", "said": "predictions, message",
    "skeleton": "meta_model", "told": "teacher_forced",
}  # fmt: skip


def _identifiers(code: str) -> Iterator[str]:
    """Every name, attribute, argument, keyword, definition and import in Python code."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.AsyncFunctionDef(name=name):
                yield name
            case ast.alias(name=name, asname=other):
                yield from name.split(".")
                yield other or name


def _old(code: str) -> set[str]:
    """The identifiers in Python code that are old words."""

    def is_old(identifier: str) -> bool:
        bare = identifier.strip("_")
        return bare in OLD or bool({word.lower() for word in bare.split("_")} & OLD_PARTS.keys())

    return {identifier for identifier in _identifiers(code) if is_old(identifier)}


def test_old_words_are_found_wherever_they_stand():
    code = """
from medgraft.features.cut import find_cut as cut
import medgraft.perceptron
class Gaze: ...
def told(said: int, *, other): return _room.rehearsal_text
call(skeleton=forward_through)
"""
    assert _old(code) == {"Gaze", "_room", "find_cut", "perceptron", "rehearsal_text", "said", "skeleton", "told"}


def test_no_old_word_is_an_identifier():
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        old = _old(path.read_text(encoding="utf-8"))
        if old:
            found[path.relative_to(SOURCE).as_posix()] = {
                word: (OLD | OLD_PARTS).get(word.strip("_"), "see OLD_PARTS") for word in sorted(old)
            }
    assert not found


def test_modules_are_not_named_by_old_words():
    stems = {path.stem for path in SOURCE.rglob("*.py")}
    assert not stems & (OLD.keys() | OLD_PARTS.keys() | {"cut", "supply", "look", "gaze", "rehearse"})


def test_our_own_words_are_few_and_defined_once():
    section = DESIGN.split("\n## Our own words\n")[1].split("\n## ")[0]
    defined = re.findall(r"^\| `(\w+)` \| \S", section, re.M)
    assert defined == OWN
    assert len(OWN) <= 8


def test_our_own_words_are_in_use():
    identifiers = {word for path in SOURCE.rglob("*.py") for word in _identifiers(path.read_text(encoding="utf-8"))}
    words = {word.lower() for identifier in identifiers for word in re.findall(r"[A-Z]?[a-z]+", identifier)}
    assert set(OWN) <= words
