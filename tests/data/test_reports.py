"""Reports of studies: sections by their headings, one of several images, and what is wrong with the files."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from medgraft.config import DataConfig
from medgraft.data import data_fingerprint, load_data
from medgraft.data.phantoms.facts import draw_facts
from medgraft.data.phantoms.reports import write_report
from medgraft.data.report_sections import report_sections
from medgraft.errors import DataError
from medgraft.metrics.clinical import content
from medgraft.metrics.facts import FIELDS, stated_facts

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // pneumonia?

 COMPARISON:  None.

 FINDINGS:

 The heart is normal.
 Lungs: clear, except for
 a granuloma.

 IMPRESSION:

 No acute process.
"""


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        (
            MIMIC,
            {
                "findings": "The heart is normal. Lungs: clear, except for a granuloma.", "impression": "No acute process.",
                "indication": "___F with cough // pneumonia?", "comparison": "None.",
            },
        ),
        ("Findings: Clear lungs. Impression: Normal.", {"findings": "Clear lungs.", "impression": "Normal."}),
        (" CHEST, TWO VIEWS: Effusion.\n\n CONCLUSION: Effusion.", {"findings": "Effusion.", "impression": "Effusion."}),
        (" CHEST, PA AND LATERAL:\n\n FINDINGS:  Clear.\n RIBS:  Intact.", {"findings": "Clear."}),
        (" FINDINGS: Old.\n ADDENDUM: x\n FINDINGS: New.\n FINDINGS:\n", {"findings": "New."}),
        (" HISTORY: Fever.\n FINDINGS AND IMPRESSION: Clear.", {"indication": "Fever.", "impression": "Clear."}),
        ("No findings: the heart, a history of nothing.", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_sections_are_found_by_their_headings(text, sections):
    assert report_sections(text) == sections


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(str(path).encode())).integers(0, 255, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _read(plugins, name, path, **settings):
    fields = {key: settings.pop(key) for key in ("prompt", "skip_bad_rows") if key in settings}
    return load_data(DataConfig(name=name, path=str(path), options=settings, **fields), plugins=plugins)


def _r2gen(folder, *, missing=(), key="test", **more):
    studies = {
        "train": [{"id": "CXR1", "report": "Clear lungs .", "image_path": ["CXR1/0.png", "CXR1/1.png"]}],
        "val": [
            {"id": "CXR2", "report": "Findings: Effusion. Impression: Bad.", "image_path": ["CXR2/0.png"], "subject_id": 7}
        ],
        key: [{"id": "CXR3", "report": "", "image_path": ["CXR3/0.png"]}],
    }
    studies["train"] += [{"id": "CXR4", "report": "Nodule .", "image_path": ["CXR4/0.png"], **more}]
    for entries in studies.values():
        for entry in entries:
            for name in entry["image_path"] if isinstance(entry["image_path"], list) else ():
                if name not in missing:
                    _image(folder / "images" / name)
    (folder / "annotation.json").write_text(json.dumps(studies))
    return folder


def test_r2gens_annotation(tmp_path, plugins):
    data = _read(plugins, "r2gen", _r2gen(tmp_path, key="    ", missing=("CXR4/0.png",)))
    assert [(e.id, e.split, e.captions, e.group) for e in data.examples] == [
        ("CXR1", "train", ("Clear lungs .",), "CXR1"), ("CXR2", "validation", ("Effusion.",), "7"),
    ]  # fmt: skip
    assert (data.report.uncaptioned, len(data.report.missing)) == (1, 1)
    name = tmp_path.name
    assert data.report.assumptions == (
        "annotation.json: the list under '    ' was read as test, which is missing.",
        f"{name}: 1 of 4 reports have no findings and are left out, such as 'CXR3'.",
        f"{name}: 1 of 4 studies have several images, of which the first frontal one is read, or the first where no view is "
        "known to be frontal.",
    )
    everything = _read(plugins, "r2gen", tmp_path / "annotation.json", section="both", images="all")
    assert [(e.id, e.image.name, e.captions) for e in everything.examples] == [
        ("CXR1", "0.png", ("Findings: Clear lungs .",)), ("CXR1#2", "1.png", ("Findings: Clear lungs .",)),
        ("CXR2", "0.png", ("Findings: Effusion. Impression: Bad.",)),
    ]  # fmt: skip
    assert "annotation.json: 2 of 4 reports have findings alone, such as 'CXR1', 'CXR4'." in everything.report.assumptions


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": "CXR1"}, r"train entry 2: the id 'CXR1' is that of train entry 1 too"),
        ({"id": None}, r"train entry 2: it has no 'id'"),
        ({"report": 3}, r"train entry 2: the report is the value 3; it must be a text"),
        ({"image_path": []}, r"train entry 2: 'image_path' is a list; it must be a list of paths"),
        ({"image_path": ["CXR2/0.png"]}, r"the group is '7', but train entry 2 has the same image in group 'CXR4'"),
        ({"key": "extra"}, r"key 'extra': it is not a split; name it train, val or test"),
    ],
)
def test_a_wrong_entry_of_r2gen_is_a_bad_row(tmp_path, plugins, change, problem):
    folder = _r2gen(tmp_path, **change)
    with pytest.raises(DataError, match=problem):
        _read(plugins, "r2gen", folder)
    rest = _read(plugins, "r2gen", folder, skip_bad_rows=True)
    assert len(rest.report.bad_rows) == 1 and len(rest.examples) == 2 + (change == {"key": "extra"})


