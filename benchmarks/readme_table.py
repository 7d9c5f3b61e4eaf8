"""Fill the tables of README.md and benchmarks/README.md from committed records: `python benchmarks/readme_table.py`.

A table stands between `<!-- table: FOLDER -->` and `<!-- end of table -->`; FOLDER holds records, seen from the root.
"""

from __future__ import annotations

import re
from pathlib import Path

from medgraft.benchmark import read_records
from medgraft.report import markdown, rows

ROOT = Path(__file__).parent.parent
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every table made anew from its records, and a line on the hardware below it."""
    return _PLACE.sub(lambda match: match[1] + _table(ROOT / match[2]) + match[3], text)


def _table(folder: Path) -> str:
    records = read_records(folder)
    first = records[0]
    cpu, threads = first.hardware["cpu"], first.hardware["threads"]
    images = max((record.images or {}).get("train", 0) for record in records)
    note = f"{images} training images, {(first.images or {})['test']} test images. {cpu}, {threads} threads, bf16."
    return f"{markdown(rows(records))}\n\n{note}\n"


def main() -> None:
    """Rewrite both files."""
    for name in ("README.md", "benchmarks/README.md"):
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
