"""The settings of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from medgraft.strict_model import StrictModel

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
_BF16: dict[Any, Dtype] = {True: "bf16", False: "fp32", "auto": "auto"}  # what `bf16` was called in `dtype`


class TrainConfig(StrictModel):
    """Training, under the names of transformers' TrainingArguments."""

    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the training captions")
    max_steps: int = Field(default=-1, ge=-1, description="optimiser steps; replaces num_train_epochs if positive")
    per_device_train_batch_size: int = Field(default=16, gt=0, description="captions per training batch and device")
    per_device_eval_batch_size: int = Field(default=32, gt=0, description="images per batch in validation and captioning")
    gradient_accumulation_steps: int = Field(default=1, gt=0, description="batches accumulated for one optimiser step")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    learning_rate: float | None = Field(default=None, gt=0, description="peak rate; default: the strategy's")
    lr_scheduler_type: str = Field(default="cosine", description="learning rate schedule, by transformers' names")
    warmup_steps: float = Field(default=0.05, ge=0, description="steps to the peak rate; below 1: a fraction of all steps")
    neftune_noise_alpha: float | None = Field(
        default=None, gt=0, exclude_if=lambda alpha: alpha is None,  # as in the ids of earlier records
        description="NEFTune: noise on the text's embeddings in training, such as 5; default: none",
    )  # fmt: skip
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's weight decay; not applied to biases and norms")
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip gradients to this norm")
    optim: str = Field(default="adamw_torch_fused", description="optimiser, by transformers' names")
    dtype: Dtype = Field(
        default="auto",
        description="what is computed in, by autocast; auto: bf16 where the hardware has it, else fp16 on a GPU, fp32 on a CPU",
    )
    max_text_tokens: int = Field(default=128, gt=2, description="longer captions are truncated; special tokens count")
    prompt: str | None = Field(default=None, description="text before every caption; default: the backbone's")
    save_steps: int | None = Field(default=None, gt=0, description="steps between checkpoints; default: one per epoch")
    save_total_limit: int = Field(default=1, gt=0, description="number of checkpoints to keep on disk")
    save_final_state: bool | Literal["auto"] = Field(
        default="auto",
        description="keep the last checkpoint, so that --resume can train more epochs; auto: if it takes at most 200 MB",
    )
    eval_during_training: bool = Field(default=False, description="compute the validation loss after each epoch")
    best_by: str | None = Field(
        default=None, exclude_if=lambda score: score is None,
        description="keep the weights with the best score of validation captions, such as `cider`, or the least validation "
        "`loss`; default: the last weights",
    )  # fmt: skip
    patience: int | None = Field(
        default=None, gt=0, exclude_if=lambda count: count is None,
        description="stop after so many validations in a row without a better `best_by`; default: never",
    )  # fmt: skip
    eval_steps: int | None = Field(
        default=None, gt=0, exclude_if=lambda steps: steps is None,
        description="steps between validations; default: one per epoch",
    )  # fmt: skip
    max_validation_images: int | None = Field(
        default=None, gt=0, exclude_if=lambda count: count is None,
        description="validate on so many images, spread over the split; default: on all",
    )  # fmt: skip
    dataloader_num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto", description="worker processes that read images; auto: 0 on a CPU, up to 8 with an accelerator"
    )
    pixel_cache_gb: float = Field(default=0.5, ge=0, description="memory for caching decoded and resized images")
    report_to: tuple[str, ...] = Field(
        default=(), description="trackers, by transformers' names, such as `tensorboard`, `mlflow`, `wandb` or `trackio`"
    )
    logging_steps: int = Field(
        default=10, gt=0, exclude_if=lambda steps: steps == 10, description="steps between losses that trackers get"
    )

    @property
    def validates(self) -> bool:
        """Whether there is validation during training."""
        return self.eval_during_training or self.best_by is not None

    @field_validator("report_to", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _validation_has_a_use(self) -> Self:
        if self.patience is not None and self.best_by is None:
            raise ValueError("patience needs best_by, the score that has to get better, such as cider or loss")
        alone = [name for name in ("eval_steps", "max_validation_images") if getattr(self, name) is not None]
        if alone and not self.validates:
            raise ValueError(f"{alone[0]} needs best_by or eval_during_training=true, without which nothing is validated")
        return self

    @model_validator(mode="before")
    @classmethod
    def _dtype_by_its_former_name(cls, values: Any) -> Any:
        """Read `bf16`, the former name of `dtype`, which suites and records of earlier versions contain."""
        return with_dtype(values)

    @model_validator(mode="before")
    @classmethod
    def _ungrouped(cls, values: Any) -> Any:
        """Handle `group_by_length`, which suites and records of earlier versions contain."""
        if isinstance(values, Mapping) and values.get("group_by_length"):
            raise ValueError("group_by_length was removed because it reduced quality; leave it out")
        return {k: v for k, v in values.items() if k != "group_by_length"} if isinstance(values, Mapping) else values


def with_dtype(values: Any) -> Any:
    """`values` with `dtype` for the `bf16` of earlier versions; ValueError if both are given and differ."""
    if not isinstance(values, Mapping) or "bf16" not in values:
        return values
    former, rest = values["bf16"], {key: value for key, value in values.items() if key != "bf16"}
    if not isinstance(former, bool | str) or former not in _BF16:
        raise ValueError(f"bf16 is true, false or auto, not {former!r}; it is called dtype now: bf16, fp32 or auto")
    dtype = rest.get("dtype", "auto")
    if "auto" not in (dtype, former) and dtype != _BF16[former]:
        raise ValueError(
            f"bf16={str(former).lower()} contradicts dtype={dtype}; bf16 is the former name of dtype, leave it out"
        )
    return {**rest, "dtype": _BF16[former] if dtype == "auto" else dtype}
