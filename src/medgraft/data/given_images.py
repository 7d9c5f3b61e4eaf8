"""Images as people have them in Python: files, PIL images and arrays, prepared as the same images are when read from a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from medgraft.config import DataConfig
from medgraft.data.decoded import ImageError, decoding
from medgraft.data.images import open_image
from medgraft.data.pictures import as_rgb
from medgraft.errors import DataError
from medgraft.types import ImagePart, ImageSource, Prompts, prompt_of_each

GivenImage: TypeAlias = str | Path | ImagePart | Image.Image | np.ndarray[Any, Any]
GivenPair: TypeAlias = tuple[GivenImage, str | Sequence[str]]  # with its caption or captions


GivenStudy: TypeAlias = tuple[GivenImage, ...]  # images that a model sees together
ImageOrStudy: TypeAlias = ImageSource | Image.Image | tuple[ImageSource | Image.Image, ...]  # as they are prepared


def is_single(images: GivenImage | Sequence[GivenImage | GivenStudy]) -> bool:
    """Whether `images` is one image. Arrays of 4 dimensions are several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    return isinstance(images, str | Path | ImagePart | Image.Image)


def given_image(image: GivenImage) -> ImageSource | Image.Image:
    """A file's path, or an RGB image from a PIL image or an array.

    Arrays are [H, W], [H, W, 1] or [H, W, 3] with values 0 to 255 in uint8, 0 to 1 in a float dtype, or False and True. A PIL
    image is shown as its file would be: turned by EXIF, transparency over black, more than 8 bits in the default window.
    DataError for anything else.
    """
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, Path | ImagePart):
        return image
    try:
        if isinstance(image, Image.Image):
            with decoding("content"):  # Pillow may not have read its file yet
                return as_rgb(image)
        if isinstance(image, np.ndarray):
            return Image.fromarray(_levels(image)).convert("RGB")
    except ImageError as error:
        raise DataError(f"The given image cannot be used: {error}.") from None
    name = f"{type(image).__module__}.{type(image).__qualname__}"
    raise DataError(f"An image is a path, a PIL image or a NumPy array [H, W, 3], not {name}. Convert it, such as by numpy().")


def _levels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array's levels, [H, W] or [H, W, 3], in uint8."""
    shape = list(array.shape)
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] != 3) or not array.size:
        turn = " Move the channels to the end: array.transpose(1, 2, 0)" if array.ndim == 3 and shape[0] in (1, 3) else ""
        raise ImageError(f"an array has the shape [H, W] or [H, W, 3], this one has {shape}.{turn}".rstrip("."))
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"an array is uint8 or float, this one is {array.dtype}: map its values to 0 to 255 first")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ImageError(f"a {array.dtype} array has values from 0 to 1, this one from {low:g} to {high:g}")
    levels: np.ndarray[Any, np.dtype[np.uint8]] = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return levels


def images_of(image: ImageOrStudy) -> tuple[ImageSource | Image.Image, ...]:
    """The images of a study, or the one image."""
    return image if isinstance(image, tuple) else (image,)


def given_images(images: GivenImage | Sequence[GivenImage | GivenStudy]) -> list[ImageOrStudy]:
    """`given_image` of each of `images`, or of the one; the DataError says which of several it is. A study stays a tuple."""
    if is_single(images):
        return [given_image(images)]  # type: ignore[arg-type]
    found: list[ImageOrStudy] = []
    for number, image in enumerate(images):  # type: ignore[arg-type]
        try:
            found.append(tuple(map(given_image, image)) if isinstance(image, tuple) else given_image(image))
        except DataError as error:
            raise DataError(f"Image {number} (counted from 0): {error}") from None
    return found


def given_prompts(prompt: Prompts | None, images: int) -> Sequence[str]:
    """A prompt for each image, none if they have the model's own; DataError for another number of them."""
    prompts = () if prompt is None else prompt_of_each(prompt, images)
    if prompt is not None and len(prompts) != images:
        raise DataError(f"There are {len(prompts)} prompts for {images} images. Give one for all, or one for each image.")
    return prompts


def write_pairs(pairs: GivenPair | Sequence[GivenPair], folder: Path) -> DataConfig:
    """Write images with their captions as a data set into `folder`, which is empty; files stay where they are.

    Ids are paths, or places from 0 for images that are no files. DataError for what is no pair or no image.
    """
    single = isinstance(pairs, tuple) and len(pairs) == 2 and not isinstance(pairs[0], tuple)
    listed: Sequence[Any] = [pairs] if single else pairs
    rows = []
    for number, pair in enumerate(listed):
        if not (isinstance(pair, tuple) and len(pair) == 2 and _are_captions(pair[1])):
            raise DataError(f"Pair {number} (counted from 0) is not (image, caption) or (image, list of captions).")
        image = given_image(pair[0])
        if isinstance(image, Path):
            name, path = str(image), image.absolute()
        else:
            name, path = str(number), folder / f"{number}.png"
            (open_image(image) if isinstance(image, ImagePart) else image).save(path)
        rows.append({"id": name, "image": str(path), "caption": pair[1], "split": "test"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return DataConfig(name="jsonl", path=str(folder / "pairs.jsonl"), options={"id": "id", "split": "split"})


def _are_captions(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(caption, str) for caption in value))
