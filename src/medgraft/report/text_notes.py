"""What records say about length and language of captions, and what metrics say about scores, as sentences below a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from medgraft.benchmark import Record


def text_notes(records: Iterable[Record]) -> list[str]:
    """The warnings about truncated captions, unknown tokens and long references, and the metrics' notes, each once."""
    found: dict[str, None] = {}
    for record in records:
        found |= dict.fromkeys(record.text.warnings() if record.text else ())
        if record.generated and record.generated.has_long_references:
            found[record.generated.references()] = None
        found |= dict.fromkeys(record.notes or ())
    return list(found)


def cut_off_share(records: Iterable[Record]) -> float | None:
    """The mean share of generated captions that were cut off; None if no record has it."""
    found = [record.generated for record in records if record.generated]
    shares = [each.cut_off / each.captions for each in found if each.cut_off is not None and each.captions]
    return fmean(shares) if shares else None


def cut_off_note(shares: Mapping[str, float | None]) -> Sequence[str]:
    """A sentence with the strategies whose captions were cut off, by name; none if no captions were."""
    cut_off = [f"{name} {share:.0%}" if share >= 0.01 else f"{name} below 1%" for name, share in shares.items() if share]
    return [f"Generated captions that were cut off at generation.max_new_tokens: {', '.join(cut_off)}."] if cut_off else []
