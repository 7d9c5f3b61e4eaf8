"""Any OpenAI-compatible server through the openai client: OpenAI, vLLM, SGLang, llama.cpp, Ollama."""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from typing import Any

import openai

from medgraft.plugin_api import GenerationConfig
from medgraft_api.answers import Answer, NoRoomError
from medgraft_api.captioner import ApiCaptioner
from medgraft_api.settings import key


class OpenAiServer(ApiCaptioner):
    """A model by the name that the server knows it by."""

    provider = "openai"

    @classmethod
    def connect(cls) -> tuple[Any, str]:
        """See ApiCaptioner.connect."""
        client = openai.OpenAI(api_key=key("OPENAI_API_KEY"), max_retries=0)
        return client, str(client.base_url).rstrip("/")

    def ask(self, png: bytes, prompt: str, options: GenerationConfig) -> Answer:
        """See ApiCaptioner.ask."""
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}
        response = self.client.chat.completions.create(
            model=self.source,
            messages=[{"role": "user", "content": [image, {"type": "text", "text": prompt}]}],
            **self._limit(options.max_new_tokens),
            **_sampling(options),
        )
        if not getattr(response, "choices", None):
            raise ValueError("the answer has no choices")
        choice, used = response.choices[0], response.usage
        blocked = "content_filter" if choice.finish_reason == "content_filter" else None
        refused = blocked or choice.message.refusal
        if not choice.message.content and not refused:
            raise NoRoomError
        return Answer(
            text=choice.message.content or "",
            input_tokens=used.prompt_tokens if used else 0,
            output_tokens=used.completion_tokens if used else 0,
            model=response.model or self.source,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            refused=refused,
            cut_off=choice.finish_reason == "length" if choice.finish_reason else None,
        )

    def _limit(self, max_tokens: int) -> dict[str, int]:
        """OpenAI's newer models take the new name only, most other servers the old one only."""
        return {"max_completion_tokens" if "api.openai.com" in self.server else "max_tokens": max_tokens}

    @classmethod
    def image_tokens(cls, width: int, height: int) -> int:
        """GPT-4o's rule, 85 and 170 for each tile of 512 px after fitting into 2048 and 768 px; other models differ."""
        scale = min(1.0, 2048 / max(width, height), 768 / min(width, height))
        return 85 + 170 * math.ceil(width * scale / 512) * math.ceil(height * scale / 512)


def _sampling(options: GenerationConfig) -> dict[str, Any]:
    if not options.do_sample:
        return {"temperature": 0.0}
    return {"temperature": options.temperature, "top_p": options.top_p, "seed": options.seed}
