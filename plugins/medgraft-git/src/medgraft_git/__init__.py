"""GIT as a medgraft backbone."""

from collections.abc import Iterator

import medgraft


@medgraft.hookimpl
def medgraft_backbones() -> Iterator[medgraft.BackboneSpec]:
    """`git:HUB_ID` or `git:FOLDER`."""
    yield medgraft.BackboneSpec(
        "git", "GIT, a decoder that reads image tokens", "medgraft_git.backbone:GitBackbone", {"git": "medgraft_git.tiny:git"}
    )
