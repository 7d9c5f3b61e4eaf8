"""Tables and JSON as people have them: each is read right, or refused with one line."""

import json
import re

import pyarrow
import pytest
from pyarrow import parquet

from medgraft.data.notes import ReadingNotes
from medgraft.errors import DataError, MedgraftError
from medgraft.strict_model import validated

HEAD = "image,caption\n"
TSV = "image\tcaption\n"
IMAGE = {"image": "a.png"}


def _write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else _text(content).encode())


def _text(content):
    return content if isinstance(content, str) else json.dumps(content)


def _read(plugins, name, path, *, skip=False, root=None, **options):
    """The examples and the notes of one reading, without a look at the images."""
    reader = validated(plugins.get("dataset", name), options, f"Data {name}")
    reader.use_notes(ReadingNotes(skip_bad_rows=skip, root=root))
    return list(reader.read(path)), reader.notes


def _written(root, name, content):
    """The path to read after `content`, a folder's files or one file of reader `name`, was written below `root`."""
    if isinstance(content, dict) and (name not in ("json", "jsonl", "coco") or "train/_annotations.coco.json" in content):
        _write(root, content)
        return root
    _write(root, {f"t.{name}": content})
    return root / f"t.{name}"


def _captions(examples):
    return {example.id: list(example.captions) for example in examples}


def _splits(examples):
    return {example.id: example.split for example in examples}


LAVIS = [{"image": "a.png", "caption": ["one", "two"], "image_id": 1}, {"image": "b.png", "caption": "three", "image_id": 2}]
LLAVA = {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nDescribe the image concisely."}]}
LLAVA["conversations"].append({"from": "gpt", "value": "Clear lungs."})
CHAT = {
    "messages": [
        {"role": "system", "content": "You are a radiologist."},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Write a report."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Clear lungs."}]},
    ]
}
QUESTION = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": "Is there a fracture?"}, {"from": "gpt", "value": "No."}],
}
SEVERAL = {"image": "a.png", "conversations": LLAVA["conversations"] * 2}
COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"}],
}
EXCEL = '\r\nimage;caption;split;\r\na.png;Ödem, "leicht";train;\r\nb.png;"Zeile 1\nZeile 2; Größe";Test;\r\n;;;\r\n'


def _coco(**changes):
    return {**COCO, **changes}


