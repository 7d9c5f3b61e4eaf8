"""Answer lmms-eval's requests; nothing here imports lmms-eval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import medgraft
from medgraft.plugin_api import ConfigError, DataError, GenerationConfig

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLING = ("temperature", "top_k", "top_p")


def answers(requests: Sequence[Any], documents: Mapping[str, Any], *, adapter: Any, batch_size: int) -> Iterator[str]:
    """The adapter's answers, in the order of the requests, up to the first of a request's `until` strings.

    `args` of a request are text, generation settings, a function from a document to its images, and the document's place in
    `documents`: number, task and split. The text is the prompt; without one the adapter has its own. Settings that a task
    does not name are the adapter's. ConfigError, before anything is answered, for a setting that medgraft does not have;
    DataError for a request that has not exactly one image.
    """
    alike = [list(group) for _, group in groupby(requests, key=lambda request: request.args[1])]
    decodings = [_decoding(group[0].args[1], adapter.generation) for group in alike]
    own = adapter.backbone.default_prompt if adapter.prompt is None else adapter.prompt
    done = 0
    for group, (generation, until) in zip(alike, decodings, strict=True):
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            images = [_image(request.args, documents) for request in batch]
            prompts = [_prompt(request.args[0]) or own for request in batch]
            options = generation.model_copy(update={"seed": generation.seed + done})  # other random numbers for each batch
            texts = medgraft.caption(images, adapter=adapter, prompt=prompts, generation=options)
            yield from (_cut(text, until) for text in texts)
            done += len(batch)


def _decoding(settings: Mapping[str, Any], own: GenerationConfig) -> tuple[GenerationConfig, Sequence[str]]:
    """The generation settings of a task over the adapter's `own`, and the strings that end an answer."""
    given = {name: value for name, value in settings.items() if value is not None and value != ""}
    until = given.pop("until", ())
    if "temperature" in given:  # 0 stands for greedy
        given.setdefault("do_sample", given["temperature"] > 0)
    if not given.get("do_sample", own.do_sample):
        given = {name: value for name, value in given.items() if name not in _SAMPLING}  # as transformers: not read
    try:
        return own.overridden(given), [until] if isinstance(until, str) else until
    except ConfigError as error:
        raise ConfigError(f"lmms-eval's generation_kwargs: {error} `--gen_kwargs NAME=` leaves a task's setting out.") from None


def _prompt(text: str) -> str:
    """The text without the placeholder of the image, which medgraft puts in its place."""
    return text.replace("<image>\n", "").replace("<image>", "")


def _image(arguments: Sequence[Any], documents: Mapping[str, Any]) -> Image | str:
    _, _, images_of, number, task, split = arguments
    images = _flat(images_of(documents[task][split][number]))
    if len(images) != 1:
        raise DataError(f"Document {number} of {task} has {len(images)} images. Take a task with one image for each question.")
    image: Image | str = images[0]
    return image


def _flat(found: Any) -> list[Any]:
    """Images that a task gives as one, as a list or as lists within a list; None is none."""
    if isinstance(found, list | tuple):
        return [image for each in found for image in _flat(each)]
    return [] if found is None else [found]


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings `until`."""
    return text[: min((text.index(end) for end in until if end and end in text), default=len(text))]
