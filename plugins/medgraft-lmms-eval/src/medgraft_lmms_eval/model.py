"""The model class that lmms-eval makes from `--model medgraft --model_args adapter=FOLDER`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self

from accelerate import PartialState
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

import medgraft
from medgraft.plugin_api import ConfigError
from medgraft_lmms_eval.answering import answers


class Medgraft(lmms):
    """An adapter that answers requests of one image and a text each.

    `adapter` is a folder or a name on the hub, `base` (`NAME:SOURCE`) locates its base model, `dtype` is what it computes in:
    all as in `medgraft.load_adapter`. `batch_size` is in images. ConfigError for a `device` that lmms-eval's process does not
    have, and for several processes.
    """

    def __init__(
        self,
        adapter: str,
        base: str | None = None,
        dtype: Any = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "medgraft answers lmms-eval's requests in one process. Start one, without accelerate or torchrun."
            )
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"--batch_size {batch_size} is no number of images. Give one, such as --batch_size 8.")
        self._batch_size = int(batch_size)
        self._adapter = medgraft.load_adapter(str(adapter), backbone=base, dtype=dtype)
        _check_device(device or os.environ.get("MEDGRAFT_DEVICE"))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """See lmms. What `--model_args` names goes before lmms-eval's options, which always have a batch size."""
        named = simple_parse_args_string(arg_string)
        others = {name: value for name, value in (additional_config or {}).items() if name not in named}
        made: Self = super().create_from_arg_string(arg_string, others)
        return made

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, in order."""
        found = answers(requests, self.task_dict, adapter=self._adapter, batch_size=self._batch_size)
        return list(tqdm(found, total=len(requests), desc="medgraft", unit="request"))

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """ConfigError: nothing but generated answers."""
        raise _refused("loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """ConfigError: no conversations."""
        raise _refused("generate_until_multi_round")


def _check_device(wanted: str | None) -> None:
    """ConfigError if accelerate, which lmms-eval and medgraft share, has chosen another device than `wanted`."""
    if not wanted:
        return
    found = PartialState().device
    if wanted not in (found.type, f"{found.type}:{found.index or 0}"):
        raise ConfigError(
            f"Device {wanted} was asked for, and accelerate has chosen {found} for lmms-eval. Set ACCELERATE_USE_CPU=true for "
            "the CPU, or CUDA_VISIBLE_DEVICES for another GPU."
        )


def _refused(kind: str) -> ConfigError:
    return ConfigError(f"medgraft generates answers, and this task has requests of {kind}. Take a task of generate_until.")
