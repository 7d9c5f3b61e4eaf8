"""Conformance checks for plugin authors: each function raises ConformanceError with every check that failed."""

from medgraft.testing.backbone_checks import backbone_findings, check_backbone
from medgraft.testing.data_checks import check_dataset, check_metric, dataset_findings, metric_findings
from medgraft.testing.findings import ConformanceError, Finding
from medgraft.testing.plugin_checks import plugin_findings
from medgraft.testing.strategy_checks import check_strategy, strategy_findings

__all__ = [
    "ConformanceError",
    "Finding",
    "backbone_findings",
    "check_backbone",
    "check_dataset",
    "check_metric",
    "check_strategy",
    "dataset_findings",
    "metric_findings",
    "plugin_findings",
    "strategy_findings",
]
