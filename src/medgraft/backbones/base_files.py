"""Whether the files of a base are whole, from their first and last bytes; each fault is one line that says what to do.

Nothing is unpickled. What can only be found by reading a whole file is said by `reading`, in the same way.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import cached_file

from medgraft.errors import BackboneError, first_line

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model",
)  # fmt: skip
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SETTINGS = ("config.json", "generation_config.json", "chat_template.json", "chat_template.jinja", *IMAGE_PROCESSOR_FILES)
_POINTER = b"version https://git-lfs"
_LEGACY_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04")  # torch before 1.6
_AGAIN = "Download it again (hf download REPO --local-dir FOLDER)."
_LAVIS = {
    "model_base_caption_capfilt_large": "blip-image-captioning-base", "model_base_caption": "blip-image-captioning-base",
    "model_large_caption": "blip-image-captioning-large", "model_base_vqa": "blip-vqa-base",
    "model_base_vqa_capfilt_large": "blip-vqa-capfilt-large", "blip2_pretrained_opt2.7b": "blip2-opt-2.7b",
    "blip2_pretrained_opt6.7b": "blip2-opt-6.7b", "blip2_caption_opt2.7b": "blip2-opt-2.7b-coco",
    "blip2_caption_opt6.7b": "blip2-opt-6.7b-coco", "blip2_pretrained_flant5xl": "blip2-flan-t5-xl",
    "blip2_pretrained_flant5xxl": "blip2-flan-t5-xxl", "blip2_caption_flant5xl": "blip2-flan-t5-xl-coco",
    "instruct_blip_flanxl_trimmed": "instructblip-flan-t5-xl", "instruct_blip_flanxxl_trimmed": "instructblip-flan-t5-xxl",
    "instruct_blip_vicuna7b_trimmed": "instructblip-vicuna-7b", "instruct_blip_vicuna13b_trimmed": "instructblip-vicuna-13b",
}  # fmt: skip


def base_folder(source: str) -> Path | None:
    """The folder with the files of a hub id or folder on this machine; None if nothing of the hub id was downloaded."""
    if os.path.isdir(source):  # noqa: PTH112 - Path raises for a name of 300 characters
        return Path(source)
    try:
        config = cached_file(source, "config.json", local_files_only=True, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return Path(config).parent if config is not None else None


def check_settings(source: str) -> None:
    """Raise BackboneError for a configuration or tokenizer file that is empty or a Git LFS pointer, and for LAVIS's files."""
    path = Path(source)
    lavis = [path] if path.suffix in (".pth", ".pt") else []
    folder = base_folder(source)
    if folder is not None and not (folder / "config.json").exists():
        lavis = sorted(file for file in folder.iterdir() if file.suffix in (".pth", ".pt"))
    if lavis and lavis[0].is_file():
        raise BackboneError(_about_lavis(lavis[0]))
    for place in _places(folder):
        for name in (*_SETTINGS, *TOKENIZER_FILES):
            if (place / name).is_file():
                _check_start(place / name)


def check_json(source: str) -> None:
    """Raise BackboneError for the first .json file of a base that is no JSON, such as one that was cut off."""
    for path in (path for place in _places(base_folder(source)) for path in sorted(place.glob("*.json"))):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BackboneError(f"{path} is no JSON, perhaps cut off: {first_line(error)}. {_AGAIN}") from None


def _places(folder: Path | None) -> Iterator[Path]:
    """The folders that settings and tokenizers lie in; the second is InstructBLIP's."""
    if folder is not None:
        yield from (folder, folder / "qformer_tokenizer")


def check_weights(path: Path) -> None:
    """Raise BackboneError if a weights file, or the index of several, is empty, cut off or a Git LFS pointer."""
    start, size = _check_start(path), path.stat().st_size
    if path.suffix == ".safetensors":
        whole = 8 + int.from_bytes(start[:8], "little")
        with path.open("rb") as file:
            file.seek(8)
            header = file.read(whole - 8) if whole <= min(size, 100_000_000) else b""
        try:
            tensors = json.loads(header)
        except ValueError:
            raise BackboneError(f"{path} is no safetensors file, or its head was cut off. {_AGAIN}") from None
        whole += max((value["data_offsets"][1] for name, value in tensors.items() if name != "__metadata__"), default=0)
        if size < whole:
            raise BackboneError(f"{path} was cut off: it has {size:,} of {whole:,} bytes. {_AGAIN}")
    elif path.suffix == ".bin" and not zipfile.is_zipfile(path):
        if start.startswith(b"PK"):
            raise BackboneError(f"{path} was cut off: it has {size:,} bytes, and its end is missing. {_AGAIN}")
        if not start.startswith(_LEGACY_PICKLE):
            raise BackboneError(f"{path} is no file of torch: it begins with {start[:8]!r}. {_AGAIN}")


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Raise BackboneError, of `what`, where torch or safetensors cannot read a weights file inside the block."""
    try:
        yield
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise BackboneError(f"{what} cannot be read: {first_line(error)}. {_AGAIN}") from None
        raise BackboneError(
            f"{what} holds Python objects other than tensors, which could run code and are not opened. Use the model's "
            ".safetensors, or save its state_dict() alone where you trust it."
        ) from None
    except (SafetensorError, EOFError, zipfile.BadZipFile) as error:
        raise BackboneError(f"{what} cannot be read: {first_line(error)}. {_AGAIN}") from None
    except RuntimeError as error:  # as torch raises for damaged files
        if not any(word in str(error) for word in ("PytorchStreamReader", "unexpected EOF", "corrupted")):
            raise
        raise BackboneError(f"{what} was cut off or damaged: {first_line(error)}. {_AGAIN}") from None


def _check_start(path: Path) -> bytes:
    """The first bytes of a file; BackboneError if there are none, or those of a Git LFS pointer."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise BackboneError(f"{path} is empty. {_AGAIN}")
    if start.startswith(_POINTER):
        raise BackboneError(
            f"{path} is a Git LFS pointer, not the file itself. Run `git lfs pull` in its folder, or use hf download."
        )
    return start


def _about_lavis(path: Path) -> str:
    """What to use in place of a checkpoint of LAVIS or of BLIP's own repository."""
    if hub := _LAVIS.get(path.stem):
        return f"{path} is a checkpoint of LAVIS; Salesforce/{hub} on the hub has the same weights for transformers: name that."
    return (
        f"{path} is a checkpoint of LAVIS or of BLIP's repository, not a transformers folder. Convert it with "
        "src/transformers/models/{blip,blip_2,instructblip}/convert_*_original_*.py of transformers 4, and name the folder."
    )
