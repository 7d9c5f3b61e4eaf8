"""Fill the tables of README.md, docs/models.md and benchmarks/README.md: `python benchmarks/readme_table.py`.

A table stands between `<!-- table: PLACE -->` and `<!-- end of table -->`. PLACE is a folder of records seen from the root;
`attention:FOLDER`, where its runs looked; `tuning:FOLDER`, the learning rates tried for them; `timing:FILE`, the record of
timing_aa.py; `speed:PATH` or `profile:PATH`, that of benchmarks/speed or a folder of several; `coverage:FILE`, that of
coverage.py; `kernels:FILE`, that of kernel_ablation.py; `memory:FILE`, that of data_memory.py; `extraction:FILE`, that of
extraction.py; `dry-run:FILE` and `loading:FILE`, those of dry_run_accuracy.py and loading_memory.py; `gpu` or `gpu-details`,
the race on a GPU in results/gpu/race.json, nothing without it; or `support`,
for what every backbone can be trained with, found by trying each pair on small random models.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu.table import gpu_details, gpu_table
from speed.kernel_ablation import table as kernel_table
from speed.table import profile_table, speed_table

from medgraft.benchmark import read_records, why_unsupported
from medgraft.plugin import PluginManager
from medgraft.quiet import quiet_libraries
from medgraft.report import attention_markdown, markdown, read_results, rows
from medgraft.strategies import get_strategy

ROOT = Path(__file__).parent.parent
GPU_RACE = ROOT / "benchmarks" / "results" / "gpu" / "race.json"
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def _grid(path: Path) -> str:
    lines = ["| fitted to | runs planned | workers | said, s | took, s | ratio |", "|---|--:|--:|--:|--:|--:|"]
    for row in json.loads(path.read_text(encoding="utf-8"))["simulated"]:
        said, took = row["said"], row["took"]
        lines.append(f"| {row['fitted to']} | {row['runs']} | {row['workers']} | {said:.0f} | {took:.0f} | {said / took:.2f} |")
    return "\n".join(lines) + "\n"


def _grid_on_paper(path: Path) -> str:
    paper = json.loads(path.read_text(encoding="utf-8"))["paper"]
    runs = ", ".join(f"{name} {hours:.2f}" for name, hours in sorted(paper["run_hours"].items(), key=lambda run: -run[1]))
    lines = [f"| workers ({paper['machine']}) | hours | price at {paper['price_per_hour']:.2f} an hour |", "|--:|--:|--:|"]
    lines += [f"| {row['workers']} | {row['hours']:.1f} | {row['price']:.0f} |" for row in paper["grids"]]
    return (
        "\n".join(lines)
        + f"\n\n{paper['runs']} runs, {paper['work_hours']:.1f} hours of work, {paper['store_bytes'] / 1e9:.0f} GB "
        f"of stored features. Hours of a run: {runs}.\n"
    )


def _executors(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| executor | workers | seconds | seconds in its runs | load of other work |", "|---|--:|--:|--:|--:|"]
    for row in record["rows"]:
        numbers = f"{row['workers']} | {row['seconds']:.0f} | {row['run_seconds']:.0f} | {row['other_load']:.1f}"
        lines.append(f"| {row['executor']} | {numbers} |")
    return "\n".join(lines) + f"\n\n{record['runs']} runs; {record['hardware']['cpu']}, {record['hardware']['cores']} cores.\n"


def filled(text: str) -> str:
    """`text` with every table made anew from its records, and a line on the hardware below it."""

    def made(match: re.Match[str]) -> str:
        place = match[2]
        kinds = {
            "support": _support, "speed": speed_table, "profile": profile_table, "coverage": _coverage, "memory": _memory,
            "kernels": _kernels, "gpu": _gpu, "gpu-details": _gpu_details, "attention": _attention, "tuning": _tuning,
            "timing": _timing, "extraction": _extraction, "dry-run": _dry_run, "loading": _loading,
            "grid": _grid, "grid-on-paper": _grid_on_paper, "executors": _executors,
        }  # fmt: skip
        kind, _, path = place.rpartition(":")
        return match[1] + kinds.get(kind or place, _table)(ROOT / path) + match[3]

    return _PLACE.sub(made, text)


def _support(_: Path) -> str:
    plugins = PluginManager()
    columns: dict[str, list[str | None]] = {}
    strategies = plugins.names("strategy")
    with TemporaryDirectory() as folder:
        for spec, _ in plugins.specs("backbone"):
            tiny = {name: f"{spec.name}:{spec.write_tiny(name, Path(folder) / name)}" for name in spec.tiny}
            for column, backbone in (tiny or {spec.name: spec.name}).items():
                source = backbone if tiny or getattr(spec.resolve(), "default_source", None) else f"{spec.name}:any"
                reasons = [why_unsupported(source, get_strategy(name, plugins=plugins), plugins=plugins) for name in strategies]
                columns[column] = reasons
    notes = list(dict.fromkeys(reason for reasons in columns.values() for reason in reasons if reason))
    head = "| strategy | " + " | ".join(columns) + " |\n|---" + "|:-:" * len(columns) + "|"
    lines = []
    for row, strategy in enumerate(strategies):
        cells = ["✓" if reasons[row] is None else str(notes.index(reasons[row]) + 1) for reasons in columns.values()]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    numbered = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n".join([head, *lines]) + f"\n\n{numbered}\n"


def _kernels(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    made, machine = record["settings"], record["hardware"]
    return (
        f"{kernel_table(record['strategies'])}\n\nBLIP of width {made['width']}, {made['image_size']} px, batch "
        f"{made['batch_size']}, medians of {made['steps']} steps; {machine['cpu']}, {machine['threads']} threads, "
        f"{'bf16' if machine['bf16'] else 'fp32'}.\n"
    )


def _memory(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    head = "| images | format | peak, MiB | not mapped from files, MiB | seconds to read and hash | seconds in all |"
    lines = [head, "|---:|---" + "|---:" * 4 + "|"]
    for run in record["runs"]:
        read = run["phases"].get("read_data", 0) + run["phases"].get("digests", 0)
        figures = f"{run['peak_mib']:,.0f} | {run['anonymous_mib']:,.0f} | {read:.1f} | {run['seconds']:.0f}"
        lines.append(f"| {run['images']:,} | {run['format']} | {figures} |")
    return "\n".join(lines) + "\n"


def _extraction(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| kept | stored in | MiB | CIDEr | against full fine-tuning |", "|---|---|---:|---:|---:|"]
    for row in record["rows"]:
        size, score, apart = row["bytes"] / 2**20, row["cider"], row["difference"]
        cells = [row["kept"], row["dtype"], f"{size:.2f}", f"{score[0]:.3f} [{score[1]:.3f}, {score[2]:.3f}]"]
        against = f"{apart[0]:+.3f} [{apart[1]:+.3f}, {apart[2]:+.3f}]" if apart else ""
        lines.append(f"| {' | '.join([*cells, against])} |")
    made, machine = record["settings"], record["hardware"]
    trained = f"{made['images']} training images, {made['epochs']} epochs, one seed"
    return "\n".join(lines) + (
        f"\n\nblip-nano on phantoms, {trained}; {record['test_images']} test images. In brackets: 95 % intervals, those of "
        f"differences over the same images. {machine['cpu']}, {machine['threads']} threads.\n"
    )


def _coverage(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| score | truth inside the 95 % interval |", "|---|---:|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in record["coverage"].items()]
    lines += ["", "| two halves of one model's seeds | called different at 5 % |", "|---|---:|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in record["false_alarms"].items()]
    return "\n".join(lines) + f"\n\n{record['sets']:,} simulated test sets of {record['patients']} patients.\n"


def _gpu(_: Path) -> str:
    return gpu_table(GPU_RACE)


def _gpu_details(_: Path) -> str:
    return gpu_details(GPU_RACE)


def _attention(folder: Path) -> str:
    return attention_markdown(read_results(folder, plugins=PluginManager())) + "\n"


def _tuning(folder: Path) -> str:
    rows = {record.strategy: record.tuning for record in read_records(folder) if record.tuning}
    lines = ["| strategy | learning rates tried: CIDEr on validation | seconds |", "|---|---|---:|"]
    for strategy, tuning in rows.items():
        tried = [
            f"{'**' if rate == tuning.chosen else ''}{rate:g}: {'failed' if score is None else f'{score:.3f}'}"
            f"{'**' if rate == tuning.chosen else ''}"
            for rate, score, _ in tuning.tried
        ]
        lines.append(f"| {strategy} | {', '.join(tried)} | {tuning.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _timing(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| strategy | A, s/step | B, s/step | apart | all repeats |", "|---|---:|---:|---:|---|"]
    for name, pair in record["pairs"].items():
        repeats = ", ".join(f"{seconds:.3f}" for seconds in pair["seconds"])
        lines.append(f"| {name} | {pair['a']:.3f} | {pair['b']:.3f} | {pair['apart']:.1%} | {repeats} |")
    machine = record["hardware"]
    return "\n".join(lines) + f"\n\n{machine['cpu']}, {machine['threads']} threads.\n"


def _table(folder: Path) -> str:
    records = read_records(folder)
    first = records[0]
    cpu, threads = first.hardware.cpu, first.hardware.threads
    images = max((record.images or {}).get("train", 0) for record in records)
    kind = "bf16" if first.hardware.bf16 else "fp32"
    note = f"{images} training images, {(first.images or {})['test']} test images. {cpu}, {threads} threads, {kind}."
    made = folder / "table.md"  # by `medgraft bench`, where the captions are not ours to publish
    if made.is_file():
        return f"{made.read_text(encoding='utf-8').strip()}\n\n{note}\n"
    plugins = PluginManager()
    results = read_results(folder, plugins=plugins)
    return f"{markdown(rows(records, results, plugins=plugins), whole=False)}\n\n{note}\n"


def _dry_run(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "| model | strategy | dtype | batch | memory said, GB | measured | ratio | seconds said | measured | ratio |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in record["runs"]:
        memory, seconds = run["memory"], run["training_seconds"]
        line = f"| {run['model']} | {run['strategy']} | {run['dtype']} | {run['batch']} "
        line += f"| {memory['said'] / 1e9:.2f} | {memory['measured'] / 1e9:.2f} | {memory['said'] / memory['measured']:.2f} "
        if seconds["said"] and seconds["measured"]:
            ratio = seconds["said"] / seconds["measured"]
            lines.append(f"{line}| {seconds['said']:.0f} | {seconds['measured']:.0f} | {ratio:.2f} |")
        else:
            lines.append(f"{line}| - | - | - |")
    machine = record["hardware"]
    return "\n".join(lines) + f"\n\n{machine['cpu']}, {machine['threads']} threads; {record['steps']} steps each.\n"


def _loading(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    size, run = record["files_bytes"], record["run"]
    rows = (
        ("files", size), ("Python and libraries", run["libraries_bytes"]), ("peak after loading", run["loaded_bytes"]),
        ("peak after a caption", run["captioned_bytes"]),
        ("the same without the libraries", run["captioned_bytes"] - run["libraries_bytes"]),
    )  # fmt: skip
    lines = ["| | GB | of the files |", "|---|--:|--:|", *(f"| {n} | {b / 1e9:.2f} | {b / size:.2f} |" for n, b in rows)]
    return "\n".join(lines) + f"\n\n{record['hardware']['cpu']}, {run['dtype']}.\n"


def main() -> None:
    """Rewrite the files."""
    quiet_libraries()
    for name in ("README.md", "docs/models.md", "benchmarks/README.md"):
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
