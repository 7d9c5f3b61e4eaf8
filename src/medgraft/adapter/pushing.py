"""Push an adapter to the Hugging Face hub: say first what would be uploaded and what it discloses, then upload one commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medgraft.adapter.contents import check_bytes, read_contents
from medgraft.adapter.hub import PACKAGE_FILES, HubName, hub_calls
from medgraft.adapter.manifest import CARD, MANIFEST, TENSORS, TRAINED_ON, Manifest
from medgraft.errors import AdapterError

_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATHS = re.compile(r"(?<![\w/.])(?:/[\w.+@-]+){2,}|\b[A-Za-z]:\\{1,2}\w[\w.\\-]*")  # absolute ones


@dataclass(frozen=True)
class Push:
    """What would be uploaded: `files` with their content, or where that lies; `disclosures` are sentences on what they tell.

    `stale` are the package's files on the hub that this one does not have, `parent` the commit that it would replace; None if
    there is no such repository or branch yet.
    """

    name: HubName
    files: Mapping[str, Path | bytes]
    disclosures: tuple[str, ...]
    public: bool
    exists: bool
    stale: tuple[str, ...] = ()
    parent: str | None = None

    def __str__(self) -> str:
        sizes = {file: len(what) if isinstance(what, bytes) else what.stat().st_size for file, what in self.files.items()}
        width = max(map(len, sizes))
        who = "public: anyone can download it" if self.public else "private"
        lines = [f"For {self.name} on the hub, {who}:"]
        lines += [f"  {file:<{width}}  {size:>13,} bytes" for file, size in sizes.items()]
        lines += [f"  {file:<{width}}  deleted there, as this adapter has none" for file in self.stale]
        return "\n".join([*lines, *self.disclosures])


@dataclass(frozen=True)
class Pushed:
    """Where an adapter is on the hub."""

    url: str
    commit: str


def plan_push(folder: Path, name: HubName, *, public: bool = False) -> Push:
    """What pushing the package in `folder` to `name` would upload; nothing is sent but questions.

    AdapterError if the package is damaged, without a token, or if the repository exists and its visibility is another.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    contents = read_contents(folder)
    check_bytes(contents)
    manifest = contents.manifest
    if manifest is None:
        raise AdapterError(f"{folder} is a plain PEFT adapter, without a manifest. Push it with PEFT's push_to_hub.")
    if name.revision and _COMMIT.fullmatch(name.revision):
        raise AdapterError(f"{name} is a commit, which cannot be changed. Push to a branch: {name.repo}@BRANCH.")
    with hub_calls(name):
        if get_token() is None:
            raise AdapterError("Pushing needs a token of the Hugging Face hub: log in with `hf auth login`, or set HF_TOKEN.")
        files = {file: folder / file for file in PACKAGE_FILES if (folder / file).is_file()}
        files = {file: path for file, path in files.items() if file in {MANIFEST, CARD, *manifest.files}}
        ready: dict[str, Path | bytes] = dict(files)
        if CARD in files and CARD not in manifest.files:
            ready[CARD] = _card_for_hub(folder, name)
        push = Push(name, ready, tuple(_disclosures(manifest, ready)), public, exists=False)
        try:
            info = HfApi().model_info(name.repo)
        except RepositoryNotFoundError:
            return push
        if bool(info.private) == public:
            now, wanted = ("private", "without --public") if info.private else ("public", "with --public")
            raise AdapterError(f"{name.repo} exists on the hub and is {now}. Push {wanted}, or change that on its page.")
        parent = None
        try:
            info = HfApi().model_info(name.repo, revision=name.revision)
            parent = info.sha
        except RevisionNotFoundError:
            pass  # a new branch, which starts as the main one
        stale = sorted({file.rfilename for file in info.siblings or ()} & set(PACKAGE_FILES) - set(ready))
        return Push(name, ready, push.disclosures, public, exists=True, stale=tuple(stale), parent=parent)


def push(plan: Push, *, message: str | None = None) -> Pushed:
    """Upload what `plan` lists, as one commit; makes the repository, or the branch, if it does not exist."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name, branch = HfApi(), plan.name, plan.name.revision or _MAIN
    with hub_calls(name):
        if not plan.exists:
            api.create_repo(name.repo, private=not plan.public)
        if branch != _MAIN:
            api.create_branch(name.repo, branch=branch, exist_ok=True)
        done = api.create_commit(
            name.repo,
            [
                *(CommitOperationAdd(file, what) for file, what in plan.files.items()),
                *(CommitOperationDelete(file) for file in plan.stale),
            ],
            commit_message=message or "Adapter of medgraft", revision=branch, parent_commit=plan.parent,
        )  # fmt: skip
    at = f"/tree/{branch}" if branch != _MAIN else ""
    return Pushed(f"{api.endpoint}/{name.repo}{at}", done.oid)


def _card_for_hub(folder: Path, name: HubName) -> bytes:
    """The card with the adapter's name on the hub in its examples, and no base in its metadata that is not on the hub."""
    from huggingface_hub import ModelCard

    card = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=False)
    base = card.data.get("base_model")
    if isinstance(base, str) and (HubName.parse(base) is None or Path(base).exists()):
        card.data.pop("base_model")
    where = f'"{name.repo}", revision="{name.revision}"' if name.revision else f'"{name.repo}"'
    for found, instead in (
        (r'load_adapter\("[^"]*"', f'load_adapter("{name}"'),
        (r'(PeftModel\.from_pretrained\(\w+, )"[^"]*"', rf"\g<1>{where}"),
        (rf'load_file\("[^"]*/({TENSORS})"\)', rf'load_file(hf_hub_download({where}, filename="\g<1>"))'),
        ("(?=from safetensors.torch import load_file)", "from huggingface_hub import hf_hub_download\n"),
    ):
        card.text = re.sub(found, instead, card.text)
    return str(card).encode()


def _disclosures(manifest: Manifest, files: Mapping[str, Path | bytes]) -> list[str]:
    found = [f"They name the base, {manifest.backbone}, and the data, {manifest.data.get('name')}."]
    if TRAINED_ON in files:
        found.append(
            f"{TRAINED_ON} has truncated digests of the training images and of the names of their patients or articles: "
            "whoever has an image or guesses a name can find out whether it was in training."
        )
    for file, what in files.items():
        if not file.endswith(".safetensors"):
            text = (what if isinstance(what, bytes) else what.read_bytes()).decode(errors="replace")
            if paths := sorted(set(_PATHS.findall(text))):
                more = f", and {len(paths) - 1} more" if len(paths) > 1 else ""
                found.append(f"{file} tells the path {paths[0]}{more}.")
    return found
