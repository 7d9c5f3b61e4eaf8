"""The page: an image, the captions of each model side by side, and the map of each of their words."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import gradio as gr
from PIL.Image import Image

from medgraft.data import open_image
from medgraft.demo.models import DemoModel
from medgraft.errors import MedgraftError, first_line
from medgraft.report import explanation_page
from medgraft.report.pages import jpeg_uri
from medgraft.saliency import Explanation

_logger = logging.getLogger(__name__)
_FONT = ("system-ui", "Segoe UI", "DejaVu Sans", "sans-serif")
_PREVIEW = 720  # px, the longest side of the image on the page
_MOST_PICTURES = 16  # images, each of an open tab
CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.html-container { padding: 0 !important; }
.preview img { display: block; max-width: 100%; min-height: 220px; max-height: 360px; margin: 0 auto; border-radius: 4px; }
.preview p { text-align: center; }
.preview p, p.problem { overflow-wrap: anywhere; }
p.problem { margin: 0 !important; padding: 8px 12px; border-left: 4px solid #d97706; background: var(--block-background-fill); }
.block:has(> .html-container > .prose:empty) { display: none; }
#again { align-self: end; max-height: 44px; }
.maps iframe { width: 100%; height: 85vh; border: 1px solid var(--border-color-primary); border-radius: 8px; }
footer { display: none !important; }
"""


def theme() -> Any:
    """Gradio's plain theme with the fonts of the machine, as its own would come from a network."""
    return gr.themes.Base(primary_hue="blue", font=list(_FONT), font_mono=["ui-monospace", "monospace"])


def demo_page(models: Sequence[DemoModel], privacy: str) -> Any:
    """The Gradio page of `models`; `privacy` says where images go. An image is held in memory, for as long as its tab is open.

    One image is captioned at a time, because the models share the weights of their base.
    """
    pictures: dict[str, tuple[Image, str]] = {}  # with its name, by tab; Gradio's own state would outlive its tab by an hour
    nothing = ("",) * len(models)

    def opened(file: str, prompt: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        pictures.pop(request.session_hash, None)
        try:
            image, name = _taken(Path(file))
        except Exception as error:
            yield (None, "", _failed(error).replace(file, Path(file).name), *nothing, "")
            return
        pictures[request.session_hash] = image, name
        while len(pictures) > _MOST_PICTURES:
            del pictures[next(iter(pictures))]
        preview = _preview(image, name)
        yield (None, preview, "", *nothing, "")
        for made in captions(prompt, request):
            yield (None, preview, *made)

    def forget(request: gr.Request) -> None:
        pictures.pop(request.session_hash, None)

    def captions(prompt: str, request: gr.Request) -> Iterator[tuple[str, ...]]:
        if request.session_hash not in pictures:
            yield (_problem("Drop an image first."), *nothing, "")
            return
        image, name = pictures[request.session_hash]
        made, asked = list(nothing), prompt.strip() or None
        try:
            for number, model in enumerate(models):
                made[number] = model.caption(image, asked)
                yield ("", *made, "")
            yield ("", *made, _maps(models, image, made, asked, name))
        except Exception as error:
            yield (_failed(error), *made, "")

    with gr.Blocks(title="medgraft", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.Markdown(f"# medgraft\n**Not for clinical use.** {privacy}")
        with gr.Row():
            with gr.Column(min_width=280):
                file = gr.File(label="Drop an image, DICOM or NIfTI file here", height=220, elem_id="file")
            with gr.Column(min_width=280):
                preview = gr.HTML(elem_classes="preview")
        with gr.Row(visible=any(model.takes_prompts for model in models)):
            prompt = gr.Textbox(
                label="Prompt, or a question to a model that answers them", scale=4, min_width=280, elem_id="prompt",
                max_length=2000, placeholder=_own_prompts(models),
            )  # fmt: skip
            again = gr.Button("Caption", variant="primary", min_width=120, elem_id="again")
        problem = gr.HTML()
        with gr.Row():
            texts = [
                gr.Textbox(label=model.name, lines=3, interactive=False, min_width=280, buttons=["copy"], elem_classes="made")
                for model in models
            ]
        maps = gr.HTML(elem_classes="maps")
        outputs = [problem, *texts, maps]
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress_on": texts}
        file.upload(opened, [file, prompt], [file, preview, *outputs], api_name="open", **alone)
        gr.on([again.click, prompt.submit], captions, prompt, outputs, api_name="caption", **alone)
        page.unload(forget)
    return page


def _taken(file: Path) -> tuple[Image, str]:
    """The image of an uploaded file, and the file's name; the file is deleted. DataError if it is no image."""
    try:
        return open_image(file), file.name
    finally:
        rmtree(file.parent)  # Gradio's, with this file alone


def _problem(problem: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(problem)}</p>'


def _failed(error: Exception, model: str = "") -> str:
    """What failed, as a line on the page; the traceback of what a user cannot have caused goes to the log."""
    what = str(error)
    if not isinstance(error, MedgraftError):
        what = f"{type(error).__name__}: {first_line(error)}. The terminal of medgraft demo shows where."
        _logger.exception("The demo could not answer")
    return _problem(f"{model}: {what}" if model else what)


def _preview(image: Image, name: str) -> str:
    size = f"{image.size[0]} × {image.size[1]}"
    source = jpeg_uri(image, longest=_PREVIEW, quality=90)
    return f'<img src="{source}" alt="the image"><p>{html.escape(name)}, {size}</p>'


def _own_prompts(models: Sequence[DemoModel]) -> str:
    own = dict.fromkeys(model.prompt for model in models if model.prompt)
    return f"Left empty: each model's own, such as: {next(iter(own))}" if own else "Left empty: no prompt"


def _maps(models: Sequence[DemoModel], image: Image, captions: Sequence[str], prompt: str | None, name: str) -> str:
    """The explanation page in a frame, and why models have no maps."""
    found: dict[str, list[tuple[str, Explanation]]] = {}
    without = []
    for model, caption in zip(models, captions, strict=True):
        try:
            explanation = model.explain(image, caption, prompt)
        except Exception as error:
            without.append(_failed(error, model.name))
            continue
        if explanation.maps.words:
            found[model.name] = [("attention", explanation)]
    lines = "".join(without)
    if not found:
        return lines
    page = html.escape(explanation_page(found, name))
    return f'{lines}<iframe title="Maps of the words" srcdoc="{page}"></iframe>'
