"""What test_processes.py does in one process, and starts in two, which train with the same batches.

python -m torch.distributed.run --nproc-per-node 2 tests/training/trained_together.py BLIP DATA OUT FSDP_CONFIG
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainerCallback

from medgraft import hardware
from medgraft.benchmark import execute, write_baselines
from medgraft.cli.main import main as medgraft
from medgraft.config import run_config
from medgraft.errors import MedgraftError, Stopped
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.training.trainer import CaptionTrainer

BATCH, IMAGES = 4, 9  # of all processes; in an epoch's last batch one image is left, and one of two processes has none


def settings(blip, data, strategy, *overrides, accumulate=1):
    each = BATCH // hardware.process_count() // accumulate
    return run_config(
        backbone=f"blip:{blip}", strategy=strategy, data=f"roco:{data}", max_images=IMAGES,
        overrides=[
            f"train.per_device_train_batch_size={each}", f"train.gradient_accumulation_steps={accumulate}",
            "train.dtype=fp32", "train.per_device_eval_batch_size=3", "train.num_train_epochs=1",
            "generation.max_new_tokens=5", *overrides,
        ],
    )  # fmt: skip


def run(config, out, **options):
    return execute(config, out, plugins=PluginManager(), **({"evaluate": False, "checkpoints": False} | options))


def train_all(blip, data, out):
    """In one process and in two: each preset that is compared, the second with features, validation, captions and baselines."""
    run(settings(blip, data, "full"), out / "full")
    options = ["train.eval_during_training=true", "train.best_by=rouge_l", "train.report_to=tensorboard"]
    frozen = settings(blip, data, "encoder-frozen", *options)
    write_baselines(run(frozen, out / "encoder-frozen", evaluate=True), out / "encoder-frozen", plugins=PluginManager())
    run(settings(blip, data, "lora", accumulate=hardware.process_count()), out / "lora")


class InOneProcess(TrainerCallback):
    """Does `action(model)` in the last process, at its second step."""

    def __init__(self, action):
        self.action = action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and hardware.processes().is_last_process:
            self.action(kwargs["model"])


@contextmanager
def in_one_process(action):
    made = CaptionTrainer.__init__

    def init(self, **options):
        made(self, **options)
        self.add_callback(InOneProcess(action))

    CaptionTrainer.__init__ = init
    try:
        yield
    except (Stopped, MedgraftError) as error:
        say(f"{type(error).__name__} {error}")
    finally:
        CaptionTrainer.__init__ = made


def say(text):
    sys.stdout.write(f"\n{hardware.processes().process_index}: {text}\n")  # on a line of its own, whatever the other writes
    sys.stdout.flush()


def set_nan(model):
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))


def shard(blip, data, out, config_file):
    """FSDP2 by the settings of `config_file`, on the CPU."""
    from accelerate import DistributedType, PartialState
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.state import AcceleratorState
    from accelerate.utils.launch import prepare_multi_gpu_env

    def as_gpus():  # accelerate shards over GPUs alone, torch over CPUs too
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    words = launch_command_parser().parse_args(["--config_file", str(config_file), "-m", "medgraft"])
    launched = prepare_multi_gpu_env(_validate_launch_command(words)[0])
    os.environ |= {name: value for name, value in launched.items() if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}
    AcceleratorState._reset_state()  # of the trainings before
    lora = settings(blip, data, "lora")
    refused = [(lora, {}), (lora, {"evaluate": True}), (settings(blip, data, "lora", "train.save_steps=1"), {})]
    create = CaptionTrainer.create_accelerator_and_postprocess
    for number, (config, options) in enumerate(refused):
        try:
            run(config, out / "refused", **options)
        except MedgraftError as error:
            say(f"refused {error}")
        if number == 0:
            as_gpus()
            CaptionTrainer.create_accelerator_and_postprocess = lambda trainer: (as_gpus(), create(trainer))
    for strategy in ("lora", "full"):
        as_gpus()
        run(settings(blip, data, strategy), out / f"sharded-{strategy}")


def main(blip, data, out, config_file):
    quiet_libraries()
    train_all(blip, data, out)
    stopped = settings(blip, data, "lora", accumulate=hardware.process_count())
    with in_one_process(lambda model: os.kill(os.getpid(), signal.SIGINT)):
        run(stopped, out / "stopped", checkpoints=True)
    run(stopped, out / "stopped", checkpoints=True, resume=True)
    with in_one_process(set_nan):
        run(stopped, out / "nan")
    with in_one_process(set_nan):
        run(settings(blip, data, "lora", "model.device_map=auto"), out / "spread")
    evaluated = ["--adapter", out / "encoder-frozen", "--backbone", f"blip:{blip}", "--data", f"roco:{data}"]
    evaluated += ["--max-images", IMAGES, "--predictions", out / "captions.json"]
    code = medgraft(["evaluate", *map(str, evaluated)])
    say(f"exit code {code}, then {medgraft(['bench', 'suite.toml', '--out', str(out / 'bench')])}")
    shard(blip, data, out, config_file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