def test_phantoms_have_a_lateral_view_that_shows_what_the_frontal_one_does_not(phantoms_folder, plugins):
    plain, both, first = (
        _read(plugins, "phantom-reports", phantoms_folder, **options)
        for options in ({}, {"views": 2}, {"views": 2, "images": "first"})
    )
    chests = [each for each in both.examples if each.facts["study"] == "chest-xray"]
    assert {len(each.images) for each in chests} == {2} and both.several_images and not first.several_images
    assert {len(each.images) for each in both.examples if each not in chests} == {1}
    assert [each.captions for each in first.examples] == [each.captions for each in both.examples]
    for before, now in zip(plain.examples, both.examples, strict=True):
        added = now.captions[0].removeprefix(before.captions[0])
        wanted = {True: " There is a hiatal hernia.", False: " There is no hiatal hernia.", None: ""}
        assert added == wanted[now.facts.get("hernia")]
    light = {h: [_sac(each.more_images[0]) for each in chests if each.facts["hernia"] is h] for h in (True, False)}
    assert min(light[True]) > max(light[False])


def _sac(path):
    """How much the image's levels vary where the hernia is."""
    pixels = np.asarray(Image.open(path), dtype=float)
    return pixels[112:126, 104:122].std()


def test_images_of_a_study_together(tmp_path, plugins):
    data = _read(plugins, "r2gen", _r2gen(tmp_path), images="together")
    assert [[image.name for image in each.images] for each in data.split("train")] == [["0.png", "1.png"], ["0.png"]]
    assert data.several_images and not _read(plugins, "r2gen", tmp_path).several_images
    assert f"{tmp_path.name}: 1 of 4 studies have several images, which the model sees together." in data.report.assumptions
    twice = _read(plugins, "r2gen", _r2gen(tmp_path / "b", missing=("CXR1/1.png",)), images="together")
    assert [each.id for each in twice.split("train")] == ["CXR4"] and "1.png" in twice.report.missing[0]
    shown = data_fingerprint(data.examples)
    Image.new("L", (24, 24)).save(tmp_path / "images/CXR1/1.png")
    assert data_fingerprint(data.examples) != shown
    with pytest.raises(DataError, match=r"train entry 2: the group is 'CXR4', but train entry 1 has the same image in group"):
        _read(plugins, "r2gen", _r2gen(tmp_path / "c", image_path=["CXR4/0.png", "CXR1/1.png"]), images="together")


REPORTS = """uid,MeSH,Problems,image,indication,comparison,findings,impression
1,normal,normal,Xray Chest PA and Lateral,Positive TB test,None.,Clear lungs.,Normal chest x-XXXX.
2,x,x,Chest,,,,No acute finding.
3,x,x,Chest,Pain,,Effusion.,Effusion.
4,x,x,Chest,Pain,,Nodule.,Nodule.
"""
PROJECTIONS = """uid,filename,projection
1,1_IM-1.dcm.png,Lateral
1,1_IM-2.dcm.png,Frontal
2,2_IM-1.dcm.png,Frontal
3,3_IM-1.dcm.png,Lateral
9,9_IM-1.dcm.png,Frontal
"""


def _open_i(folder, reports=REPORTS, projections=PROJECTIONS):
    for row in projections.splitlines()[1:]:
        _image(folder / "images/images_normalized" / row.split(",")[1])
    (folder / "indiana_reports.csv").write_text(reports)
    (folder / "indiana_projections.csv").write_text(projections)
    return folder


