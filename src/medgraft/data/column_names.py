"""Finds columns by their usual names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# columns of patients or articles, the most likely first
GROUPS = ("patient_id", "patientid", "patient", "subject_id", "subject", "pmcid", "pmc_id", "article")


def usual_column(columns: Iterable[str], usual: Sequence[str]) -> str | None:
    """The column with the first of the `usual` names that occurs among `columns`, in any case; None if there is none."""
    by_name = {column.casefold(): column for column in reversed(list(columns))}
    return next((by_name[name] for name in usual if name in by_name), None)
