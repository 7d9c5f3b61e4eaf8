"""What a backbone is read from: a checkpoint's model, tokenizer and image processor, and the digests of its weights."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Any, ClassVar, Self

import transformers
from torch import nn

from medgraft.backbones import loading
from medgraft.backbones.base_files import reading
from medgraft.backbones.checkpoint import Checkpoint, checkpoint_files, read_checkpoint
from medgraft.backbones.fingerprint import fingerprint, former_fingerprint, loaded_digests
from medgraft.backbones.half_weights import Held, half_weights
from medgraft.backbones.weights import TensorDigest
from medgraft.quiet import without_warnings
from medgraft.types import Anatomy

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


class FromCheckpoint(ABC):
    """A model that is loaded into the transformers class `model_class` from checkpoints of some `model_types`."""

    anatomy: ClassVar[Anatomy]
    model_class: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    keep_in_fp32: ClassVar[tuple[str, ...]] = ()

    def __init__(self, source: str, model: transformers.PreTrainedModel, tokenizer: Any, image_processor: Any):
        self.source = source
        self.model: Any = model
        self.config: Any = model.config
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @classmethod
    def load(cls, source: str, *, quantization: BitsAndBytesConfig | None = None, held: Held = Held()) -> Self:
        """Load the model from a hub id or folder, in eval mode on the CPU; BackboneError if it is of another model type.

        Weights are loaded in fp32, quantised by `quantization`, or as `held` says.
        """
        config = loading.read_config(source, cls.model_types)
        kind, files = cls.for_config(config), checkpoint_files(source, config)
        names = () if quantization is not None else half_weights(kind, source, config, held)
        # transformers reports missing and surplus tensors, harmless ones too; load_model tells those that matter
        with reading(files[0] if len(files) == 1 else source), without_warnings("transformers"):
            model = loading.load_model(kind.model_class, source, quantization, kind.anatomy.never_run, held, names)
        return kind.from_model(source, model)

    @classmethod
    def for_config(cls, config: transformers.PreTrainedConfig) -> type[Self]:
        """This class; a subclass of it where the anatomy depends on the checkpoint's configuration."""
        return cls

    @classmethod
    def for_source(cls, source: str) -> type[Self]:
        """As `for_config`, for a hub id or folder; reads its configuration only if the class depends on it."""
        depends = overrides(cls, FromCheckpoint, "for_config")
        return cls.for_config(loading.read_config(source, cls.model_types)) if depends else cls

    @classmethod
    def from_model(cls, source: str, model: Any) -> Self:
        """The backbone of a loaded `model`, or of a meta model, with the tokenizer and the image processor of `source`."""
        return cls(source, model, loading.load_tokenizer(source), loading.load_image_processor(source))

    @classmethod
    def meta_model(cls, config: transformers.PreTrainedConfig) -> nn.Module:
        """The model for `config` on the meta device, without weights: to count parameters and match module names."""
        return loading.build_on_meta(cls.model_class, config)

    @classmethod
    def fingerprint(cls, source: str) -> str:
        """Hex digest of the base weights as they are loaded, independent of file layout and quantisation."""
        return fingerprint(cls._digests(source))

    @classmethod
    def checkpoint_digests(cls, source: str) -> dict[str, TensorDigest]:
        """Digests of the tensors that `load` loads, by their names in the model; empty if the class overrides `fingerprint`."""
        return {} if overrides(cls, FromCheckpoint, "fingerprint") else cls._digests(source)

    @classmethod
    def former_fingerprint(cls, source: str) -> str:
        """The fingerprint in records and adapters of earlier versions, a digest of all tensors as they are stored."""
        own = overrides(cls, FromCheckpoint, "fingerprint")
        return cls.fingerprint(source) if own else former_fingerprint(cls._checkpoint(source))

    @classmethod
    def _checkpoint(cls, source: str) -> Checkpoint:
        return read_checkpoint(source, loading.read_config(source, cls.model_types))

    @classmethod
    def _digests(cls, source: str) -> dict[str, TensorDigest]:
        checkpoint = cls._checkpoint(source)
        kind = cls.for_config(checkpoint.config)
        return loaded_digests(checkpoint, kind.meta_model(checkpoint.config), kind.anatomy.never_run)


def overrides(kind: type, base: type, method: str) -> bool:
    """Whether `kind` has its own version of a class method of `base`."""
    own, default = getattr(kind, method), getattr(base, method)
    return bool(own.__func__ is not default.__func__)
