"""Make blip-nano's weights: tokenizer, a small BLIP, pretraining on general scenes and on dictionary English.

    python -m medgraft_blip_nano.pretrain --out weights --wordnet /usr/share/wordnet

The decoder learns to caption the synthetic scenes of `scenes.py` and, without an image, the English of WordNet 3.0's
glosses (Debian package `wordnet-base`), so that the words of ordinary and medical English have embeddings worth
adapting. The vision tower learns from the captions and from naming what is in each patch, by linear heads that are
thrown away afterwards. No medical image is used.
"""

import argparse
import json
import math
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil, BlipProcessor

import medgraft
from medgraft_blip_nano.scene_captions import caption
from medgraft_blip_nano.scenes import GRID, SHAPES, SIZE, TEXTURES, TONES, random_scene, render

VOCABULARY = 4500
CAPTION_TOKENS, GLOSS_TOKENS = 44, 48
MEDICAL_FILES = {8, 26}  # WordNet's lexicographer files noun.body and noun.state
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # BLIP's own


def read_glosses(folder: Path) -> tuple[list[str], list[str]]:
    """`word: gloss` sentences of WordNet, (all, those about the body and its states), examples dropped."""
    everything, medical = [], []
    for name in ("data.noun", "data.verb", "data.adj"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            word = re.sub(r"\(.*\)", "", fields[4]).replace("_", " ").lower()
            meaning = gloss.split('; "')[0].strip().lower()
            text = f"{word}: {meaning}"
            everything.append(text)
            if name == "data.noun" and int(fields[1]) in MEDICAL_FILES:
                medical.append(text)
    return everything, medical


def make_tokenizer(out: Path, texts: list[str]) -> BertTokenizer:
    """Train a lower-casing WordPiece vocabulary on `texts`; BLIP's special tokens, [DEC] as BOS, [ENC] last."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY - 2, min_frequency=3, special_tokens=special, limit_alphabet=70, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, _ in vocabulary] + ["[DEC]", "[ENC]"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return BertTokenizer(
        vocab=str(out / "vocab.txt"), do_lower_case=True, bos_token="[DEC]", additional_special_tokens=["[ENC]"],
        model_input_names=["input_ids", "attention_mask"], model_max_length=256,
    )  # fmt: skip


def make_model(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """A BLIP captioner of about 6 M parameters, randomly initialised."""
    ids = tokenizer.convert_tokens_to_ids
    config = BlipConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 192, "encoder_hidden_size": 192, "intermediate_size": 768,
            "num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": 256, "projection_dim": 192,
            "bos_token_id": ids("[DEC]"), "eos_token_id": ids("[SEP]"), "sep_token_id": ids("[SEP]"),
            "pad_token_id": ids("[PAD]"),
        },
        vision_config={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
            "image_size": SIZE, "patch_size": 16, "projection_dim": 192, "initializer_range": 0.02,
        },
        projection_dim=192, image_text_hidden_size=64,
    )  # fmt: skip
    return BlipForConditionalGeneration(config)


def _scenes(arguments: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    seed, start, stop, captions = arguments
    images, cells, texts = [], [], []
    for index in range(start, stop):
        rng = np.random.default_rng([seed, index])
        scene = random_scene(rng)
        image, cell = render(scene, rng)
        images.append(np.asarray(image))
        cells.append(cell)
        texts.append([caption(scene, rng) for _ in range(captions)])
    return np.stack(images), np.stack(cells), texts


def make_scenes(count: int, seed: int, captions: int, processes: int) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """`count` scenes [count, SIZE, SIZE, 3], what is in their cells [count, GRID, GRID, 3], and `captions` captions each."""
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    cells = np.empty((count, GRID, GRID, 3), dtype=np.uint8)
    texts: list[list[str]] = []
    jobs = [(seed, start, min(start + 500, count), captions) for start in range(0, count, 500)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for (_, start, stop, _), (block, block_cells, block_texts) in zip(jobs, pool.imap(_scenes, jobs), strict=True):
            images[start:stop], cells[start:stop] = block, block_cells
            texts.extend(block_texts)
    return images, cells, texts


def encode(tokenizer: BertTokenizer, texts: list[str], length: int) -> np.ndarray:
    """Token ids [N, length]: [DEC] words [SEP] padding."""
    rows = np.full((len(texts), length), tokenizer.pad_token_id, dtype=np.int16)
    for row, ids in zip(rows, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
        ids = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.sep_token_id]
        row[: len(ids)] = ids
    return rows


def _pixels(images: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def _text_loss(model: BlipForConditionalGeneration, ids: np.ndarray, features: torch.Tensor | None) -> torch.Tensor:
    length = int((ids != 0).sum(1).max())
    tokens = torch.from_numpy(ids[:, :length].astype(np.int64))
    mask = tokens != 0
    labels = tokens.masked_fill(~mask, -100)
    return model.text_decoder(input_ids=tokens, attention_mask=mask.long(), encoder_hidden_states=features, labels=labels).loss


class CellHeads(torch.nn.Module):
    """Names shape, colour and texture of what is in each patch of the vision tower's output."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, len(kinds) + 1) for kinds in (SHAPES, TONES, TEXTURES))

    def loss(self, features: torch.Tensor, cells: np.ndarray) -> torch.Tensor:
        """Mean cross-entropy for features [B, 1 + GRID * GRID, C] and cells [B, GRID, GRID, 3]."""
        targets = torch.from_numpy(cells.reshape(-1, 3).astype(np.int64))
        patches = features[:, 1:].flatten(0, 1)
        losses = [torch.nn.functional.cross_entropy(head(patches), targets[:, i]) for i, head in enumerate(self.heads)]
        return torch.stack(losses).mean()


def train(
    model: BlipForConditionalGeneration, images: np.ndarray, cells: np.ndarray, captions: np.ndarray, glosses: np.ndarray,
    weights: np.ndarray, steps: int, batch: int, peak: float,
) -> dict[str, float]:  # fmt: skip
    """AdamW with a cosine over `steps`; a step sees `batch` of captions [N, K, T] and a quarter as many glosses [M, T]."""
    rng = np.random.default_rng(0)
    heads = CellHeads(model.config.vision_config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    decay, plain = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    started, order, used = time.monotonic(), rng.permutation(len(images)), 0
    probability = weights / weights.sum()
    history = {"caption": 4.0, "gloss": 6.0, "cells": 2.0}
    model.train()
    for step in range(1, steps + 1):
        rate = peak * min(step / 200, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if used + batch > len(order):
            order, used = rng.permutation(len(images)), 0
        chosen = order[used : used + batch]
        used += batch
        texts = captions[chosen, rng.integers(captions.shape[1], size=batch)]
        with torch.autocast("cpu", torch.bfloat16):
            features = model.vision_model(pixel_values=_pixels(images[chosen])).last_hidden_state
            caption_loss = _text_loss(model, texts, features)
            gloss_loss = _text_loss(model, glosses[rng.choice(len(glosses), batch // 4, p=probability)], None)
            cell_loss = heads.loss(features, cells[chosen])
        (caption_loss + 0.5 * gloss_loss + cell_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, loss in (("caption", caption_loss), ("gloss", gloss_loss), ("cells", cell_loss)):
            history[name] += 0.02 * (loss.item() - history[name])
        if step % 100 == 0:
            shown = "  ".join(f"{name} {loss:.3f}" for name, loss in history.items())
            print(f"step {step}/{steps}  {(time.monotonic() - started) / 60:.1f} min  {shown}", flush=True)
    minutes = (time.monotonic() - started) / 60
    return {"steps": steps, "scenes_seen": steps * batch, "minutes": minutes, **{f"{k}_loss": v for k, v in history.items()}}


@torch.no_grad()
def generate(model: BlipForConditionalGeneration, tokenizer: BertTokenizer, images: np.ndarray) -> list[str]:
    """Greedy captions."""
    model.eval()
    texts: list[str] = []
    for start in range(0, len(images), 64):
        ids = model.generate(pixel_values=_pixels(images[start : start + 64]), max_new_tokens=60, num_beams=1)
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--scenes", type=int, default=45_000)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--processes", type=int, default=2, help="processes that render scenes")
    options = parser.parse_args()
    torch.manual_seed(0)

    images, cells, texts = make_scenes(options.scenes, seed=1, captions=4, processes=options.processes)
    held_out, _, references = make_scenes(1000, seed=2, captions=5, processes=options.processes)
    glosses, medical = read_glosses(options.wordnet)
    flat = [text for several in texts for text in several]
    tokenizer = make_tokenizer(options.out, flat[:20_000] + glosses + medical * 4)
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}), tokenizer)
    for thing in (make_model(tokenizer), processor):
        thing.save_pretrained(options.out)
    model = medgraft.load_backbone(f"blip-nano:{options.out}").model  # with fused attention
    captions = encode(tokenizer, flat, CAPTION_TOKENS).reshape(len(texts), -1, CAPTION_TOKENS)
    gloss_ids = encode(tokenizer, glosses, GLOSS_TOKENS)
    known = set(medical)
    weights = np.array([4.0 if gloss in known else 1.0 for gloss in glosses])
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens, {len(glosses)} glosses, {len(images)} scenes", flush=True)

    card = train(model, images, cells, captions, gloss_ids, weights, options.steps, options.batch, options.peak)
    model = model.half().float()  # what is shipped is what is scored
    predictions = generate(model, tokenizer, held_out)
    (options.out / "held_out.json").write_text(
        json.dumps({"predictions": predictions, "references": references}, indent=0), encoding="utf-8"
    )
    card |= {"parameters": parameters, "vocabulary": len(tokenizer), "scenes": options.scenes,
             "glosses": len(glosses), "torch": torch.__version__}  # fmt: skip
    (options.out / "training.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    model.half().save_pretrained(options.out)
    for prediction, reference in list(zip(predictions, references, strict=True))[:8]:
        print(f"  {prediction}\n    ({reference[0]})")


if __name__ == "__main__":
    main()
