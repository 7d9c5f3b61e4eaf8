"""Readers of IU X-Ray (Demner-Fushman et al. 2016), as R2Gen and Open-i publish it, and of MIMIC-CXR-JPG's layout."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pydantic import Field

from medgraft.data.json_lists import json_problem, parse_json
from medgraft.data.notes import RowError
from medgraft.data.paths import image_file
from medgraft.data.report_sections import report_sections
from medgraft.data.reports import ReportDataset, Study
from medgraft.data.roco import read_table, require_folder
from medgraft.data.splits import split_named
from medgraft.data.text import bare_text, clean_caption, kind, label, read_text, shown
from medgraft.errors import DataError
from medgraft.types import Split

_SECTIONS, _FACTS = ("findings", "impression"), ("indication", "comparison")


class R2Gen(ReportDataset):
    """R2Gen's `annotation.json` beside `images/`: lists of studies under train, val and test. A report is the findings.

    Headings in a report tell its sections apart. The group is `subject_id`, or the study where there is none.
    """

    def studies(self, path: Path | None) -> Iterator[tuple[Path, str, Study]]:
        """See ReportDataset."""
        if path is None:
            raise DataError("Data 'r2gen' needs a path: write r2gen:FOLDER, with the folder of annotation.json and images/.")
        file = path if path.is_file() else path / "annotation.json"
        if not file.is_file():
            raise DataError(f"{path} is not R2Gen's layout: it has no {file.name}.")
        try:
            content = parse_json(read_text(file, self.notes))
        except (json.JSONDecodeError, RowError) as error:
            raise DataError(f"{file}{json_problem(error)}") from None
        if not isinstance(content, dict) or not all(isinstance(entries, list) for entries in content.values()):
            raise DataError(f"{file} is not R2Gen's: lists of studies under train, val and test are needed.")
        for key, split in self._splits(file, content).items():
            for number, entry in enumerate(content[key], start=1):
                place = f"{key.strip() or split} entry {number}"
                with self.notes.row(file, place):
                    yield file, place, self._study(entry, file.parent / "images", split)

    def _splits(self, file: Path, content: Mapping[str, Any]) -> dict[str, Split]:
        """The split of each key; a key without letters is test where only that is missing, as in one published file."""
        found = {key: split for key in content if (split := split_named(key))}
        for key in content.keys() - found.keys():
            if key.strip() or "test" in found.values() or not found:
                self.notes.bad_row(file, f"key {shown(key)}", "it is not a split; name it train, val or test, or remove it")
                continue
            self.notes.assumed(f"{file.name}: the list under {shown(key)} was read as test, which is missing.")
            found[key] = "test"
        return found

    def _study(self, entry: Any, images: Path, split: Split) -> Study:
        if not isinstance(entry, dict):
            raise RowError(f"it is {kind(entry)} where an object is needed")
        key = label(entry.get("id"), "id")
        if key is None:
            raise RowError("it has no 'id'")
        text, names = entry.get("report"), entry.get("image_path")
        if not isinstance(text, str | None):
            raise RowError(f"the report is {kind(text)}; it must be a text")
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names:
            raise RowError(f"'image_path' is {kind(names)}; it must be a list of paths")
        sections = report_sections(text or "")
        if not sections.keys() & {"findings", "impression"} and (whole := clean_caption(bare_text(text or ""))):
            sections = {"findings": whole}
        files = [(image_file(name, images, self.notes.root)[1], None) for name in names]
        return Study(key, files, sections, label(entry.get("subject_id"), "subject_id") or key, split)


class OpenI(ReportDataset):
    """IU X-Ray as on Kaggle, `indiana_reports.csv` and `indiana_projections.csv`, or as Open-i's XML files.

    Images are below `images/images_normalized/`, `images_normalized/`, `images/`, `NLMCXR_png/` or beside the reports. The
    collection has no splits: they are 80/10/10 by a hash of the study. XML does not tell views.
    """

    def studies(self, path: Path | None) -> Iterator[tuple[Path, str, Study]]:
        """See ReportDataset."""
        root = require_folder(path, "open-i", "the folder of indiana_reports.csv, or of Open-i's XML files")
        folders = ("images/images_normalized", "images_normalized", "images", "NLMCXR_png")
        images = next((folder for name in folders if (folder := root / name).is_dir()), root)
        if (root / "indiana_reports.csv").is_file():
            yield from self._tables(root, images)
        elif files := sorted(root.rglob("*.xml"), key=lambda file: (len(file.stem), file.stem)):  # 2.xml before 10.xml
            for file in files:
                with self.notes.row(file, "the report"):
                    yield file, "the report", self._xml(file, images)
        else:
            raise DataError(f"{root} is not Open-i's collection: it has neither indiana_reports.csv nor XML files.")

    def _tables(self, root: Path, images: Path) -> Iterator[tuple[Path, str, Study]]:
        reports, projections = root / "indiana_reports.csv", root / "indiana_projections.csv"
        if not projections.is_file():
            raise DataError(f"{root} has no {projections.name}, which names the images of each report.")
        found: dict[str, list[tuple[Path, str | None]]] = {}
        for row in read_table(projections, ("uid", "filename", "projection"), self.notes):
            with self.notes.row(projections, row.place):
                file = image_file(row.cells["filename"], images, self.notes.root)[1]
                found.setdefault(_uid(row.cells["uid"]), []).append((file, bare_text(row.cells["projection"]) or None))
        known = set()
        for row in read_table(reports, ("uid", "findings", "impression"), self.notes):
            with self.notes.row(reports, row.place):
                key = _uid(row.cells["uid"])
                known.add(key)
                yield reports, row.place, _study(key, found.get(key, []), row.cells)
        if orphans := found.keys() - known:
            of = sum(len(found[key]) for key in orphans)
            self.notes.assumed(f"{projections.name}: {of} images have no report, such as those of uid {min(orphans)!r}.")

    def _xml(self, file: Path, images: Path) -> Study:
        try:
            report = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise RowError(f"it is not XML: {error}") from None
        uid = report.find("uId")
        texts = {text.get("Label", "").lower(): "".join(text.itertext()) for text in report.iter("AbstractText")}
        names = [f"{_uid(image.get('id'))}.png" for image in report.iter("parentImage")]
        files = [(image_file(name, images, self.notes.root)[1], None) for name in names]
        return _study(_uid(None if uid is None else uid.get("id")), files, texts)


class MimicCxr(ReportDataset):
    """MIMIC-CXR-JPG: `mimic-cxr-2.0.0-split.csv`, `-metadata.csv` (or .gz) and `files/p10/p10000032/s50414267/*.jpg`.

    Reports are `s50414267.txt` beside the folders of studies, or below the folder `reports`, from `mimic-cxr-reports.zip`.
    """

    reports: str | None = Field(
        default=None, description="folder of p10/ ... p19/ with the reports, relative to the data; by default files"
    )

    def studies(self, path: Path | None) -> Iterator[tuple[Path, str, Study]]:
        """See ReportDataset."""
        root = require_folder(path, "mimic-cxr", "the folder of mimic-cxr-2.0.0-split.csv, -metadata.csv and files/")
        texts = root / Path(self.reports or "files").expanduser()
        metadata, table = _published(root, "metadata"), _published(root, "split")
        views = {row["dicom_id"]: row["ViewPosition"] or None for _, row in _rows(metadata, ("dicom_id", "ViewPosition"))}
        studies: dict[tuple[str, str], tuple[str, Split, list[tuple[Path, str | None]]]] = {}
        for place, row in _rows(table, ("dicom_id", "study_id", "subject_id", "split")):
            with self.notes.row(table, place):
                split = "validation" if row["split"] == "validate" else split_named(row["split"])
                if split is None:
                    raise RowError(f"{shown(row['split'])} is not a split; it must be train, validate or test")
                subject, key = row["subject_id"], row["study_id"]
                file = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{key}" / f"{row['dicom_id']}.jpg"
                _, first, images = studies.setdefault((subject, key), (place, split, []))
                if split != first:
                    raise RowError(f"the study {key} is in {first} before and in {split} here")
                images.append((file, views.get(row["dicom_id"])))
        without: list[Path] = []
        for (subject, key), (place, split, images) in studies.items():
            report = texts / f"p{subject[:2]}" / f"p{subject}" / f"s{key}.txt"
            there = report.is_file()
            without += [] if there else [report]
            sections = report_sections(read_text(report, self.notes)) if there else {}
            yield table, place, _study(f"s{key}", images, sections, f"p{subject}", split)
        if without and len(without) == len(studies):
            unpack = "Unpack mimic-cxr-reports.zip and name its folder: --set data.reports=FOLDER/files"
            raise DataError(f"{root} has no reports, such as {without[0]}. {unpack}")
        if without:
            missing = f"{len(without)} of {len(studies)} studies have no report file, such as {without[0].name}"
            self.notes.assumed(f"{root.name}: {missing}.")


def _study(
    key: str,
    images: Sequence[tuple[Path, str | None]],
    texts: Mapping[str, str],
    group: str | None = None,
    split: Split | None = None,
) -> Study:
    """A study from its texts by name, of which those that are known before the image is read are facts."""
    found = {name: clean_caption(bare_text(texts.get(name) or "")) for name in (*_SECTIONS, *_FACTS)}
    sections = {name: found[name] for name in _SECTIONS if found[name]}
    return Study(key, images, sections, group or key, split, {name: found[name] or None for name in _FACTS})


def _uid(value: Any) -> str:
    key = label(value, "uid")
    if key is None:
        raise RowError("there is no uid")
    return key


def _published(root: Path, what: str) -> Path:
    """The table of MIMIC-CXR-JPG, packed or not."""
    names = [f"mimic-cxr-2.0.0-{what}.csv{ending}" for ending in ("", ".gz")]
    file = next((file for name in names if (file := root / name).is_file()), None)
    if file is None:
        raise DataError(f"{root} is not MIMIC-CXR-JPG as published: it has neither {names[0]} nor {names[1]}.")
    return file


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The place and the cells of each row of a large table, one at a time; DataError if a column is missing."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
            if absent := [name for name in columns if name not in (reader.fieldnames or ())]:
                raise DataError(
                    f"{file} has no column {', '.join(absent)}; its columns are {', '.join(reader.fieldnames or ())}."
                )
            for row in reader:
                yield f"row {reader.line_num}", {name: (row[name] or "").strip() for name in columns}
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{file} is damaged: {error}. Download it again.") from None
