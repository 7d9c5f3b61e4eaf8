"""What a data set holds and what a run makes of it, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medgraft.inspection.result import Inspection, Problem
from medgraft.lazy import lazily

if TYPE_CHECKING:
    from medgraft.inspection.inspect import InspectedData, inspect_data
else:
    __getattr__ = lazily(__name__)

__all__ = ["InspectedData", "Inspection", "Problem", "inspect_data"]
