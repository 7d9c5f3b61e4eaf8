"""The sections of a radiology report, found by their headings, by the rules of MIMIC-CXR's own code."""

from __future__ import annotations

import re

from medgraft.data.text import clean_caption

# what a heading's words say, the first that occur; a section is taken from the first of its kinds that the report has
_KINDS = (
    ("impression", r"impression|conclusion"),
    ("findings", r"finding"),
    ("comparison", r"comparison|reference exam"),
    ("indication", r"indication|reason for"),
    ("history", r"history|clinical information"),
    ("view", r"chest|portable|\bviews?\b|frontal|lateral|\blat\b|\bribs\b"),  # CHEST, PA AND LATERAL: what is seen
)
_SECTIONS = {
    "findings": ("findings", "view"),
    "impression": ("impression",),
    "indication": ("indication", "history"),
    "comparison": ("comparison",),
}
_KNOWN = (
    r"findings?(?: ?/ ?impression| and impression)?|impression|conclusions?|comparisons?|(?:clinical )?indications?|"
    r"reason for exam(?:ination)?|(?:clinical |patient )?history|clinical information|exam(?:ination)?|technique|"
    r"recommendations?|notification|wet read|addendum"
)
# words in capitals at the start of a line, or a usual heading anywhere, as in reports on one line
_HEADING = re.compile(rf"(?:^[ \t]*([A-Z][A-Z0-9 ()/,&-]+)|(?<!\S)((?=[A-Z])(?i:{_KNOWN})))[ \t]*:", re.MULTILINE)


def report_sections(text: str) -> dict[str, str]:
    """The sections `findings`, `impression`, `indication` and `comparison` that a report has, each on one line.

    Any words in capitals with a colon at the start of a line are a heading and end the section before. Of several sections of
    one kind the last that is not empty counts. What is both findings and impression is the impression.
    """
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        name = (heading[1] or heading[2]).lower()
        kind = next((kind for kind, words in _KINDS if re.search(words, name)), None)
        if kind is not None and (body := clean_caption(text[heading.end() : end])):
            found[kind] = body
    chosen = {section: next((found[kind] for kind in kinds if kind in found), None) for section, kinds in _SECTIONS.items()}
    return {section: body for section, body in chosen.items() if body is not None}