def test_open_is_tables(tmp_path, plugins):
    data = _read(plugins, "open-i", _open_i(tmp_path), prompt="Indication: {indication}", skip_bad_rows=True)
    assert [(e.id, e.image.name, e.captions, e.prompt, e.group) for e in data.examples] == [
        ("1", "1_IM-2.dcm.png", ("Clear lungs.",), "Indication: Positive TB test", "1"),
        ("3", "3_IM-1.dcm.png", ("Effusion.",), "Indication: Pain", "3"),
    ]  # fmt: skip
    assert data.examples[0].facts == {"indication": "Positive TB test", "comparison": "None.", "view": "Frontal"}
    (bad,) = data.report.bad_rows
    assert "there is no 'indication', which data.prompt names" in str(bad)
    notes = "\n".join(data.report.assumptions)
    assert "1 of 4 reports have no findings and are left out, such as '2'." in notes
    assert "1 of 4 reports have no image and are left out, such as '4'." in notes
    assert "1 of 4 studies have no frontal image; the first one is read." in notes
    assert "indiana_projections.csv: 1 images have no report, such as those of uid '9'." in notes
    assert "were split 80/10/10" in notes
    together = _read(plugins, "open-i", tmp_path, images="together").examples[0]
    assert [image.name for image in together.images] == ["1_IM-2.dcm.png", "1_IM-1.dcm.png"]
    assert together.facts["view"] == "Frontal, Lateral"
    first = _read(plugins, "open-i", tmp_path, section="impression", images="first")
    assert [(e.id, e.image.name) for e in first.examples][:2] == [("1", "1_IM-1.dcm.png"), ("2", "2_IM-1.dcm.png")]


@pytest.mark.parametrize(
    ("reports", "problem"),
    [
        (REPORTS + "1,x,x,Chest,,,Again.,Again.\n", r"row 6: the id '1' is that of row 2 too"),
        (REPORTS + ",x,x,Chest,,,Again.,Again.\n", r"row 6: there is no uid"),
        (REPORTS.replace("findings", "found"), r"has no column findings; its columns are"),
    ],
)
def test_wrong_tables_of_open_i(tmp_path, plugins, reports, problem):
    with pytest.raises(DataError, match=problem):
        _read(plugins, "open-i", _open_i(tmp_path, reports))


XML = """<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{0}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="INDICATION">Cough</AbstractText><AbstractText Label="FINDINGS">{1}</AbstractText>
<AbstractText Label="IMPRESSION">Normal {0}.</AbstractText></Abstract></Article></MedlineCitation>
<parentImage id="CXR{0}_1_IM-0001-3001"/><parentImage id="CXR{0}_1_IM-0001-4001"/></eCitation>"""


def test_open_is_xml(tmp_path, plugins):
    for number, findings in ((10, "Clear."), (2, "")):
        (tmp_path / "ecgen-radiology").mkdir(exist_ok=True)
        (tmp_path / f"ecgen-radiology/{number}.xml").write_text(XML.format(number, findings))
        _image(tmp_path / f"NLMCXR_png/CXR{number}_1_IM-0001-3001.png")
    data = _read(plugins, "open-i", tmp_path, section="both")
    assert [(e.id, e.captions, e.facts["indication"]) for e in sorted(data.examples, key=lambda e: e.group[3:].zfill(2))] == [
        ("CXR2", ("Impression: Normal 2.",), "Cough"), ("CXR10", ("Findings: Clear. Impression: Normal 10.",), "Cough"),
    ]  # fmt: skip
    (tmp_path / "ecgen-radiology/3.xml").write_text("<eCitation>")
    with pytest.raises(DataError, match=r"3\.xml, the report: it is not XML: no element found"):
        _read(plugins, "open-i", tmp_path)


