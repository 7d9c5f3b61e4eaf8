"""Adapters on the Hugging Face hub: their names, their files in the hub's cache, and its errors in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medgraft.adapter.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, FILES, MANIFEST, TOKENIZER_FILES, WEIGHTS
from medgraft.errors import AdapterError, MedgraftError, first_line
from medgraft.progress import bars_are_shown

PACKAGE_FILES = (MANIFEST, *FILES, CARD, *TOKENIZER_FILES)

_WEIGHTS_LIMIT, _TEXT_LIMIT = 10 << 30, 64 << 20  # bytes of one file
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SECONDS = 10  # until the first answer
_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubName:
    """A model repository on the hub, and its branch, tag or commit; None stands for its main branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Of `USER/REPO` or `USER/REPO@REVISION`; None if `text` has another form."""
        found = _NAME.fullmatch(text)
        return cls(found["repo"], found["revision"]) if found and ".." not in text else None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True)
class Snapshot:
    """The files of a commit, in the hub's cache on this machine."""

    folder: Path
    commit: str


def named_on_hub(text: str) -> HubName:
    """The name that `text` is; AdapterError if it is none."""
    name = HubName.parse(text)
    if name is None:
        raise AdapterError(f"{text} is no name on the hub. Write USER/REPO or USER/REPO@REVISION.")
    return name


def download(name: HubName, *, again: bool = False) -> Snapshot:
    """The package `name` in the hub's cache, downloaded unless it is there; `again` replaces what is there.

    Only files of a package are downloaded, no pickles, and none before the sizes of all were found within limits. If the hub
    cannot be reached, what was downloaded before is used, and logged to be so.
    """
    from huggingface_hub import HfApi, snapshot_download

    with hub_calls(name):
        try:
            info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=_SECONDS)
        except Exception as error:
            if not _unreachable(error):
                raise
            return _downloaded_before(name, error)
        _check_files(name, {file.rfilename: file.size for file in info.siblings or ()})
        folder = Path(
            snapshot_download(name.repo, revision=name.revision, allow_patterns=list(PACKAGE_FILES), force_download=again)
        )
        if folder.name != info.sha:
            raise AdapterError(f"{name} changed on the hub while it was downloaded. Run the same command again.")
    _logger.info("Adapter %s of the hub, commit %s.", name.repo, folder.name)
    return Snapshot(folder, folder.name)


def _downloaded_before(name: HubName, reason: Exception) -> Snapshot:
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionResolutionError,
    )

    on_purpose = isinstance(reason, OfflineModeIsEnabled)
    obstacle = "HF_HUB_OFFLINE is set" if on_purpose else f"the hub cannot be reached ({first_line(reason)})"
    try:
        revision = HfApi().resolve_revision(name.repo, revision=name.revision, local_files_only=True)
        files = get_cached_repo_tree(name.repo, revision=revision)  # a snapshot without this list may lack some
        folder = snapshot_download(name.repo, revision=revision, allow_patterns=list(PACKAGE_FILES), local_files_only=True)
    except (RevisionResolutionError, CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        raise AdapterError(f"{name} was not downloaded to this machine before, or not all of it, and {obstacle}.") from None
    _check_files(name, {file.path: file.size for file in files})
    _logger.log(
        logging.INFO if on_purpose else logging.WARNING,
        "Adapter %s as it was downloaded before, commit %s, as %s.", name, revision.resolved, obstacle,
    )  # fmt: skip
    return Snapshot(Path(folder), revision.resolved)


def _check_files(name: HubName, sizes: Mapping[str, int | None]) -> None:
    """AdapterError unless the files of a repository, with their `sizes` in bytes, are an adapter that may be downloaded."""
    if MANIFEST not in sizes and ADAPTER_CONFIG not in sizes:
        raise AdapterError(f"{name} on the hub is no adapter: it has neither {MANIFEST} nor {ADAPTER_CONFIG}.")
    if not set(WEIGHTS) & set(sizes) or (MANIFEST not in sizes and ADAPTER_WEIGHTS not in sizes):
        pickles = [file for file in sizes if file.endswith(_PICKLES)]
        if pickles:
            raise AdapterError(
                f"{name} on the hub has its weights in {pickles[0]!r}, a pickle, which can run any code when it is read. "
                f"Ask its author for {ADAPTER_WEIGHTS}."
            )
        raise AdapterError(f"{name} on the hub has no weights: {ADAPTER_WEIGHTS} is missing.")
    for file in (file for file in PACKAGE_FILES if file in sizes):
        size, limit = sizes[file], _WEIGHTS_LIMIT if file.endswith(".safetensors") else _TEXT_LIMIT
        if size is None or size > limit:
            found = "an unknown size" if size is None else f"{size / 1e9:.1f} GB"
            raise AdapterError(
                f"{file} of {name} on the hub has {found}, and at most {limit / 1e9:.1f} GB are downloaded. "
                f"If you trust it: hf download {name.repo} --local-dir FOLDER, and name that folder."
            )


@contextmanager
def hub_calls(name: HubName) -> Iterator[None]:
    """Inside the block the hub's client has bars if medgraft has, and its errors become an AdapterError of one line."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, hidden = logging.getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        enable_progress_bars() if bars_are_shown() else disable_progress_bars()
    try:
        yield
    except MedgraftError:
        raise
    except Exception as error:  # the client has errors of its own, of httpx, and of Python
        cause = error.__cause__ if isinstance(error, RuntimeError) else None  # of an upload that failed
        raise AdapterError(_sentence(cause if isinstance(cause, Exception) else error, name)) from error
    finally:
        logger.setLevel(level)
        if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars() if hidden else enable_progress_bars()


def _sentence(error: Exception, name: HubName) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    login = "log in with `hf auth login`, or set HF_TOKEN"
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return f"{name} is not asked for on the hub, as HF_HUB_OFFLINE is set."
    if isinstance(error, GatedRepoError):
        return f"{name.repo} on the hub is open only to those who asked for access on its page: ask there, and {login}."
    if isinstance(error, RevisionNotFoundError):
        return f"{name.repo} on the hub has no branch, tag or commit {name.revision or 'main'}."
    if isinstance(error, RepositoryNotFoundError):
        who = "your token may not read it" if get_token() else f"it is private: {login}"
        return f"The hub has no model {name.repo}, or {who}."
    if status == 401:
        return f"The hub does not accept your token: {login}."
    if status == 403:
        return f"The hub does not allow this to your token: it needs the right to write to {name.repo}."
    if status in (409, 412):
        return f"{name} was changed on the hub meanwhile. Run the same command again."
    if status == 429:
        return "The hub takes no more requests from you for a while. Try again in some minutes."
    if _unreachable(error):
        return f"The hub cannot be reached: {first_line(error)}"
    return f"{name} on the hub: {first_line(error)}"


def _unreachable(error: Exception) -> bool:
    """Whether the hub did not answer, or answered that it is down."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http_error = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, by the version of huggingface_hub
    status = _status(error)
    return isinstance(error, (OfflineModeIsEnabled, http_error)) and (status is None or status >= 500)


def _status(error: Exception) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
