"""How far two timings of the same work are apart: `python benchmarks/timing_aa.py`.

Steps of three strategies are timed twelve times, the three in turn; every other repeat belongs to A, the rest to B, which
are the same work. Writes `benchmarks/results/timing.json`. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from medgraft import hardware
from medgraft.benchmark import read_record, run_suite
from medgraft.benchmark.timing import TIMING, timing_id
from medgraft.config import SuiteConfig
from medgraft.plugin import PluginManager
from medgraft.progress import log_to_stderr, progress_bars

REPEATS, STEPS = 12, 60
OUT = Path(__file__).parent / "results" / "timing.json"
SUITE = SuiteConfig.model_validate(
    {
        "name": "timing-aa",
        "backbones": ["blip-nano"],
        "strategies": ["full", "encoder-frozen", "lora"],
        "data": {"name": "phantoms", "options": {"count": 1800}},
        "train": {"max_steps": 4, "per_device_train_batch_size": 16},
        "generation": {"max_new_tokens": 4},
        "metrics": ["bleu"],
        "saliency": {"maps": 0},
        "timing": {"repeats": REPEATS, "steps": STEPS},
    }
)


def main() -> None:
    """Time, compare, write."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        with log_to_stderr(), progress_bars(False):
            records = run_suite(SUITE, out, plugins=PluginManager.from_environment())
        pairs = {}
        for record in records:
            if not record.steps:
                continue
            repeats = [
                read_record(out / TIMING / "records" / f"{timing_id(record.run_id, number)}.json") for number in range(REPEATS)
            ]
            seconds = [repeat.step_quartiles[1] for repeat in repeats if repeat.step_quartiles]
            a, b = median(seconds[::2]), median(seconds[1::2])
            pairs[record.strategy] = {"seconds": seconds, "a": a, "b": b, "apart": abs(a - b) / min(a, b)}
    content = {"repeats": REPEATS, "steps": STEPS, "hardware": asdict(hardware.describe()), "pairs": pairs}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, pair in pairs.items():
        print(f"{name}: {pair['a']:.3f} s and {pair['b']:.3f} s, {pair['apart']:.1%} apart")


if __name__ == "__main__":
    main()
