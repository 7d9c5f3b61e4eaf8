"""Records and results as tables, plots and HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.lazy import lazily
from medgraft.report.data_page import data_page
from medgraft.report.data_text import data_text
from medgraft.report.rows import Row, rows

if TYPE_CHECKING:
    from medgraft.report.attention import attention_markdown
    from medgraft.report.comparison import compare
    from medgraft.report.dry_run import dry_run_text
    from medgraft.report.examples import example_captions
    from medgraft.report.explanation import explanation_page
    from medgraft.report.html import html_report
    from medgraft.report.peft_layout import peft_results, write_peft_results
    from medgraft.report.results import Group, read_results
    from medgraft.report.standing_notes import evaluation_note
    from medgraft.report.table import as_csv, as_json, markdown, terminal
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Group", "Row", "as_csv", "as_json", "attention_markdown", "compare", "data_page", "data_text", "dry_run_text",
    "evaluation_note", "example_captions", "explanation_page", "html_report", "markdown", "peft_results", "read_results",
    "rows", "terminal", "write_peft_results",
]  # fmt: skip
