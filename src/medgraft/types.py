"""Frozen data classes shared by all modules."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from medgraft.sequences import Chosen

if TYPE_CHECKING:
    from medgraft.augmentation_config import AugmentationConfig

Split = Literal["train", "validation", "test"]
Part = Literal["vision", "bridge", "text"]
LeakKind = Literal["byte_equal", "near_duplicate", "group"]
Role = Literal["attn", "mlp", "cross", "proj", "embed", "head", "norm"]

SPLITS: tuple[Split, ...] = get_args(Split)
PARTS: tuple[Part, ...] = get_args(Part)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class View:
    """An augmented version of an image: `settings` say how much may change, `seed` decides what does.

    A `fixed` view recurs in later epochs.
    """

    settings: AugmentationConfig = field(hash=False)
    seed: tuple[int, ...]
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image that is not simply a whole file: one of several in `path`, or a file with settings of how to read it.

    `member` says which image of a parquet or arrow file or of a tar archive; its form belongs to the reader of that format.
    `frame` chooses a frame of a multi-frame file or a slice of a volume, `window` how levels are mapped to 8 bits; None: the
    file's own or the default. `view` is an augmented version, None the image itself. An image of a plain file without settings
    is its `Path` instead.
    """

    path: Path
    member: str | None = None
    frame: int | None = None
    window: str | None = None
    view: View | None = None

    def __str__(self) -> str:
        settings = {"frame": self.frame, "window": self.window}
        parts = [self.member] if self.member is not None else []
        parts += [f"{name} {value}" for name, value in settings.items() if value is not None]
        return f"{self.path} ({', '.join(parts)})" if parts else str(self.path)


ImageSource: TypeAlias = Path | ImagePart  # hashable, and what all functions take that read images of a data set


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its reference captions; images of the same `group`, a patient or article, belong to the same split.

    A study may have `more_images`, which a model sees together with `image`, the first one. `facts` are known findings in the
    image, under the data set's own names; `concepts` are its UMLS identifiers (CUIs). Both are None if the data set has none.
    `prompt` is the text before this example's caption; None: that of the run. Examples with other prompts, such as questions,
    may share an image.
    """

    id: str
    image: ImageSource
    captions: tuple[str, ...]
    split: Split
    group: str | None = None
    facts: Mapping[str, Any] | None = field(default=None, hash=False)
    concepts: tuple[str, ...] | None = None
    prompt: str | None = None
    more_images: tuple[ImageSource, ...] = ()

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """All images that a model sees together, `image` first."""
        return (self.image, *self.more_images)


Prompts: TypeAlias = str | Sequence[str]
"""The prompt of all rows of a batch, or each row's own."""


def own_prompts(prompts: Sequence[str | None], default: str) -> Prompts:
    """Each row's own prompt, or `default` where it has none; just `default` if no row has one."""
    if all(prompt is None for prompt in prompts):
        return default
    return [default if prompt is None else prompt for prompt in prompts]


def prompt_of_each(prompts: Prompts, rows: int) -> Sequence[str]:
    """The prompt of each of `rows` rows."""
    return [prompts] * rows if isinstance(prompts, str) else prompts


@dataclass(frozen=True)
class PartAnatomy:
    """The modules or parameters that make up one part, by name prefix, and name patterns of its modules for each role.

    A pattern is a regular expression that has to match a module's whole name.
    """

    prefixes: tuple[str, ...]
    roles: Mapping[Role, tuple[str, ...]]

    def owns(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to this part."""
        return any(name == prefix or name.startswith(prefix + ".") for prefix in self.prefixes)


@dataclass(frozen=True)
class Anatomy:
    """The parts of a backbone, and the modules of each role in them.

    `never_run` are patterns for modules that captioning never runs, such as a pooler; they are not trained. `no_gradient` are
    patterns for modules that get no gradient, in some or all layers, because their output does not affect the loss there.
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
        patterns = [p for role, its_patterns in self.parts[part].roles.items() if role in wanted for p in its_patterns]
        return f"({'|'.join(patterns)})" if patterns else ""

    def present(self, names: Iterable[str]) -> Anatomy:
        """This anatomy without the parts that own none of the parameters `names`."""
        found = {self.part_of(name) for name in names}
        return replace(self, parts={part: anatomy for part, anatomy in self.parts.items() if part in found})


def lies_in(name: str, patterns: Iterable[str]) -> bool:
    """Whether the module or parameter `name` is, or is inside, a module whose whole name matches one of `patterns`."""
    return any(re.match(rf"({pattern})(\.|$)", name) for pattern in patterns)


@dataclass(frozen=True)
class Seam:
    """A point at which the forward pass can be split; `prefix` names the parts that are computed below it.

    `depends_on_prompt`: its features depend on the prompt as well as on the image. `consumer_casts_input`: the next layer
    casts them to the compute dtype, as a linear layer does under autocast, so they may be stored in that dtype.
    """

    name: str
    prefix: tuple[Part, ...]
    depends_on_prompt: bool = False
    consumer_casts_input: bool = False


@dataclass(frozen=True)
class AttentionLayout:
    """The attention modules from which saliency maps are computed, as patterns for their whole names.

    `words`: attention from text tokens to image tokens. `queries`: from the queries that text attends to in their place, such
    as those of a Q-Former or a question's tokens, to patches; None without such queries. `vision`: the self-attention of the
    vision tower, None if maps cannot be propagated through it. `text`: the decoder's self-attention, None if text and image
    tokens are in one sequence. `label` describes the maps.
    """

    label: str
    words: str
    queries: str | None = None
    vision: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row, line or entry of a data set's files that cannot be read: the file, where in it, and why."""

    file: str
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.problem}"


