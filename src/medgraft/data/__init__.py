"""Readers of images with captions, in their usual layouts."""

from medgraft.data.base import Dataset, RefusedDataError, data_fingerprint, load_data
from medgraft.data.images import open_image
from medgraft.data.text import clean_caption

__all__ = ["Dataset", "RefusedDataError", "clean_caption", "data_fingerprint", "load_data", "open_image"]