READ = [
    # delimited text: encodings, delimiters, quotes
    ("csv", HEAD + 'a.png,"Chest, PA"\na.png,normal\n', {}, {"a.png": ["Chest, PA", "normal"]}),
    ("csv", HEAD.encode("utf-8-sig") + b"a.png,one\n", {}, {"a.png": ["one"]}),
    ("csv", '\ufeff\ufeff"image","caption"\na.png,one\n', {}, {"a.png": ["one"]}),
    ("csv", (HEAD + "a.png,Größe\n").encode("utf-16"), {}, {"a.png": ["Größe"]}),
    ("csv", (HEAD + "a.png,Größe, – „Ödem“\n").replace(", –", " –").encode("cp1252"), {}, {"a.png": ["Größe – „Ödem“"]}),
    ("csv", (HEAD + "a.png,正常\n").encode("gb18030"), {"encoding": "gb18030"}, {"a.png": ["正常"]}),
    ("csv", EXCEL.encode("cp1252"), {}, {"a.png": ['Ödem, "leicht"'], "b.png": ["Zeile 1 Zeile 2; Größe"]}),
    ("csv", "sep=;\nimage;caption\na.png;one, two\n", {}, {"a.png": ["one, two"]}),
    ("csv", "sep=:\nimage:caption\na.png:one, two\n", {}, {"a.png": ["one, two"]}),
    ("csv", 'image\tcaption\na.png\t"one, ""two"""\n', {}, {"a.png": ['one, "two"']}),
    ("csv", "image|caption\na.png|one, two\n", {}, {"a.png": ["one, two"]}),
    ("csv", "image_name| number| comment\na.png| 0| one, two\n", {"image": "image_name", "caption": "comment"},
     {"a.png": ["one, two"]}),
    ("csv", "image;caption, long\na.png;x\n", {"caption": "caption, long"}, {"a.png": ["x"]}),
    ("csv", HEAD + "a.png," + "word " * 60_000, {}, {"a.png": [" ".join(["word"] * 60_000)]}),
    ("csv", HEAD + 'a.png, "Chest, PA"\nb.png, "x"\n', {}, {"a.png": ["Chest, PA"], "b.png": ["x"]}),
    ("csv", HEAD + r'a.png,"a \"5 cm\" mass"', {}, {"a.png": ['a "5 cm" mass']}),
    ("csv", HEAD.replace("\n", "\r") + "a.png,one\rb.png,two", {}, {"a.png": ["one"], "b.png": ["two"]}),
    ("csv", HEAD + 'a.png,"Findings:\n1, clear\n\nb, stable"\n', {}, {"a.png": ["Findings: 1, clear b, stable"]}),
    ("csv", ",image,caption\n0,a.png,one\n1,b.png,two\n", {}, {"a.png": ["one"], "b.png": ["two"]}),
    ("csv", "note,note,image,caption\n1,2,a.png,one\n", {}, {"a.png": ["one"]}),
    ("csv", "Image_Path,Report\na.png,one\n", {}, {"a.png": ["one"]}),
    ("tsv", TSV + 'a.png\ta "5 cm mass, PA\nb.png\tx', {}, {"a.png": ['a "5 cm mass, PA'], "b.png": ["x"]}),
    ("tsv", HEAD + 'a.png,"one, two"', {}, {"a.png": ["one, two"]}),
    ("imagefolder", {"metadata.csv": "file_name;text\na.png;x, y\n"}, {}, {"a.png": ["x, y"]}),
    ("csv", HEAD + "a.png,\"['one', 'two, \\d']\"\nb.png,[one] two [three]\n", {},
     {"a.png": ["one", "two, \\d"], "b.png": ["[one] two [three]"]}),
    ("csv", HEAD + "a.png,\"['one 1'\n 'it's'\n \"\"two's\"\"]\"\nb.png,\"['one 1'\n \"\"two's\"\" 'three']\"\n", {},
     {"a.png": ["['one 1' 'it's' \"two's\"]"], "b.png": ["one 1", "two's", "three"]}),  # as NumPy prints lists
    ("csv", HEAD + "\u202aa.png,a\u200bb \ufeffc\x07 so\u00adft\n", {}, {"a.png": ["ab c soft"]}),
    ("csv", HEAD + "a.png,می\u200cخواهم\n", {}, {"a.png": ["می\u200cخواهم"]}),  # this joiner is part of a word
    ("imagefolder", {"metadata.csv": "file_name,caption\na.png,x\n"}, {}, {"a.png": ["x"]}),
    # no captions
    ("csv", HEAD + "".join(f"{i}.png,{v}\n" for i, v in enumerate(["", "nan", "NaN", "NULL", "None", " \ufeff ", "\u200b"])),
     {}, {f"{i}.png": [] for i in range(7)}),
    ("csv", HEAD + "".join(f"{i}.png,{v}\n" for i, v in enumerate(
        ["#N/A", "#NAME?", "#REF!", "#DIV/0!", "#WERT!", "#NV", "N/A", "n/a", "NaT", "<NA>"])), {},
     {f"{i}.png": [] for i in range(10)}),
    ("csv", HEAD + "a.png,#1 nodule!\n", {}, {"a.png": ["#1 nodule!"]}),
    ("csv", HEAD + "a.png,nan\na.png,one\n", {}, {"a.png": ["one"]}),
    ("json", [{**IMAGE, "caption": None}, {"image": "b.png", "caption": ["nan", "one"]}], {}, {"a.png": [], "b.png": ["one"]}),
    # paths
    ("csv", HEAD + "x\\a.png,one\n./x/a.png,two\n", {}, {"x/a.png": ["one", "two"]}),
    # JSON
    ("json", LAVIS, {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", LAVIS, {"id": "image_id"}, {"1": ["one", "two"], "2": ["three"]}),
    ("jsonl", LAVIS, {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", "\ufeff" + json.dumps(LAVIS, indent=1), {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", "\n".join(map(json.dumps, LAVIS)), {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("jsonl", "\ufeff" + "\n\n".join(map(json.dumps, LAVIS)), {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", {"info": {"year": 1}, "data": LAVIS}, {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", {"annotations": LAVIS}, {}, {"a.png": ["one", "two"], "b.png": ["three"]}),
    ("json", LAVIS[1], {}, {"b.png": ["three"]}),
    ("json", {"train": [{"id": "R1", "report": "one", "image_path": ["a.png"], "split": "train"}]}, {"id": "id"},
     {"R1": ["one"]}),
    ("json", {"val": [{"report": "one", "image_path": ["a.png", "b.png"]}]}, {"image_list": "first"}, {"a.png": ["one"]}),
    ("json", {"0": {**IMAGE, "caption": "x"}, "1": {"image": "b.png", "caption": "y"}}, {}, {"a.png": ["x"], "b.png": ["y"]}),
    ("json", [{**IMAGE, "caption": "<image>\nClear < 5 mm."}], {}, {"a.png": ["Clear < 5 mm."]}),
    ("json", [LLAVA], {}, {"a.png": ["Clear lungs."]}),
    ("jsonl", [LLAVA], {"caption": "conversations"}, {"a.png": ["Clear lungs."]}),
    ("jsonl", CHAT, {}, {"a.png": ["Clear lungs."]}),
    ("json", [{"images": ["a.png"], "messages": CHAT["messages"][1:]}], {}, {"a.png": ["Clear lungs."]}),
    ("json", [QUESTION], {"turn": "first"}, {"a.png": ["No."]}),
    ("json", [SEVERAL], {"turn": "first"}, {"a.png": ["Clear lungs."]}),
    # COCO
    ("coco", COCO, {}, {"1": ["one"], "2": ["two"]}),
    ("coco", "\ufeff" + json.dumps(COCO), {}, {"1": ["one"], "2": ["two"]}),
    ("coco", _coco(annotations=[{"image_id": "1", "caption": None}, {"image_id": "1", "caption": "x"}]), {},
     {"1": ["x"], "2": []}),
    # ROCO and its kin
    ("roco", {"train/radiology/captions.txt": "\ufeffR1\t a \"5 cm, mass\r\nR2\t nan\n"}, {},
     {"R1": ['a "5 cm, mass'], "R2": []}),
    ("roco", {"test/radiology/captions.txt": "R1\t Ödem\n".encode("cp1252")}, {}, {"R1": ["Ödem"]}),
    ("roco-kaggle", {"train/traindata.csv": "id;name;caption\nR1;P_1.jpg;x, y"}, {}, {"R1": ["x, y"]}),
    ("rocov2", {"train_captions.csv": "ID;Caption\nR1;x, y\nR2;NaN\n"}, {}, {"R1": ["x, y"], "R2": []}),
    ("imageclef", {"train_captions.csv": 'ID\tcaption\nR1\ta "5 cm, mass'}, {}, {"R1": ['a "5 cm, mass']}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "expected"), READ)
def test_what_is_read(tmp_path, plugins, name, content, options, expected):
    examples, _ = _read(plugins, name, _written(tmp_path, name, content), **options)
    assert _captions(examples) == expected


R_HEAD = "R1\t one\n"
# name, content, options, message
REFUSED = [
    # cells
    ("csv", HEAD + "a.png,Chest, PA, normal\n", {}, "row 2: 4 cells where the header has 2, the last 'normal'; a cell with"),
    ("csv", "image,caption,,\na.png,Chest, PA,\n", {}, "row 2: 4 cells where the header has 2, the last 'PA'"),
    ("csv", "image,caption,age\na.png,Chest\n", {}, "row 2: 2 cells where the header has 3"),
    ("csv", HEAD + 'a.png,"a 5 cm mass\nb.png,normal\n', {}, "row 2: a quote opens here and is never closed"),
    ("csv", HEAD + 'a.png,x\nb.png,"a mass\nc.png,"x, y"\n', {}, r"row 3: a quote opens here and is closed wrongly \('b.png"),
    ("csv", HEAD + 'a.png,"mass\nb.png,he said "\n', {}, "row 2: a quote opens here and takes in the rows behind"),
    ("csv", HEAD + 'a.png,"x\n y"\nc.png,"x\n', {}, r"row 3 \(line 4\): a quote opens"),
    ("csv", '"image,caption\na.png,x\n', {}, "row 1: a quote opens here and is never closed"),
    ("csv", HEAD + "a.png,x\n" + HEAD, {}, "row 3: the header is repeated"),
    ("csv", "image;caption\na.png;x;y\n", {}, "row 2: 3 cells where the header has 2"),
    ("tsv", TSV + "a.png\tx\ty\n", {}, "row 2: 3 cells where the header has 2"),
    ("tsv", TSV + "a.png\n", {}, "row 2: 1 cells where the header has 2"),
    ("tsv", TSV + 'a.png\t"x\ny"\n', {}, "row 3: 1 cells .* if quotes enclose cells of several lines, read the table as csv"),
    ("csv", HEAD + "a.png,\"{'text': 'x'}\"\n", {}, "row 2: the caption is an object"),
    ("imagefolder", {"metadata.csv": "file_name,text\na.png,x, y\n"}, {}, "metadata.csv, row 2: 3 cells"),
    ("roco-kaggle", {"train/traindata.csv": "id,name,caption\nR1,P.jpg,x, y\n"}, {}, "row 2: 4 cells"),
    ("rocov2", {"train_captions.csv": "ID,Caption\nR1,x, y\n"}, {}, "row 2: 3 cells"),
    ("rocov2", {"train_captions.csv": 'ID,Caption\nR1,"x\nR2,y\n'}, {}, "row 2: a quote opens here and is never closed"),
    ("imageclef", {"train_captions.csv": "ID\tcaption\nR1\tx\ty\n"}, {}, "row 2: 3 cells"),
    ("roco", {"train/radiology/captions.txt": "R1\t x\nR2 y\n"}, {}, "line 2: 'R2 y' is no line of the form ID, tab, caption"),
    ("csv", HEAD + "a.png,b'Chest'\n", {}, "row 2: the caption \"b'Chest'\" is bytes as Python prints them"),
    # columns
    ("csv", "image,caption,caption\na.png,x,y\n", {}, "several columns 'caption'. Rename or remove all but one"),
    ("csv", "image,text,report\na.png,x,y\n", {}, "has no 'caption'.*Columns: image, text, report"),
    ("csv", "file,caption\na.png,x\n", {}, "has no 'image'"),
    ("csv", LAVIS * 2000, {}, "has no 'image'"),
    ("csv", "a.png,x\nb.png,y\n", {}, "has no 'image', as its first row is 'a.png, x'. The first row must name the columns"),
    ("imagefolder", {"metadata.csv": "file_name,text\na.png,x\n"}, {"caption": "report"}, "has no 'report'"),
    ("json", [], {}, "has no rows that can be read"),
    ("csv", HEAD + "a.png,x\n", {"group": "patient"}, "has no 'patient'.*Columns: image, caption"),
    ("csv", "Image,Caption\na.png,x\n", {"image": "path"}, "has no 'path'"),
    ("imageclef", {"train_captions.csv": "ID,caption,Caption\nR1,x,y\n"}, {}, "several columns 'caption'"),
    ("csv", HEAD + "a.png,x\n", {"delimiter": "commas"}, "data.delimiter='commas' is not comma, semicolon, tab, pipe or one"),
    # text
    ("csv", b"PK\x03\x04\0\0", {}, "is no text, since it is a workbook or a zip archive. Save a workbook"),
    ("csv", b"\x1f\x8b\x08\0", {}, "is no text, since it is compressed. Unpack it by gunzip"),
    ("csv", b"PAR1\0", {}, "is no text, since it is parquet. Read it as hf:PATH"),
    ("csv", HEAD + "a.png,x\nb.png,y\0\n", {}, "has zero bytes, the first in line 3. Save a workbook"),
    ("csv", " \n\n", {}, "is empty"),
    ("csv", (HEAD + "a.png,Größe\nb.png,Ödem ").encode() + b"\xe4\n", {}, "line 3 is not UTF-8 text"),
    ("csv", HEAD.encode() + b"a.png,\x81\n", {}, "line 2 is not UTF-8 text.*not cp1252 either. Save the file as UTF-8"),
    ("csv", HEAD, {"encoding": "utf-9"}, "there is no encoding 'utf-9'"),
    # splits, groups, ids
    ("csv", "image,caption,split\na.png,x,train\nb.png,y,\n", {}, "row 3: '' is not a split; use train, validation, test"),
    ("csv", "image,caption,part\na.png,x,7\n", {"split": "part"}, "row 2: '7' is not a split"),
    ("csv", "image,caption,split\na.png,x,train\n./a.png,y,test\n", {},
     "row 3: the split is test, but row 2 has the same image"),
    ("csv", "image,caption,p\na.png,x,1\na.png,y,2\n", {"group": "p"}, "row 3: the group is '2', but row 2 .* in group '1'"),
    ("csv", "image,caption,id\na.png,x,1\nb.png,y,1\n", {"id": "id"}, "row 3: the id '1' is that of row 2 too"),
    ("csv", "image,caption,id,split\na.png,x,1,train\nb.png,y,1,test\n", {"id": "id"},
     "row 3: the id '1' is that of row 2 too"),
    ("csv", "image,caption,id\na.png,x,\n", {"id": "id"}, "row 2: the column 'id' has no id"),
    ("csv", "image,caption,id\na.png,x,1.23E+11\n", {"id": "id"}, "row 2: the id '1.23E.11' was rounded by a spreadsheet"),
    ("csv", 'image,caption,p\na.png,x,"1,2E+08"\n', {"group": "p"}, "row 2: the group '1,2E.08' was rounded"),
    ("jsonl", [{**IMAGE, "caption": "x", "split": None}], {"split": "split"}, "entry 1: null is not a split"),
    ("json", [{**IMAGE, "caption": "x", "split": "val"}, {**IMAGE, "caption": "x"}], {}, "entry 2: null is not a split"),
    ("json", {"train": [{**IMAGE, "caption": "x"}], "    ": []}, {},
     "key '    ': it is not a split, as the keys beside it are"),
    ("json", {"train": [{**IMAGE, "caption": "x", "split": "test"}]}, {},
     "train entry 1: its split is 'test', but it stands under"),
    ("json", {"train": [{**IMAGE, "caption": "x"}], "test": [{**IMAGE, "caption": "y"}]}, {},
     "test entry 1: the split is test"),
    ("roco", {"train/radiology/captions.txt": R_HEAD * 2}, {}, "line 2: the id 'R1' is that of line 1 too"),
    ("rocov2", {"train_captions.csv": "ID,Caption\nR1,x\nR1,y\n"}, {}, "row 3: the id 'R1' is that of row 2 too"),
    ("roco-kaggle", {"train/traindata.csv": "id,name,caption\nR1,P,x\nR1,P,y\n"}, {}, "row 3: the id 'R1' is that of row 2"),
    ("roco", {"train/radiology/captions.txt": R_HEAD, "g.csv": "id,group\nR1,1\nR1,2\n"}, {"groups": "g.csv"},
     "g.csv, row 3: the id"),
    # images
    ("csv", HEAD + ",x\n", {}, "row 2: no image is named"),
    ("csv", HEAD + "https://host/a.png,x\n", {}, "row 2: the image 'https://host/a.png' is a URL; download the images"),
    ("csv", HEAD + "\"['a.png', 'b.png']\",x\n", {}, "row 2: the image .* is a list; write the path of one image in each"),
    ("json", [{"image": "data:image/png;base64,iVBOR", "caption": "x"}], {}, "is an image as text, and no path; save"),
    ("json", [{"image": "iVBOR" * 1000, "caption": "x"}], {}, r"the image 'iVBOR\w+\.\.\.' is an image as text, and no path"),
    ("json", [{"image": ["a.png", "b.png"], "caption": "x"}], {}, "image is a list of 2 images; data.image_list=first"),
    ("json", [{"image": {"path": "a.png"}, "caption": "x"}], {}, "entry 1: the image is an object; it must be the path"),
    ("json", [{"image": 7, "caption": "x"}], {}, "entry 1: the image is the value 7"),
    ("json", [{"image": [], "caption": "x"}], {}, "entry 1: the image is a list"),
    # captions in JSON
    *[
        (name, _text([{**IMAGE, "caption": value}]), {}, f"entry 1: the {problem}")
        for name in ("json", "jsonl")
        for value, problem in [
            ({"text": "x"}, "caption is an object; it must be a text"), (True, "caption is the value true"),
            (1.5, "caption is the number 1.5"), (float("nan"), "caption is NaN"), (3, "caption is the value 3"),
            ([None, "ok"], "list of captions has null in it"), ("\ud800", "caption .* has half of a letter"),
        ]
    ],
    ("json", [{**IMAGE}], {"caption": "text"}, "has no 'text'.*Columns: image"),
    ("jsonl", '{"image": "a.png", "caption": "x"}\n{"image": "b.png"}', {}, "line 2: there is no 'caption'"),
    ("jsonl", '{"image": "a.png", "caption": "x"}\n["b.png"]', {}, "line 2: it is a list where an object is needed"),
    ("jsonl", '{"image": "a.png", "caption": "x", "caption": "y"}', {}, "line 1: an object has the key 'caption' twice"),
    ("json", '[{"image": "a.png", "caption": "x", "caption": "y"}]', {}, "an object has the key 'caption' twice"),
    ("json", '[{"image": "a.png",\n "caption": "x"},\n', {}, "line 3 is not JSON: Expecting value"),
    ("json", COCO, {}, "has images and annotations, as COCO has. Read it as coco:"),
    ("json", {"image": {"0": "a.png"}, "text": {"0": "x"}}, {}, "has columns, not rows. .*to_json.orient='records'"),
    ("json", {"columns": ["image", "caption"], "index": [0], "data": [["a.png", "x"]]}, {}, "has columns, not rows"),
    ("json", [{"image": ["a.png", "b.png"], "caption": "x"}, {"image": ["b.png", "c.png"], "caption": "y"}],
     {"image_list": "together"}, "entry 2: entry 1 has one of its images beside others; list the same images in both"),
    ("json", {"image": ["a.png", "b.png"], "caption": ["x", "y"]}, {"image_list": "first"}, "has columns, not rows"),
    ("json", " \n", {}, "is empty. Write a list of objects"),
    ("json", {}, {}, "t.json is an object, in which no list of images was found"),
    ("jsonl", '{"image": "a.png", "caption": "x"},\n', {}, "line 1: a comma stands behind the object; remove it"),
    ("jsonl", '{\n"image": "a.png",\n"caption": "x"\n}\n{\n}', {}, "line 1: an object must stand on one line"),
    ("json", {"a.png": "x"}, {}, "is an object with the keys 'a.png', in which no list of images was found: write a list"),
    ("json", '"x"', {}, "in which no list of images was found"),
    ("json", {"data": LAVIS, "annotations": LAVIS}, {}, "has lists under data and annotations"),
    # conversations
    ("json", [QUESTION], {}, "entry 1: 'Is there a fracture.' does not ask for a caption; data.turn=first"),
    ("json", [SEVERAL], {}, "entry 1: the conversation has 2 answers, not one caption; data.turn=first"),
    ("json", [{**IMAGE, "conversations": "x"}], {}, "entry 1: the conversation is 'x'; it must be a list"),
    ("json", [{**IMAGE, "messages": [{"role": "user", "content": "Describe it."}]}], {}, "has no answer by the assistant"),
    ("json", [{**IMAGE, "messages": [{"role": "tool", "content": "x"}]}], {}, "a turn is by 'tool'"),
    ("json", [{**IMAGE, "conversations": [{"from": "gpt", "value": None}]}], {}, "a turn has null where a text is needed"),
    ("json", [{**IMAGE, "conversations": ["x"]}], {}, "a turn is 'x', without from and value"),
    # COCO
    ("coco", _coco(images=[*COCO["images"], {"id": 1, "file_name": "c.png"}]), {},
     "images entry 3: the id '1' is that of images entry 1"),
    ("coco", _coco(annotations=[{"image_id": 9, "caption": "x"}]), {},
     "annotations entry 1: there is no image with the id '9'"),
    ("coco", _coco(images=[{"id": 1, "file_name": None}]), {}, "images entry 1: the image is null"),
    ("coco", _coco(images=[{"id": 1}]), {}, "images entry 1: the image is null"),
    ("coco", _coco(images=[{"file_name": "a.png"}]), {}, "images entry 1: there is no id; it has 'file_name'"),
    ("coco", _coco(annotations=[{"image_id": 1, "bbox": []}]), {}, "annotations entry 1: there is no caption"),
    ("coco", _coco(annotations=[{"image_id": 1, "caption": 5}]), {}, "annotations entry 1: the caption is the value 5"),
    ("coco", _coco(annotations=None), {}, "is not COCO captions JSON: annotations is null"),
    ("coco", {"train/_annotations.coco.json": COCO}, {}, "holds no captions_.* To read one file with captions: coco:.*json"),
    ("coco", LAVIS, {}, "is not COCO captions JSON: it has no list 'images'. A list of images with captions is read as json:"),
    # imagefolder
    ("imagefolder", {"metadata.csv": "file_name,text\n", "metadata.jsonl": "{}"}, {},
     "has metadata.csv and metadata.jsonl. Remove all"),
    ("imagefolder", {"train/metadata.csv": "file_name,text\n../test/0.jpg,x\n"}, {},
     "row 2: the image lies in test, but .* say test and train"),
    ("imagefolder", {"metadata.csv": "file_name,text,split\ntest/0.jpg,x,train\n"}, {}, "row 2: the image lies in test, but"),
    ("imagefolder", {"test/a.txt": "", "metadata.csv": "file_name,text\n0.jpg,x\n"}, {},
     "row 2: the image lies in no split's folder"),
    ("imagefolder", {"train/metadata.csv": "file_name,text\n0.jpg,x\n", "metadata.csv": "file_name,text\ntrain/0.jpg,x\n"}, {},
     "row 2: .*train/metadata.csv, row 2 has the same image; keep one of them"),
    ("imagefolder", {"train/sick/0.jpg": ""}, {}, "no image has a text file NAME.txt beside it. Write"),
    ("imagefolder", {"train/0.jpg": "", "train/0.txt": "x", "1.jpg": ""}, {}, "1.jpg, its place: the image lies in no split's"),
    ("imagefolder", {"metadata.parquet": "x"}, {}, "metadata.parquet cannot be read as parquet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "message"), REFUSED)
def test_what_is_refused_in_one_line(tmp_path, plugins, name, content, options, message):
    path = _written(tmp_path, name, content)
    with pytest.raises(MedgraftError, match=message) as error:
        _read(plugins, name, path, **options)
    assert "\n" not in str(error.value)


# name, content, options, what is read, the places of the bad rows
SKIPPED = [
    ("csv", HEAD + 'a.png,"a mass\nb.png,x\nc.png,"y, z"\n', {"b.png", "c.png"}, ["row 2"]),
    ("csv", HEAD + "a.png,x, y\nb.png,x\nc.png\n", {"b.png"}, ["row 2", "row 4"]),
    ("csv", "image,caption,split\na.png,x,train\na.png,y,test\nb.png,z,\nc.png,z,dev\n", {"a.png", "c.png"},
     ["row 3", "row 4"]),
    ("jsonl", '{"image": "a.png", "caption": "x"}\n{broken\n{"image": "b.png", "caption": 3}\n', {"a.png"},
     ["line 2", "line 3"]),
    ("json", [LLAVA, {**QUESTION, "image": "b.png"}], {"a.png"}, ["entry 2"]),
    ("roco", {"train/radiology/captions.txt": "R1\t x\nR2 y\nR1\t z\n"}, {"R1"}, ["line 2", "line 3"]),
    ("coco", _coco(annotations=[{"image_id": 9, "caption": "x"}]), {"1", "2"}, ["annotations entry 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "read", "places"), SKIPPED)
def test_bad_rows_that_are_skipped_are_listed(tmp_path, plugins, name, content, read, places):
    examples, notes = _read(plugins, name, _written(tmp_path, name, content), skip=True)
    assert {example.id for example in examples} == read
    assert [row.place for row in notes.bad_rows] == places


HASHED = "t.csv names no splits, so its images were split 80/10/10 by a hash of their group or name: "
# name, content, options, sentences
ASSUMED = [
    ("csv", HEAD + "a.png,x\na.png,y\nb.png,z\n", {}, [HASHED + "2 train, 0 validation, 0 test."]),
    ("csv", "image,caption,split\na.png,x,Dev\nb.png,y,testing \n", {}, ["t.csv: splits are those in its column 'split'."]),
    ("csv", "image,caption,split\na.png,x,1\n", {}, ["column 'split' is not used, as its values, such as '1', are no", HASHED]),
    ("csv", "image,caption,split,Patient_ID\na.png,x,test,7\nb.png,x,test,\n", {},
     ["'split'", "its column 'Patient_ID' was read as the group", "1 rows have no 'Patient_ID'"]),
    ("json", [{**IMAGE, "caption": "x", "split": "test", "patient": {"age": 7}}], {}, ["'split'"]),
    ("csv", "image,caption,split\na.png,x,test\na.png,x,test\na.png,y,test\n", {},
     ["'split'", "1 rows repeat a caption of the same image; all are kept"]),
    ("csv", EXCEL.encode("cp1252"), {}, ["read as cp1252", "cells are separated by a semicolon", "its column 'split'"]),
    ("csv", "image,caption,part\na.png,x,test\n", {"split": "part"}, []),
    ("csv", "Image,Caption,split\na.png,x,test\n", {},
     ["'Image' was read as the image", "'Caption' was read as the", "'split'"]),
    ("csv", "image,caption,split,p\na.png,x,test,\nb.png,x,test,1\n", {"group": "p"}, ["'split'", "1 rows have no 'p'"]),
    ("csv", 'image,caption,split\na.png, "x",test\n', {}, ["'split'", "1 rows have cells between quotes, which were kept"]),
    ("csv", 'image,caption,split\na.png, "x, y",test\n', {},
     ["'split'", "quotes enclose cells although they stand behind a space"]),
    ("tsv", 'image\tcaption\tsplit\na.png\t"x"\ttest\n', {}, ["'split'", "cells between quotes, .* read the table as csv"]),
    ("coco", _coco(annotations=[{"image_id": "1", "caption": "x"}]), {},
     ["t.coco has no split in its name", "matched as texts"]),
    ("json", {"val": [{"report": "x", "image_path": ["a.png", "b.png"]}]}, {"image_list": "first"},
     ["of several images in a list the first was read", "'image_path' was", "'report' was", "'split'"]),
    ("roco", {"test/radiology/captions.txt": "R1\t x\nR2\t y\n", "g.csv": "id,group\nR1,1\n"}, {"groups": "g.csv"},
     ["g.csv has no group for 1 of 2 images"]),
    ("imagefolder", {"metadata.csv": "file_name,text\ntrain/a.png,x\n", "train/a.png": "", "b.png": "", "test/c.JPG": ""}, {},
     ["2 images in .* are left out, as no row names them, such as b.png."]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "sentences"), ASSUMED)
def test_what_is_assumed_is_noted(tmp_path, plugins, name, content, options, sentences):
    _, notes = _read(plugins, name, _written(tmp_path, name, content), **options)
    assert len(notes.assumptions) == len(sentences)
    for sentence in sentences:
        assert any(
            re.search(re.escape(sentence) if sentence.startswith(HASHED) else sentence, note) for note in notes.assumptions
        )


ROWS = "file_name,text\n"
SPLITS_READ = [
    ("csv", "image,caption,split\n" + "".join(f"{name},x,{name}\n" for name in
     ("train", "Training", "val", "VALID", "validation", " dev", "eval", "test", "testing")), {},
     {"train": "train", "Training": "train", "test": "test", "testing": "test",
      **dict.fromkeys(("val", "VALID", "validation", "dev", "eval"), "validation")}),
    ("json", {"train": [{"image": "a", "caption": "x"}], "val": [{"image": "b", "caption": "x"}]}, {},
     {"a": "train", "b": "validation"}),
    ("imagefolder", {"train/a/0.jpg": "", "train/a/0.txt": "x\ny", "test/1.PNG": "", "test/1.txt": "z"}, {},
     {"train/a/0.jpg": "train", "test/1.PNG": "test"}),
    ("imagefolder", {"metadata.csv": ROWS + "train/0.jpg,x\ntest/0.jpg,y\nimages/val/2.jpg,z\n"}, {},
     {"train/0.jpg": "train", "test/0.jpg": "test", "images/val/2.jpg": "validation"}),
    ("imagefolder", {"metadata.jsonl": json.dumps({"file_name": "eval/0.jpg", "text": "x"})}, {}, {"eval/0.jpg": "validation"}),
    ("imagefolder", {"train/metadata.csv": ROWS + "0.jpg,x\n", "metadata.csv": ROWS + "test/1.jpg,y\n"}, {},
     {"0.jpg": "train", "test/1.jpg": "test"}),
    ("imagefolder", {"metadata.csv": "file_name,text,split\n0.jpg,x,test\n", "train/metadata.csv": ROWS + "1.jpg,y\n"}, {},
     {"0.jpg": "test", "1.jpg": "train"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "expected"), SPLITS_READ)
def test_splits(tmp_path, plugins, name, content, options, expected):
    examples, _ = _read(plugins, name, _written(tmp_path, name, content), **options)
    assert _splits(examples) == expected


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("captions_constrained_test.json", "test"), ("captions_train2017.json", "train"), ("captionsVal.json", "validation"),
        ("captions_interval.json", "test"), ("captions_dev.json", "validation"), ("TRAIN.json", "train"),
    ],
)  # fmt: skip
def test_a_coco_file_is_the_split_that_is_a_word_of_its_name(tmp_path, plugins, file, split):
    _write(tmp_path, {file: COCO})
    examples, _ = _read(plugins, "coco", tmp_path / file)
    assert {example.split for example in examples} == {split}


def test_coco_files_that_contradict_each_other(tmp_path, plugins):
    _write(tmp_path, {"captions_train.json": COCO, "captions_test.json": COCO})
    with pytest.raises(
        DataError, match=r"captions_train.json, images entry 1: the split is train, but .*captions_test.json, images"
    ):
        _read(plugins, "coco", tmp_path)
    _write(tmp_path, {"captions_train_test.json": COCO})
    with pytest.raises(DataError, match=r"the name 'captions_train_test' says test and train; rename it"):
        _read(plugins, "coco", tmp_path / "captions_train_test.json")


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a.png", "data/a.png"), ("x\\a.png", "data/x/a.png"), ("b/c.png", "images/b/c.png"), ("b\\c.png", "images/b/c.png"),
        ("/gone/elsewhere/b/c.png", "images/b/c.png"), ("C:\\Users\\me\\b\\c.png", "images/b/c.png"),
        ("file:///gone/b/c.png", "images/b/c.png"), ("/gone/none.png", "/gone/none.png"), ("none.png", "data/none.png"),
        ("{tmp}/images/b/c.png", "images/b/c.png"), ("file://{tmp}/images/with%20space.png", "images/with space.png"),
    ],
)  # fmt: skip
def test_images_are_found_however_their_paths_are_written(tmp_path, plugins, written, found):
    there = {"data/a.png": "", "data/x/a.png": "", "images/b/c.png": "", "images/c.png": "", "images/with space.png": ""}
    written = written.format(tmp=tmp_path)
    _write(tmp_path, {**there, "data/t.csv": f"image,caption\n{written},x\n"})
    (example,), _ = _read(plugins, "csv", tmp_path / "data/t.csv", root=tmp_path / "images")
    assert example.image == tmp_path / found
    _write(tmp_path, {"data/captions_test.json": {"images": [{"id": 1, "file_name": written}], "annotations": []}})
    (example,), _ = _read(plugins, "coco", tmp_path / "data", root=tmp_path / "images")
    assert example.image == tmp_path / found


def test_a_path_in_the_home_folder(tmp_path, plugins, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path, {"t.csv": HEAD + "~/a.png,x\n"})
    (example,), _ = _read(plugins, "csv", tmp_path / "t.csv")
    assert example.image == tmp_path / "a.png"


@pytest.mark.parametrize(
    "cell",
    ["C1;C2", '"C1,C2"', "C1,C2", "C1 C2", "\"['C1', 'C2']\"", '"[""C1"", ""C2""]"', "C1; C2;"],
)
def test_concepts_of_rocov2_are_never_cut(tmp_path, plugins, cell):
    _write(tmp_path, {"train_captions.csv": "ID,Caption\nR1,x\nR2,y\n", "train_concepts.csv": f"ID,CUIs\nR1,{cell}\nR2,\n"})
    examples, _ = _read(plugins, "rocov2", tmp_path)
    assert [example.concepts for example in examples] == [("C1", "C2"), ()]


def test_imagefolder_with_parquet(tmp_path, plugins):
    table = pyarrow.table({"file_name": ["train/a.png", "test/b.png"], "text": ["x", None]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    examples, _ = _read(plugins, "imagefolder", tmp_path)
    assert [(e.split, e.captions) for e in examples] == [("train", ("x",)), ("test", ())]


def test_the_limit_of_csv_fields_is_left_as_it_was(tmp_path, plugins):
    import csv

    before = csv.field_size_limit()
    _write(tmp_path, {"t.csv": HEAD + "a.png," + "x" * 200_000})
    _read(plugins, "csv", tmp_path / "t.csv")
    assert csv.field_size_limit() == before


def test_an_image_is_in_one_split_however_its_path_is_written(tmp_path, plugins):
    rows = "".join(f"{i}.png,x\n./{i}.png,y\n" for i in range(30))
    _write(tmp_path, {"t.csv": HEAD + rows})
    examples, _ = _read(plugins, "csv", tmp_path / "t.csv")
    assert [len(example.captions) for example in examples] == [2] * 30


def test_a_list_of_images_is_a_study(tmp_path, plugins):
    rows = [{"image": ["a.png", "b.png"], "caption": text} for text in "xy"] + [{"image": "c.png", "caption": "z"}]
    _write(tmp_path, {"t.json": json.dumps(rows)})
    examples, _ = _read(plugins, "json", tmp_path / "t.json", image_list="together")
    found = {tuple(image.name for image in each.images): each.captions for each in examples}
    assert found == {("a.png", "b.png"): ("x", "y"), ("c.png",): ("z",)}


def test_texts_beside_images_are_captions(tmp_path, plugins):
    _write(tmp_path, {"0.jpg": "", "0.txt": "Chest,\nPA\n", "1.png": ""})
    examples, notes = _read(plugins, "imagefolder", tmp_path)
    assert _captions(examples) == {"0.jpg": ["Chest, PA"], "1.png": []}
    assert notes.assumptions[0].endswith("captions are 1 text files beside the images.")


def test_images_of_a_coco_file_in_the_folder_annotations(tmp_path, plugins):
    _write(tmp_path, {"annotations/captions_test.json": COCO, "images/a.png": "", "images/b.png": ""})
    examples, _ = _read(plugins, "coco", tmp_path / "annotations/captions_test.json")
    assert [example.image for example in examples] == [tmp_path / "images/a.png", tmp_path / "images/b.png"]


def test_data_whose_rows_are_all_bad(tmp_path, plugins):
    _write(tmp_path, {"t.json": [QUESTION] * 2})
    with pytest.raises(DataError, match=r"has no rows that can be read: 2 are bad, such as .*entry 1: 'Is there a fracture"):
        _read(plugins, "json", tmp_path / "t.json", skip=True)
