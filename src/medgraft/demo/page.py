"""The page: an image, the captions of each model side by side, and the map of each of their words."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import gradio as gr
from PIL.Image import Image

from medgraft.data import open_image
from medgraft.demo.models import DemoModel
from medgraft.errors import MedgraftError
from medgraft.report import explanation_page
from medgraft.report.pages import jpeg_uri
from medgraft.saliency import Explanation

_FONT = ("system-ui", "Segoe UI", "DejaVu Sans", "sans-serif")
_PREVIEW = 720  # px, the longest side of the image on the page
_MOST_HELD = 16  # images, each of an open tab
CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.preview img { display: block; max-width: 100%; max-height: 360px; margin: 0 auto; background: #000; border-radius: 4px; }
.preview p { text-align: center; }
.preview p, .without { overflow-wrap: anywhere; }
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
    held: dict[str, Image] = {}  # by tab; Gradio's own state would outlive its tab by an hour

    def show(file: str, request: gr.Request) -> tuple[Any, ...]:
        image, name = _taken(Path(file))
        held.pop(request.session_hash, None)
        held[request.session_hash] = image
        while len(held) > _MOST_HELD:
            del held[next(iter(held))]
        return (None, _preview(image, name), *[""] * len(models), "")

    def forget(request: gr.Request) -> None:
        held.pop(request.session_hash, None)

    def captions(prompt: str, request: gr.Request) -> Iterator[tuple[str, ...]]:
        image = held.get(request.session_hash)
        if image is None:
            raise _shown("Drop an image first.")
        made = [""] * len(models)
        asked = prompt.strip() or None
        try:
            for number, model in enumerate(models):
                made[number] = model.caption(image, asked)
                yield (*made, "")
            yield (*made, _maps(models, image, made, asked))
        except MedgraftError as error:
            raise _shown(str(error)) from None

    with gr.Blocks(title="medgraft", analytics_enabled=False, delete_cache=(60, 60)) as page:
        gr.Markdown(f"# medgraft\n**Not for clinical use.** {privacy}")
        with gr.Row():
            with gr.Column(min_width=280):
                file = gr.File(label="Drop an image, DICOM or NIfTI file here", height=220, elem_id="file")
            with gr.Column(min_width=280):
                preview = gr.HTML(elem_classes="preview")
        with gr.Row(visible=any(model.takes_prompts for model in models)):
            prompt = gr.Textbox(
                label="Prompt, or a question to a model that answers them", scale=4, elem_id="prompt", max_length=2000,
                placeholder=_own_prompts(models),
            )  # fmt: skip
            again = gr.Button("Caption", variant="primary", min_width=120, elem_id="again")
        with gr.Row():
            texts = [
                gr.Textbox(label=model.name, lines=3, interactive=False, min_width=280, buttons=["copy"], elem_classes="made")
                for model in models
            ]
        maps = gr.HTML(elem_classes="maps")
        outputs = [*texts, maps]
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models"}
        shown = file.upload(show, file, [file, preview, *outputs], api_name="open", **alone)
        shown.success(captions, prompt, outputs, api_visibility="private", **alone)
        gr.on([again.click, prompt.submit], captions, prompt, outputs, api_name="caption", **alone)
        page.unload(forget)
    return page


def _taken(file: Path) -> tuple[Image, str]:
    """The image of an uploaded file, and the file's name; the file is deleted."""
    try:
        return open_image(file), file.name
    except MedgraftError as error:
        raise _shown(str(error).replace(str(file), file.name)) from None
    finally:
        rmtree(file.parent)  # Gradio's, with this file alone


def _shown(problem: str) -> gr.Error:
    """A user's mistake as a message on the page, without a traceback on the terminal."""
    return gr.Error(html.escape(problem), duration=None, print_exception=False)


def _preview(image: Image, name: str) -> str:
    size = f"{image.size[0]} × {image.size[1]}"
    source = jpeg_uri(image, longest=_PREVIEW, quality=90)
    return f'<img src="{source}" alt="the image"><p>{html.escape(name)}, {size}</p>'


def _own_prompts(models: Sequence[DemoModel]) -> str:
    own = dict.fromkeys(model.prompt for model in models if model.prompt)
    return f"Empty: each model's own, such as: {next(iter(own))}" if own else "Empty: none"


def _maps(models: Sequence[DemoModel], image: Image, captions: Sequence[str], prompt: str | None) -> str:
    """The explanation page in a frame, and why models have no maps."""
    found: dict[str, list[tuple[str, Explanation]]] = {}
    without = []
    for model, caption in zip(models, captions, strict=True):
        try:
            explanation = model.explain(image, caption, prompt)
        except MedgraftError as error:
            without.append(f"{model.name}: {error}")
            continue
        if explanation.maps.words:
            found[model.name] = [("attention", explanation)]
    lines = "".join(f'<p class="without">{html.escape(line)}</p>' for line in without)
    if not found:
        return lines
    page = html.escape(explanation_page(found, "Click a word of a caption."))
    return f'{lines}<iframe title="Maps of the words" srcdoc="{page}"></iframe>'
