"""What a data set holds and what a run makes of it, before anything is trained."""

from medgraft.inspection.inspect import InspectedData, inspect_data
from medgraft.inspection.result import Inspection, Problem

__all__ = ["InspectedData", "Inspection", "Problem", "inspect_data"]
