"""`medgraft check-plugin`: the conformance checks of a plugin."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from medgraft.cli.options import add_json, add_set

NAME = "check-plugin"
SUMMARY = "run the conformance checks on all that a plugin provides"
EXAMPLE = "medgraft check-plugin medgraft-git"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See medgraft.cli."""
    parser.add_argument("plugin", metavar="NAME", help="plugin or distribution, as listed by `medgraft plugins`")
    parser.add_argument("--source", metavar="S", help="hub id or folder to check a backbone with (default: its tiny models)")
    parser.add_argument("--data", metavar="NAME:PATH", help="data to check a data set's reader with")
    add_set(parser, "data.K=V, an option of the data set; may be repeated")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """See medgraft.cli."""
    from medgraft.config import data_config
    from medgraft.plugin import PluginManager
    from medgraft.quiet import quiet_libraries
    from medgraft.testing import plugin_findings

    quiet_libraries()  # again, since medgraft.testing imports transformers
    data = data_config(arguments.data, arguments.overrides, None) if arguments.data else None
    findings = []
    for finding in plugin_findings(
        arguments.plugin, plugins=PluginManager.from_environment(), source=arguments.source, data=data
    ):
        findings.append(finding)
        if not arguments.json:
            mark, reason = "ok  ", ""
            if finding.problem is not None:
                mark, reason = "FAIL", f"\n       {finding.problem}\n       See {finding.implement}."
            print(f"{mark} {finding.subject}: {finding.check}{reason}", flush=True)
    failed = sum(finding.problem is not None for finding in findings)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(f"\n{len(findings)} checks, {failed} failed")
    return 1 if failed else 0