def _mimic(folder, *, packed=True, split="validate", reports="files"):
    rows = [
        ("a", 100, 10000001, "train"),
        ("b", 100, 10000001, "train"),
        ("c", 200, 10000002, split),
        ("d", 300, 10000003, "test"),
    ]
    views = {"a": "LATERAL", "b": "AP", "c": "", "d": "PA"}
    tables = {
        "split": ["dicom_id,study_id,subject_id,split", *(",".join(map(str, row)) for row in rows)],
        "metadata": ["dicom_id,subject_id,ViewPosition", *(f"{key},1,{view}" for key, view in views.items())],
    }
    for name, lines in tables.items():
        file, content = folder / f"mimic-cxr-2.0.0-{name}.csv", "\n".join(lines).encode()
        file.write_bytes(content) if not packed else file.with_suffix(".csv.gz").write_bytes(gzip.compress(content))
    for key, study, subject, _ in rows:
        _image(folder / f"files/p10/p{subject}/s{study}/{key}.jpg")
        text = folder / f"{reports}/p10/p{subject}/s{study}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(MIMIC if study < 300 else " FINAL REPORT\n\n Nothing new.\n")
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_mimic_cxr_jpgs_layout(tmp_path, plugins, packed):
    reports = "files" if packed else "mimic-cxr-reports/files"
    folder = _mimic(tmp_path, packed=packed, reports=reports)
    data = _read(plugins, "mimic-cxr", folder, reports=reports)
    assert [(e.id, e.image.name, e.split, e.group, e.facts["view"]) for e in data.examples] == [
        ("s100", "b.jpg", "train", "p10000001", "AP"), ("s200", "c.jpg", "validation", "p10000002", None),
    ]  # fmt: skip
    assert data.examples[0].captions == ("The heart is normal. Lungs: clear, except for a granuloma.",)
    assert data.examples[0].facts["comparison"] == "None."
    assert "1 of 3 reports have no findings and are left out, such as 's300'." in "\n".join(data.report.assumptions)
    (folder / f"{reports}/p10/p10000002/s200.txt").unlink()
    data = _read(plugins, "mimic-cxr", folder, reports=reports)
    assert [e.id for e in data.examples] == ["s100"]
    assert "1 of 3 studies have no report file, such as s200.txt." in "\n".join(data.report.assumptions)


def test_a_broken_copy_of_mimic_cxr_is_told_in_one_line(tmp_path, plugins):
    with pytest.raises(DataError, match=r"is not MIMIC-CXR-JPG as published: it has neither .*-metadata\.csv nor"):
        _read(plugins, "mimic-cxr", tmp_path)
    folder = _mimic(tmp_path, split="dev2")
    with pytest.raises(DataError, match=r"row 4: 'dev2' is not a split; it must be train, validate or test"):
        _read(plugins, "mimic-cxr", folder)
    table = _mimic(tmp_path) / "mimic-cxr-2.0.0-split.csv.gz"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"split\.csv\.gz is damaged: .* Download it again"):
        _read(plugins, "mimic-cxr", folder)
    _mimic(tmp_path)
    with pytest.raises(DataError, match=r"has no reports, such as .*s100\.txt\. Unpack mimic-cxr-reports\.zip"):
        _read(plugins, "mimic-cxr", folder, reports="elsewhere")


def test_reports_of_phantoms_say_what_is_shown_and_deny_what_is_not():
    rng = np.random.default_rng(0)
    reports = []
    for number in range(1000):
        facts = draw_facts(rng, unseen=number % 3 == 0)
        reports.append(report := write_report(facts, rng))
        for section in ("findings", "impression"):
            stated = stated_facts(report[section])
            assert stated["finding"] == facts.finding, report
            assert all(stated[field] in (None, getattr(facts, field)) for field in FIELDS), report
        found = content(report["findings"]).findings
        assert "No " in report["findings"] or " no " in report["findings"]
        assert facts.finding or not any(present for _, present in found), report
    assert len({report["findings"] for report in reports}) > 900


def test_phantom_reports_are_the_phantoms_with_reports(phantoms_folder, plugins):
    phantoms = _read(plugins, "phantoms", phantoms_folder).examples
    prompt = "Indication: {indication} View: {view}."
    sections = {
        section: _read(plugins, "phantom-reports", phantoms_folder, section=section, prompt=prompt).examples
        for section in ("findings", "impression", "both")
    }
    for phantom, findings, impression, both in zip(phantoms, *sections.values(), strict=True):
        assert (phantom.id, phantom.split, phantom.group) == (both.id, both.split, both.group)
        assert both.captions == (f"Findings: {findings.captions[0]} Impression: {impression.captions[0]}",)
        assert both.prompt == f"Indication: {both.facts['indication']} View: {both.facts['view']}."
    again = _read(plugins, "phantom-reports", phantoms_folder, section="both").examples
    assert [e.captions for e in again] == [e.captions for e in sections["both"]]
