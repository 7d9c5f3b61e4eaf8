"""Image files that a command names, and those of them that it could not read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from medgraft.errors import ConfigError, DataError

_logger = logging.getLogger(__name__)
_VOLUMES = (".nii", ".nii.gz")
_MOST_LISTED = 20


def image_files(names: Iterable[str | Path]) -> dict[Path, str]:
    """Files by path, each with its name as given; a folder stands for the image files below it. ConfigError if it has none."""
    from medgraft.data.paths import IMAGE_SUFFIXES

    found: dict[Path, str] = {}
    for name in map(str, names):
        path = Path(name)
        if not path.is_dir():
            found.setdefault(path, name)
            continue
        inside = [file for file in sorted(path.rglob("*")) if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        images = [file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES or file.name.lower().endswith(_VOLUMES)]
        if not images:
            raise ConfigError(f"The folder {name} has no image files, by their endings ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        for file in images:
            found.setdefault(file, str(file))
    return found


def tell_of_failed(problems: Sequence[str], images: int) -> None:
    """Log which of the `images` failed and why; DataError if all of them did."""
    if problems and len(problems) == images:
        raise DataError(problems[0] if images == 1 else f"All {images} images failed, such as: {problems[0]}")
    list_failed(problems, "failed")


def list_failed(problems: Sequence[str], what: str) -> None:
    """Log the first twenty `problems` of images, each with its reason, under a line that counts them as `what`."""
    if not problems:
        return
    listed = "".join(f"\n  {problem}" for problem in problems[:_MOST_LISTED])
    more = f"\n  and {len(problems) - _MOST_LISTED} more, which --json lists" if len(problems) > _MOST_LISTED else ""
    counted = "1 image" if len(problems) == 1 else f"{len(problems)} images"
    _logger.warning("%s %s:%s%s", counted, what, listed, more)
