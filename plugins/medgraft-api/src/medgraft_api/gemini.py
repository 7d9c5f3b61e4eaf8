"""Gemini through Google's own client."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from google import genai
from google.genai import types

from medgraft.plugin_api import GenerationConfig
from medgraft_api.answers import Answer, NoRoomError
from medgraft_api.captioner import ApiCaptioner
from medgraft_api.settings import key


class Gemini(ApiCaptioner):
    """A Gemini model by its name, such as `gemini-2.5-flash` or the paper's `gemini-1.5-flash`."""

    provider = "gemini"
    default_source = "gemini-2.5-flash"
    generation_settings = (*ApiCaptioner.generation_settings, "top_k")

    @classmethod
    def connect(cls) -> tuple[Any, str]:
        """See ApiCaptioner.connect."""
        client = genai.Client(api_key=key("GEMINI_API_KEY", "GOOGLE_API_KEY"))
        return client, str(client._api_client._http_options.base_url).rstrip("/")

    def ask(self, png: bytes, prompt: str, options: GenerationConfig) -> Answer:
        """See ApiCaptioner.ask."""
        response = self.client.models.generate_content(
            model=self.source,
            contents=[types.Part.from_bytes(data=png, mime_type="image/png"), prompt],
            config=types.GenerateContentConfig(
                max_output_tokens=options.max_new_tokens,
                thinking_config=self._thinking(),
                temperature=options.temperature if options.do_sample else 0.0,
                top_p=options.top_p if options.do_sample else None,
                top_k=options.top_k or None,
                seed=options.seed if options.do_sample else None,
            ),
        )
        used, text, refused = response.usage_metadata, _text(response), _refusal(response)
        if not text and refused is None:
            raise NoRoomError
        return Answer(
            text=text,
            input_tokens=(used.prompt_token_count if used else None) or 0,
            output_tokens=((used.candidates_token_count if used else None) or 0)
            + ((used.thoughts_token_count if used else None) or 0),
            model=response.model_version or self.source,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            refused=refused,
            cut_off=_cut_off(response),
        )

    def _thinking(self) -> types.ThinkingConfig | None:
        """No thinking where it can be switched off, since thoughts count against the answer's length."""
        return types.ThinkingConfig(thinking_budget=0) if "2.5-flash" in self.source else None

    @classmethod
    def image_tokens(cls, width: int, height: int) -> int:
        """258 up to 384 px a side; larger images are cut into tiles of 768 px, 258 each."""
        if max(width, height) <= 384:
            return 258
        return 258 * math.ceil(width / 768) * math.ceil(height / 768)


def _text(response: types.GenerateContentResponse) -> str:
    parts = response.candidates[0].content.parts if response.candidates and response.candidates[0].content else None
    return "".join(part.text or "" for part in parts or () if not part.thought)


def _cut_off(response: types.GenerateContentResponse) -> bool | None:
    reason = response.candidates[0].finish_reason if response.candidates else types.FinishReason.OTHER
    return None if reason is None else reason == types.FinishReason.MAX_TOKENS


def _refusal(response: types.GenerateContentResponse) -> str | None:
    feedback = response.prompt_feedback
    if feedback and feedback.block_reason:
        return str(feedback.block_reason.value)
    if not response.candidates:
        raise ValueError("the answer has neither a candidate nor a reason for having none")
    reason = response.candidates[0].finish_reason
    if reason in (None, types.FinishReason.STOP, types.FinishReason.MAX_TOKENS):
        return None
    return str(reason.value)
