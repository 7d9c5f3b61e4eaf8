"""Whether the scored images are chest films, for reports of which radeval's models were made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medgraft.plugin_api import CaptionSet

_KIND, _PLACE = ("study", "modality"), ("location", "organ", "body_part", "region")  # facts that data sets have
_FILM = re.compile(r"\b(x ?rays?|xr|radiographs?|radiograph(y|ic)|films?|cxr|cr|dx)\b")
_OTHER = re.compile(
    r"\b(cta?|computed tomograph\w*|m(r|ri|ra|rcp)|magnetic resonance|ultraso\w*|sonogra\w*|echocardiogra\w*|doppler|pet"
    r"|spect|scintigra\w*|angiogra\w*|mammogra\w*|endoscop\w*|colonoscop\w*|histolog\w*|patholog\w*)\b"
)
_CHEST = re.compile(r"\b(chest|cxr|thora\w+|lungs?|pulmonary|pleura\w*|pneumothora\w+|heart|cardi\w+|mediastin\w+)\b")


def chest_film_notes(captions: CaptionSet) -> tuple[str, ...]:
    """A sentence if fewer than half of the images are chest films, or if that is not known; none if half or more are."""
    facts = captions.facts or (None,) * len(captions.references)
    found = [is_chest_film(known or {}, texts) for known, texts in zip(facts, captions.references, strict=True)]
    images, films, others = len(found), found.count(True), found.count(False)
    if 2 * films >= images:
        return ()
    counted = f"{films:,} of {images:,} are, {others:,} are not, {images - films - others:,} unknown"
    purpose = "radgraph, ratescore, chexbert and green are for reports of chest films"
    if 2 * others > images:
        return (f"Fewer than half of the scored images are chest films ({counted}); {purpose} and say little here.",)
    return (f"It is not known whether half of the scored images are chest films ({counted}); {purpose}.",)


def is_chest_film(facts: Mapping[str, Any], references: Sequence[str]) -> bool | None:
    """Whether an image is one by its facts, else by what its references name; None if neither says so."""
    kind, place = (_words(str(facts[name]) for name in names if facts.get(name)) for names in (_KIND, _PLACE))
    text = _words(references)
    if (kind and not _FILM.search(kind)) or (place and not _CHEST.search(place)):
        return False
    if kind or facts.get("view"):  # readers of reports give the view of a film
        return True if _CHEST.search(f"{kind} {place} {text}") else None
    if _FILM.search(text):
        return bool(_CHEST.search(text))
    return False if _OTHER.search(text) else None


def _words(texts: Any) -> str:
    """`texts` in lower case, with a space for whatever is no letter or digit."""
    return re.sub(r"[\W_]+", " ", " ".join(texts).lower())
