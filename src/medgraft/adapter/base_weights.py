"""Whether a base has the weights that an adapter was trained on, and what differs if it does not.

`Manifest.base_tensors` has 16 hex digits for each tensor of the base, by name: the first 8 of its digest, and the first 8 of
the digest of its values rounded to bf16. They only describe a difference; what decides is the fingerprint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from medgraft.adapter.manifest import Manifest
from medgraft.backbones import Backbone
from medgraft.backbones.fingerprint import fingerprint
from medgraft.backbones.weights import TensorDigest
from medgraft.errors import AdapterError

_log = logging.getLogger(__name__)
_DIGITS = 8


def packed(digests: Mapping[str, TensorDigest]) -> str | None:
    """The value of `Manifest.base_tensors`; None without digests."""
    return "".join(_short(digests[name]) for name in sorted(digests)) or None


def check_base(base: Backbone, manifest: Manifest, folder: Path, *, allow_mismatch: bool) -> None:
    """Raise AdapterError if `base` has other weights than the one that the adapter was trained on; only warn if allowed."""
    digests = base.checkpoint_digests(base.source)
    found = fingerprint(digests) if digests else base.fingerprint(base.source)
    if manifest.base_fingerprint == found:
        return
    if manifest.base_fingerprint == base.former_fingerprint(base.source):
        return
    problem = (
        f"{folder} was trained on another base: it wants {manifest.backbone} with weights "
        f"{manifest.base_fingerprint[:12]}, but {base.source} has {found[:12]}: {_difference(manifest, digests)}."
    )
    if not allow_mismatch:
        raise AdapterError(
            f"{problem} Pass the right one with --backbone NAME:SOURCE, or use this one with --allow-base-mismatch."
        )
    _log.warning("%s It is used all the same, and captions may be worse than those that were scored.", problem)


def _difference(manifest: Manifest, digests: Mapping[str, TensorDigest]) -> str:
    if not manifest.base_tensors or not digests:
        return "the adapter does not say how they differ"
    text, step = manifest.base_tensors, 2 * _DIGITS
    wanted = [text[start : start + step] for start in range(0, len(text), step)]
    here = {name: _short(digests[name]) for name in sorted(digests)}
    if sorted(wanted) == sorted(here.values()):
        return "the same tensors under other names"
    if len(wanted) != len(here):
        return f"{len(here)} tensors instead of {len(wanted)}"
    other = [name for (name, own), want in zip(here.items(), wanted, strict=True) if own != want]
    rounded = all(here[name][_DIGITS:] == want[_DIGITS:] for name, want in zip(here, wanted, strict=True))
    what = "the values differ only by rounding to bf16" if rounded else f"such as {', '.join(other[:2])}"
    return f"{len(other)} of {len(here)} tensors differ, {what}"


def _short(digest: TensorDigest) -> str:
    return digest.sha256[:_DIGITS] + digest.rounded[:_DIGITS]
