"""What a manifest says of an adapter that another came from."""

from __future__ import annotations

import hashlib

from medgraft.adapter.contents import Contents
from medgraft.adapter.manifest import ADAPTER_CONFIG, WEIGHTS, Ancestor, file_entry


def ancestor(contents: Contents) -> Ancestor:
    """The entry for the adapter in `contents`."""
    digest, manifest = weights_digest(contents), contents.manifest
    if manifest is None:
        return Ancestor(adapter=digest)
    data, training = manifest.data, manifest.training
    return Ancestor(
        adapter=digest, data=data["name"], data_fingerprint=data.get("fingerprint"), images=training.get("images"),
        steps=training.get("steps"), epochs=training.get("epochs"), learning_rate=training.get("learning_rate"),
        seed=manifest.seed, conversion=str(manifest.conversion) if manifest.conversion else None, versions=manifest.versions,
    )  # fmt: skip


def weights_digest(contents: Contents) -> str:
    """SHA-256 over the digests of the files that determine what the adapter does."""
    names = [name for name in (ADAPTER_CONFIG, *WEIGHTS) if name in contents.files]
    files = contents.manifest.files if contents.manifest else {name: file_entry(contents.folder / name) for name in names}
    return hashlib.sha256("".join(f"{name}:{files[name].sha256}\n" for name in names).encode()).hexdigest()
