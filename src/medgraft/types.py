"""The small frozen data that everything else passes on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
Part = Literal["vision", "bridge", "text"]
Role = Literal["attn", "mlp", "cross", "proj", "embed", "head", "norm"]

SPLITS: tuple[Split, ...] = get_args(Split)
PARTS: tuple[Part, ...] = get_args(Part)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Example:
    """One image with its reference captions; `group` is the patient or article that it must not be parted from.

    `facts` is what the image is known to show, in the data set's own words, where it knows that; `concepts` are its UMLS
    identifiers (CUIs), where the data set has them.
    """

    id: str
    image: Path
    captions: tuple[str, ...]
    split: Split
    group: str | None = None
    facts: Mapping[str, Any] | None = field(default=None, hash=False)
    concepts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PartAnatomy:
    """Where one part lives: the modules (or parameters) it consists of, and for each role patterns on module names.

    A pattern is a regular expression that must match the whole name of a module.
    """

    prefixes: tuple[str, ...]
    roles: Mapping[Role, tuple[str, ...]]

    def owns(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to this part."""
        return any(name == prefix or name.startswith(prefix + ".") for prefix in self.prefixes)


@dataclass(frozen=True)
class Anatomy:
    """Where a backbone keeps its parts, and in each part the modules of each role.

    `never_run` are patterns for modules that captioning never runs, such as a pooler: they are not trained. `no_gradient` are
    patterns for modules that some layers run in vain, so that they get no gradient there.
    """

    parts: Mapping[Part, PartAnatomy]
    never_run: tuple[str, ...] = ()
    no_gradient: tuple[str, ...] = ()

    def part_of(self, name: str) -> Part | None:
        """The part that the module or parameter `name` belongs to."""
        return next((part for part, anatomy in self.parts.items() if anatomy.owns(name)), None)

    def role_of(self, module_name: str) -> Role | None:
        """The role of the module `module_name`, or of the nearest module above it that has one."""
        part = self.part_of(module_name)
        if part is None:
            return None
        name = module_name
        while name:
            for role, patterns in self.parts[part].roles.items():
                if any(re.fullmatch(pattern, name) for pattern in patterns):
                    return role
            name = name.rpartition(".")[0]
        return None

    def pattern(self, part: Part, roles: Iterable[Role]) -> str:
        """One regular expression on whole module names for the modules of `roles` in `part`; empty if there are none."""
        wanted = set(roles)
        patterns = [p for role, several in self.parts[part].roles.items() if role in wanted for p in several]
        return f"({'|'.join(patterns)})" if patterns else ""

    def present(self, names: Iterable[str]) -> Anatomy:
        """This anatomy without the parts that own none of `names`, a model's parameters."""
        found = {self.part_of(name) for name in names}
        return replace(self, parts={part: anatomy for part, anatomy in self.parts.items() if part in found})


def lies_in(name: str, patterns: Iterable[str]) -> bool:
    """Whether the module or parameter `name` is, or lies in, a module whose whole name matches one of `patterns`."""
    return any(re.match(rf"({pattern})(\.|$)", name) for pattern in patterns)


@dataclass(frozen=True)
class Seam:
    """A place where the forward pass can be cut: `prefix` names the parts that are computed below it.

    `depends_on_prompt` says that what comes out depends on the prompt as well as on the image; `consumer_casts_input` that the
    layer reading it casts to the compute dtype first, as a linear layer under autocast does, so it may be stored in that dtype.
    """

    name: str
    prefix: tuple[Part, ...]
    depends_on_prompt: bool = False
    consumer_casts_input: bool = False


@dataclass(frozen=True)
class AttentionLayout:
    """Where a model keeps the attention with which its words look at the image.

    `words`, `queries`, `vision` and `text` are patterns for whole names of attention modules. Those of `words` have text
    positions as queries and the image's tokens among their keys. `queries`, where learned queries stand between image and
    words as in a Q-Former, have those as queries and patches as keys. `vision` is the self-attention of the vision tower,
    None if it cannot be followed through it; `text` the decoder's, None if words and image stand in one sequence.
    `label` says what a map read off this way is.
    """

    label: str
    words: str
    queries: str | None = None
    vision: str | None = None
    text: str | None = None


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
