"""Asking a server for captions: cache first, then a few requests at a time, no faster than allowed, again if it fails."""

from __future__ import annotations

import hashlib
import io
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, Self

import tenacity
from PIL.Image import Image

from medgraft.plugin_api import BackboneError, GenerationConfig, RemoteCaptioner, Usage
from medgraft_api.answers import Answer, AnswerCache, question_id
from medgraft_api.settings import Settings, read_settings, without_password

FIRST_PAUSE = 0.5  # seconds; doubled with every further try
_FINAL = range(400, 500)  # a client's mistake, which no second try mends,
_AGAIN = (408, 409, 425, 429)  # but for these


class ApiCaptioner(RemoteCaptioner):
    """A model on one server. Subclasses say how to ask it once; keys stay inside the provider's own client."""

    provider: ClassVar[str]
    generation_settings: ClassVar[tuple[str, ...]] = ("max_new_tokens", "do_sample", "temperature", "top_p", "seed")

    def __init__(self, source: str, client: Any, server: str, settings: Settings):
        self.source = source
        self.client = client
        self.server = without_password(server)  # which is printed, and stored with each answer
        self.settings = settings
        self._cache = AnswerCache(settings.cache / self.provider)
        self._usage = Usage(usd=0.0 if settings.price else None, cut_off=0)
        self._lock = threading.Lock()
        self._next = 0.0  # when the next request may start

    @classmethod
    def load(cls, source: str) -> Self:
        """See RemoteCaptioner.load; the first request says on stderr where images are sent."""
        settings = read_settings()
        return cls(source, *cls.connect(), settings)

    @classmethod
    @abstractmethod
    def connect(cls) -> tuple[Any, str]:
        """The provider's client, and the server that it talks to."""

    @abstractmethod
    def ask(self, png: bytes, prompt: str, options: GenerationConfig) -> Answer:
        """One request, without second tries; follows `generation_settings`, with temperature 0 unless it samples."""

    @classmethod
    @abstractmethod
    def image_tokens(cls, width: int, height: int) -> int:
        """What an image of this size counts as input, by the provider's published rule."""

    @classmethod
    def fingerprint(cls, source: str) -> str:
        """See RemoteCaptioner.fingerprint."""
        return hashlib.sha256(f"{cls.provider}:{source}".encode()).hexdigest()

    def usage(self) -> Usage:
        """See RemoteCaptioner.usage."""
        return self._usage

    @classmethod
    def estimate(cls, source: str, sizes: Sequence[tuple[int, int]], *, prompt: str, options: GenerationConfig) -> Usage:
        """See RemoteCaptioner.estimate: four characters a token, and the longest answer for every image."""
        asked = sum(cls.image_tokens(*size) + len(prompt) // 4 + 1 for size in sizes)
        answered = len(sizes) * options.max_new_tokens
        return Usage(len(sizes), 0, asked, answered, _usd(read_settings(), asked, answered))

    def caption(self, images: Sequence[Image], *, prompt: str, options: GenerationConfig) -> list[str]:
        """See RemoteCaptioner.caption. Raises BackboneError when a request has failed for good; answers so far are kept."""
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            answers = list(pool.map(lambda image: self._answer(image, prompt, options), images))
        return [" ".join(answer.text.split()) for answer in answers]

    def _answer(self, image: Image, prompt: str, options: GenerationConfig) -> Answer:
        asked = {"max_tokens": options.max_new_tokens, "temperature": options.temperature if options.do_sample else 0}
        asked |= {"top_k": options.top_k, "top_p": options.top_p, "seed": options.seed} if options.do_sample else {}
        question = {"model": self.source, "server": self.server, "prompt": prompt, **asked}
        key = question_id(image, **question)
        known = self._cache.get(key)
        if known is not None:
            self._count(known, cached=1)
            return known
        answer = self._ask_until_answered(_png(image), prompt, options)
        self._cache.put(key, answer, question)
        self._count(answer, requests=1, input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
        return answer

    def _ask_until_answered(self, png: bytes, prompt: str, options: GenerationConfig) -> Answer:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            wait=tenacity.wait_exponential_jitter(initial=FIRST_PAUSE, max=60),
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and not is_final(error)),
            reraise=True,
        )
        try:
            return retrying(self._ask_in_turn, png, prompt, options)
        except Exception as error:  # every server's client has errors of its own
            message = (str(error).splitlines() or [""])[0][:200]
            raise BackboneError(
                f"{self.provider}:{self.source} at {self.server} gave no answer: {type(error).__name__}: {message}. "
                "Answers so far are kept; the same command goes on from there."
            ) from None

    def _ask_in_turn(self, png: bytes, prompt: str, options: GenerationConfig) -> Answer:
        with self._lock:
            if not self._next:
                print(f"{self.provider}: images are sent to {self.server}", file=sys.stderr, flush=True)
            start = max(time.monotonic(), self._next)
            self._next = start + 60 / self.settings.requests_per_minute
        time.sleep(max(start - time.monotonic(), 0))
        return self.ask(png, prompt, options)

    def _count(self, answer: Answer, **more: int) -> None:
        more["refused"] = int(answer.refused is not None)
        with self._lock:
            counted = {name: getattr(self._usage, name) + value for name, value in more.items()}
            so_far = self._usage.cut_off
            cut_off = None if so_far is None or answer.cut_off is None else so_far + answer.cut_off
            usage = replace(self._usage, **counted, cut_off=cut_off)
            self._usage = replace(usage, usd=_usd(self.settings, usage.input_tokens, usage.output_tokens))


def is_final(error: Exception) -> bool:
    """Whether asking again cannot help: the server answered that the request is wrong."""
    codes = (getattr(error, name, None) for name in ("code", "status_code"))  # google-genai's name and openai's
    return any(isinstance(code, int) and code in _FINAL and code not in _AGAIN for code in codes)


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _usd(settings: Settings, asked: int, answered: int) -> float | None:
    return None if settings.price is None else (asked * settings.price[0] + answered * settings.price[1]) / 1e6
