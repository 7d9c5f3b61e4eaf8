"""Readers of images with captions, in their usual layouts."""

from medgraft.data.base import Dataset
from medgraft.data.image_chunks import data_fingerprint
from medgraft.data.images import open_image
from medgraft.data.loading import RefusedDataError, load_data
from medgraft.data.text import clean_caption

__all__ = ["Dataset", "RefusedDataError", "clean_caption", "data_fingerprint", "load_data", "open_image"]
