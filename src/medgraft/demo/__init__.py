"""A local page, made with Gradio, on which people try models on images of their own."""

from medgraft.demo.models import DemoModel, local_models

__all__ = ["DemoModel", "local_models"]
