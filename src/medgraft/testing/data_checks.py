"""Checks the contracts of a data set's reader and of a metric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import JsonValue

from medgraft.data import Dataset, open_image
from medgraft.errors import DataError
from medgraft.metrics import UnavailableError
from medgraft.strict_model import validated
from medgraft.testing.advice import advice
from medgraft.testing.findings import Finding, require, run_checks
from medgraft.types import SPLITS, Example

if TYPE_CHECKING:
    import evaluate

    from medgraft.metrics import CaptionMetric

_CAPTIONS = ["a nodule in the left lung.", "normal chest.", "fracture of the femur, with displacement.", "a cyst in the liver."]
_OTHERS = ["axial view of the pelvis", "t2 weighted image", "pleural effusion on the right", "large abscess near the spine"]


def check_dataset(dataset_class: type[Dataset], path: str | Path, *, options: Mapping[str, JsonValue] | None = None) -> None:
    """ConformanceError unless the reader passes every check on the data in `path`."""
    require(dataset_findings(dataset_class, Path(path), options or {}))


def check_metric(metric_class: type[CaptionMetric | evaluate.Metric]) -> None:
    """ConformanceError unless the metric passes every check."""
    require(metric_findings(metric_class))


def dataset_findings(dataset_class: type[Dataset], path: Path | None, options: Mapping[str, JsonValue]) -> Iterator[Finding]:
    """The result of each check of a reader."""

    def read() -> list[Example]:
        return list(validated(dataset_class, options, dataset_class.__name__).read(path))

    def is_readable() -> None:
        """Gives examples with ids, splits and at least one caption."""
        examples = read()
        assert examples, f"{path} gave no example"
        for e in examples:
            assert isinstance(e, Example), f"read gave {type(e).__name__}; yield Example(id, image, captions, split)"
            assert e.split in SPLITS, f"{e.id!r} is of split {e.split!r}; splits are {', '.join(SPLITS)}"
            assert not isinstance(e.captions, str), (
                f"the captions of {e.id!r} are a text; give a tuple of texts, such as (text,)"
            )
            assert not isinstance(e.image, str), f"the image of {e.id!r} is a text; give a Path, such as path / {e.image!r}"
        keys = [(e.split, e.id) for e in examples]
        assert len(set(keys)) == len(keys), "an id occurs twice in a split"
        assert any(caption.strip() for e in examples for caption in e.captions), "no example has a caption"

    def has_images() -> None:
        """Its images exist and open as RGB."""
        found = [e.image for e in read() if (e.image if isinstance(e.image, Path) else e.image.path).exists()]
        assert found, f"no image file exists, such as {read()[0].image}"
        image = open_image(found[0])
        assert isinstance(image, Image.Image) and image.mode == "RGB", f"{found[0]} is not an RGB image"

    def is_repeatable() -> None:
        """Read twice, it gives the same examples in the same order."""
        assert read() == read(), "the second reading differs"

    def keeps_groups_together() -> None:
        """No patient or article is in two splits."""
        where: dict[str, str] = {}
        for example in read():
            if example.group is not None:
                first = where.setdefault(example.group, example.split)
                assert first == example.split, f"group {example.group!r} is in {first} and in {example.split}"

    def refuses_other_folders() -> None:
        """A folder of something else raises a DataError that names it."""
        with TemporaryDirectory() as empty:
            try:
                list(validated(dataset_class, options, dataset_class.__name__).read(Path(empty)))
            except DataError as error:
                assert empty in str(error), f"the error does not name the folder: {error}"
            else:
                raise AssertionError("an empty folder was read without an error")

    checks = (is_readable, has_images, is_repeatable, keeps_groups_together, refuses_other_folders)
    yield from run_checks(dataset_class.__name__, "dataset", checks)


def metric_findings(metric_class: type[CaptionMetric | evaluate.Metric]) -> Iterator[Finding]:
    """The result of each check of a metric; one alone, with the reason, for a metric that is unavailable here."""

    def compute(predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        result: dict[str, Any] = metric_class().compute(predictions=predictions, references=references)
        return result

    def gives_numbers() -> None:
        """Gives finite numbers by name."""
        result = compute(_CAPTIONS, [[text] for text in _CAPTIONS])
        assert result, "nothing was computed"
        for name, value in result.items():
            assert math.isfinite(float(value)), f"{name} is {value}"

    def is_repeatable() -> None:
        """Computed twice, the numbers are the same; the order of images does not matter."""
        first = compute(_CAPTIONS, [[text] for text in _OTHERS])
        assert first == compute(_CAPTIONS, [[text] for text in _OTHERS]), "the second computation differs"
        turned = compute(_CAPTIONS[::-1], [[text] for text in _OTHERS[::-1]])
        odd = [name for name in first if not math.isclose(float(first[name]), float(turned[name]), abs_tol=1e-9)]
        assert not odd, f"{odd} depend on the order of images"

    def takes_empty_captions() -> None:
        """An empty caption gets a score and raises no error."""
        result = compute(["", *_CAPTIONS[1:]], [[text] for text in _CAPTIONS])
        assert all(math.isfinite(float(value)) for value in result.values()), f"an empty caption gives {result}"

    def takes_several_references() -> None:
        """Several references per image are accepted."""
        compute(_CAPTIONS, [[a, b] for a, b in zip(_CAPTIONS, _OTHERS, strict=True)])

    try:
        compute(_CAPTIONS, [[text] for text in _CAPTIONS])
    except UnavailableError as error:
        yield Finding(metric_class.__name__, "can be computed here", str(error), advice("metric", gives_numbers.__name__))
        return
    except Exception:  # the checks say what is wrong
        pass
    checks = (gives_numbers, is_repeatable, takes_empty_captions, takes_several_references)
    yield from run_checks(metric_class.__name__, "metric", checks)
