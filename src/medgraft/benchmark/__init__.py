"""Runs, grids of runs, and their records."""

from medgraft.benchmark.baselines import write_baselines
from medgraft.benchmark.dry_run import DryRun, dry_run_suite
from medgraft.benchmark.plan import expand, plan, why_unsupported
from medgraft.benchmark.record import BASELINE, Record, read_record, write_record
from medgraft.benchmark.results_reading import read_all_records, read_records, unreadable_records
from medgraft.benchmark.run import RunResult, execute
from medgraft.benchmark.run_folder import config_in
from medgraft.benchmark.suite import run_suite
from medgraft.benchmark.timing import StepTime, step_time
from medgraft.scoring import RunCaptions, read_captions

__all__ = [
    "BASELINE", "Record", "DryRun", "RunCaptions", "RunResult", "StepTime", "config_in", "execute", "expand", "plan",
    "read_all_records", "read_captions",
    "read_record", "read_records", "dry_run_suite", "run_suite", "step_time",
    "unreadable_records", "why_unsupported", "write_baselines", "write_record",
]  # fmt: skip
