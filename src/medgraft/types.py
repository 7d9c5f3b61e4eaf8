"""The small frozen data that everything else passes on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
Part = Literal["vision", "bridge", "text"]
Role = Literal["attn", "mlp", "cross", "embed", "head", "norm"]

SPLITS: tuple[Split, ...] = get_args(Split)
PARTS: tuple[Part, ...] = get_args(Part)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Example:
    """One image with its reference captions; `group` is the patient or article that it must not be parted from."""

    id: str
    image: Path
    captions: tuple[str, ...]
    split: Split
    group: str | None = None


@dataclass(frozen=True)
class PartAnatomy:
    """Where one part lives: the module name it starts with, and for each role patterns on the names below it.

    A pattern is a regular expression that must match the whole rest of a module's name.
    """

    prefix: str
    roles: Mapping[Role, tuple[str, ...]]


@dataclass(frozen=True)
class Anatomy:
    """Where a backbone keeps its parts, and in each part the modules of each role."""

    parts: Mapping[Part, PartAnatomy]

    def part_of(self, name: str) -> Part | None:
        """The part that the module or parameter `name` belongs to."""
        for part, anatomy in self.parts.items():
            if name == anatomy.prefix or name.startswith(anatomy.prefix + "."):
                return part
        return None

    def role_of(self, module_name: str) -> Role | None:
        """The role of the module `module_name`, or of the nearest module above it that has one."""
        part = self.part_of(module_name)
        if part is None:
            return None
        anatomy = self.parts[part]
        below = module_name[len(anatomy.prefix) + 1 :]
        while below:
            for role, patterns in anatomy.roles.items():
                if any(re.fullmatch(pattern, below) for pattern in patterns):
                    return role
            below = below.rpartition(".")[0]
        return None

    def pattern(self, part: Part, roles: Iterable[Role]) -> str:
        """One regular expression on whole module names for the modules of `roles` in `part`; empty if there are none."""
        anatomy = self.parts[part]
        wanted = set(roles)
        patterns = [p for role, several in anatomy.roles.items() if role in wanted for p in several]
        return rf"{re.escape(anatomy.prefix)}\.({'|'.join(patterns)})" if patterns else ""


@dataclass(frozen=True)
class Seam:
    """A place where the forward pass can be cut: `prefix` names the parts that are computed below it."""

    name: str
    prefix: tuple[Part, ...]


@dataclass(frozen=True)
class DataReport:
    """What was found on reading a data set: images that were listed but are not there, or cannot be decoded."""

    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()
    uncaptioned: int = 0

    def __str__(self) -> str:
        parts = [f"{len(self.missing)} missing images"] if self.missing else []
        parts += [f"{len(self.corrupt)} corrupt images"] if self.corrupt else []
        parts += [f"{self.uncaptioned} images without caption"] if self.uncaptioned else []
        return ", ".join(parts) or "all images are there"


@dataclass(frozen=True)
class CaptionData:
    """A data set as read: its examples, and what was left out."""

    name: str
    examples: tuple[Example, ...]
    report: DataReport = field(default_factory=DataReport)

    def split(self, split: Split) -> tuple[Example, ...]:
        """The examples of one split, in the data set's order."""
        return tuple(example for example in self.examples if example.split == split)
