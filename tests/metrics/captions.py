"""The captions that the golden scores in tests/golden/coco_scores.json were made from: real ones, perturbed by rule."""

import random
from pathlib import Path


def roco_captions(shared: str | Path) -> tuple[list[str], list[str]]:
    """Ids and captions of ROCO's validation split, in file order, white space folded."""
    path = Path(shared) / "roco-v1/validation/radiology/captions.txt"
    pairs = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [key for key, _ in pairs], [" ".join(caption.split()) for _, caption in pairs]


def report_pairs(shared: str | Path) -> tuple[list[str], list[str]]:
    """382 notes on chest films, perturbed, and as they are: as many as a usual test split of IU X-Ray has."""
    files = sorted((Path(shared) / "cxr-notes").glob("*/radiology/captions.txt"))
    notes = [line.partition("\t")[2].split() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    references = [" ".join(words) for words in [*notes, *reversed(notes)]][:382]
    return perturbed(references), references


def perturbed(captions: list[str]) -> list[str]:
    """What a captioner might have said: a caption with words dropped, swapped or repeated, or another image's."""
    rng = random.Random(0)
    said = []
    for caption in captions:
        words = caption.split()
        kind = rng.randrange(5)
        if kind == 0:
            words = rng.choice(captions).split()
        elif kind == 1:
            words = [word for word in words if rng.random() > 0.25] or words
        elif kind == 2:
            i, j = rng.randrange(len(words)), rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
        elif kind == 3:
            words = words[: max(1, len(words) // 2)] * 2
        said.append(" ".join(words))
    return said
