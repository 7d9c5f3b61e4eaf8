"""Runs, grids of runs, and their records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.benchmark.baselines import write_baselines
    from medgraft.benchmark.dry_run import DryRun, dry_run_suite
    from medgraft.benchmark.plan import expand, why_unsupported
    from medgraft.benchmark.record import BASELINE, Record, read_record, write_record
    from medgraft.benchmark.results_reading import read_all_records, read_records, unreadable_records
    from medgraft.benchmark.run import RunResult, execute
    from medgraft.benchmark.run_folder import config_in
    from medgraft.benchmark.suite import run_suite
    from medgraft.benchmark.timing import StepTime, step_time
    from medgraft.scoring import RunCaptions, read_captions
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "BASELINE", "DryRun", "Record", "RunCaptions", "RunResult", "StepTime", "config_in", "dry_run_suite", "execute", "expand",
    "read_all_records", "read_captions", "read_record", "read_records", "run_suite", "step_time", "unreadable_records",
    "why_unsupported", "write_baselines", "write_record",
]  # fmt: skip
