"""Records as tables that people and programs read."""

from medgraft.report.examples import example_captions
from medgraft.report.rehearsal import rehearsal_text
from medgraft.report.table import Row, as_json, markdown, rows, terminal

__all__ = ["Row", "as_json", "example_captions", "markdown", "rehearsal_text", "rows", "terminal"]
