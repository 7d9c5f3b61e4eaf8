"""Zero-shot captioning by API: Gemini, and any OpenAI-compatible server."""

from collections.abc import Iterator

import medgraft


@medgraft.hookimpl
def medgraft_backbones() -> Iterator[medgraft.BackboneSpec]:
    """The two kinds of server; the source is the model's name there."""
    yield medgraft.BackboneSpec("gemini", "Gemini by API, zero-shot only", "medgraft_api.gemini:Gemini", remote=True)
    yield medgraft.BackboneSpec(
        "openai", "any OpenAI-compatible server, zero-shot only", "medgraft_api.openai_server:OpenAiServer", remote=True
    )
