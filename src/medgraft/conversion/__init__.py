"""Other forms of an adapter: merged into its base, combined with others, or in low rank."""

from medgraft.conversion.combine import METHODS, Combined, CombineOptions, combine_adapters
from medgraft.conversion.extract import Extracted, ExtractOptions, extract_adapter
from medgraft.conversion.merge import FORMATS, Merged, MergeOptions, merge_adapter
from medgraft.conversion.merged_folder import DTYPES
from medgraft.conversion.quality import Quality

__all__ = [
    "DTYPES",
    "FORMATS",
    "METHODS",
    "CombineOptions",
    "Combined",
    "ExtractOptions",
    "Extracted",
    "MergeOptions",
    "Merged",
    "Quality",
    "combine_adapters",
    "extract_adapter",
    "merge_adapter",
]