@dataclass(frozen=True)
class Leak:
    """Images of `split` that the split `other`, which is trained on or chosen by before, gives away; `images` counts them.

    `examples` has the ids of a few of them, each with that of its counterpart in `other`.
    """

    kind: LeakKind
    split: Split
    other: Split
    images: int
    examples: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        what = {"byte_equal": "a byte-equal image", "near_duplicate": "a near-duplicate", "group": "an image of their group"}
        images = "1 image" if self.images == 1 else f"{self.images:,} images"
        shown = f" (such as {self.examples[0][0]!r} and {self.examples[0][1]!r})" if self.examples else ""
        return f"{images} of {self.split} with {what[self.kind]} in {self.other}{shown}"


@dataclass(frozen=True)
class DataReport:
    """What reading a data set found: images missing, corrupt or without a caption, rows left out, and what was assumed.

    `corrupt` are the images that cannot be read, each as "path: reason". `assumptions` are sentences about choices that the
    reader made by itself, such as a delimiter or a split by hash. `leaks` are those between splits, None if a single split was
    read; `leaking` counts the images that were dropped for them.
    """

    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()
    uncaptioned: int = 0
    bad_rows: tuple[BadRow, ...] = ()
    assumptions: tuple[str, ...] = ()
    leaks: tuple[Leak, ...] | None = None
    leaking: int = 0

    def __str__(self) -> str:
        parts = [f"{len(self.missing)} missing images"] if self.missing else []
        parts += [f"{len(self.corrupt)} unreadable images"] if self.corrupt else []
        parts += [f"{self.uncaptioned} images without caption"] if self.uncaptioned else []
        parts += [f"{len(self.bad_rows)} bad rows left out"] if self.bad_rows else []
        parts += [f"{self.leaking} leaking images dropped"] if self.leaking else []
        return ", ".join(parts) or "all images are there"

    def sentences(self) -> list[str]:
        """For users: what was left out, by kind with an example, and what was assumed."""
        listed = {"missing": self.missing, "corrupt": self.corrupt, "bad rows": self.bad_rows}
        left_out = [f"{len(items):,} {kind}, such as {items[0]}" for kind, items in listed.items() if items]
        left_out += [f"{self.uncaptioned:,} without a caption"] if self.uncaptioned else []
        left_out += [f"{self.leaking:,} of which a later split has the like"] if self.leaking else []
        return ([f"Left out: {'; '.join(left_out)}."] if left_out else []) + list(self.assumptions)

    def left_out(self) -> dict[str, list[str] | int]:
        """What was left out, by kind: the names where they are known, else the number."""
        return {
            "missing": list(self.missing),
            "corrupt": list(self.corrupt),
            "uncaptioned": self.uncaptioned,
            "bad_rows": [str(row) for row in self.bad_rows],
        }


@dataclass(frozen=True)
class CaptionData:
    """A data set: its examples, which may be made anew at each access, and a report of the images that were skipped."""

    name: str
    examples: Sequence[Example]
    report: DataReport = field(default_factory=DataReport)

    def split(self, *splits: Split) -> Sequence[Example]:
        """The examples of one split, in the data set's order, or those of several, one split after the other."""
        places = array("I")
        for split in splits:
            places += self._index[0][split]
        return Chosen(self.examples, places)

    @property
    def prompted(self) -> bool:
        """Whether examples have prompts of their own, such as questions."""
        return self._index[1]

    @property
    def several_images(self) -> bool:
        """Whether examples have more images than one."""
        return self._index[2]

    @cached_property
    def _index(self) -> tuple[dict[Split, array[int]], bool, bool]:
        """The places of each split, `prompted` and `several_images`."""
        places: dict[Split, array[int]] = {split: array("I") for split in SPLITS}
        prompted = several = False
        for place, example in enumerate(self.examples):
            places[example.split].append(place)
            prompted = prompted or example.prompt is not None
            several = several or bool(example.more_images)
        return places, prompted, several
