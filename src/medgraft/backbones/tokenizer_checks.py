"""Whether a tokenizer is the checkpoint's own: transformers makes up one without words where files are missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from medgraft.backbones.base_files import TOKENIZER_FILES
from medgraft.errors import BackboneError, first_line

_FEWEST_WORDS = 10  # fewer are the special tokens of a tokenizer that transformers made up
_WHOLE = 0.9  # of the model's vocabulary: embeddings are padded by less than the rest
_FAST, _SETTINGS = "tokenizer.json", {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_AGAIN = "Copy the tokenizer's files from where the model came from."


def check_tokenizer(where: str, folder: Path, tokenizer: Any, vocabulary: int | None) -> None:
    """Raise BackboneError if `tokenizer`, read in `folder`, has no words, or more or fewer than the model's `vocabulary`.

    Word lists are plain text, of which a cut-off one can be told only by its length.
    """
    wanted = [name for key, name in type(tokenizer).vocab_files_names.items() if key != "tokenizer_file"]
    words = len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens))
    if words < _FEWEST_WORDS:
        raise BackboneError(f"{where} has no tokenizer: tokenizer.json, or {' and '.join(wanted)}, is missing. {_AGAIN}")
    slow = {name for name in TOKENIZER_FILES if (folder / name).is_file()} if not (folder / _FAST).is_file() else set()
    if "merges.txt" in wanted and _lacks_merges(slow):
        raise _no_merges(where)
    if vocabulary is None:
        return
    if tokenizer.vocab_size > vocabulary:
        raise BackboneError(
            f"{where} has a tokenizer of {tokenizer.vocab_size:,} tokens, but its model knows only {vocabulary:,}: it is of "
            f"another model. {_AGAIN}"
        )
    for name in slow & {"vocab.txt", "merges.txt"}:
        count = _entries(folder / name, len(tokenizer.all_special_tokens))
        if count < _WHOLE * vocabulary:
            raise BackboneError(
                f"{folder / name} is cut off or of another model: it makes {count:,} tokens, and the model has {vocabulary:,}. "
                f"{_AGAIN}"
            )


def unreadable(where: str, base: Path | None, subfolder: str, error: Exception) -> BackboneError:
    """What to raise for a tokenizer in `subfolder` of the folder `base` that cannot be read because of `error`."""
    names = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    files = {name for name in TOKENIZER_FILES if base is not None and (base / subfolder / name).is_file()}
    if not files - _SETTINGS:
        return BackboneError(f"{where} has no tokenizer: tokenizer.json, vocab.txt or the like is missing. {_AGAIN}")
    if _FAST not in files and _lacks_merges(files):
        return _no_merges(where)
    lacking = [package for package, module in names.items() if not _is_installed(module)]
    if lacking and _FAST not in files and any(name.endswith(".model") for name in files):
        return BackboneError(f"{where} has a tokenizer of SentencePiece alone. To read it: pip install {' '.join(lacking)}")
    return BackboneError(f"{where} has no tokenizer that can be read: {first_line(error)}")


def _lacks_merges(files: set[str]) -> bool:
    return "vocab.json" in files and "merges.txt" not in files


def _no_merges(where: str) -> BackboneError:
    return BackboneError(f"{where} has a vocab.json without its merges.txt, so that words would be split wrongly. {_AGAIN}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that `module` lies in
        return False


def _entries(path: Path, special: int) -> int:
    """How many tokens a word list stands for: its lines, and for merges also the single bytes and `special` ones."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
    return len(lines) + (256 + special if path.name == "merges.txt" else 0)
