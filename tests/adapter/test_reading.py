"""Adapters from strangers: what is damaged or hostile is refused in one line before anything acts on it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz_packages import fuzz, make_packages, sign
from safetensors.numpy import load_file, save_file

import medgraft
from medgraft.adapter import read_contents
from medgraft.adapter.contents import check_bytes, verify
from medgraft.adapter.patterns import check_patterns
from medgraft.cli.main import main
from medgraft.errors import AdapterError, BackboneError
from medgraft.escaping import one_line

ADAPTERS = Path(__file__).parent.parent.parent / "adapters"
MANIFEST, CONFIG, WEIGHTS = "medgraft.json", "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of a package that ships, beside a file that is none of its own."""
    (tmp_path / "secret.txt").write_text("secret")
    shutil.copytree(ADAPTERS / "blip-nano-lora", tmp_path / "adapter")
    return tmp_path / "adapter"


def _refused(folder, message):
    """`message` is found by checking, and raised by reading."""
    problems = verify(folder)
    assert any(message in problem for problem in problems), problems
    with pytest.raises(AdapterError) as caught:
        check_bytes(read_contents(folder))
    assert message in str(caught.value)
    assert len(one_line(str(caught.value))) < 1000


def _edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["blip-nano-lora", "blip-nano-lora-decoder", "blip-nano-qlora"])
def test_packages_that_ship_are_sound(name):
    assert verify(ADAPTERS / name) == ()


FILE = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "was altered or cut off: it has"),
    "empty": (lambda path: path.write_bytes(b""), "was altered or cut off: it has 0 bytes"),
    "flipped": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "SHA-256 is not the one"),
    "missing": (lambda path: path.unlink(), f"is incomplete: {WEIGHTS} is missing"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is no regular file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is no regular file"),
    "a device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is a link out of the folder"),
    "a link out": (lambda path: (path.unlink(), path.symlink_to("../secret.txt")), "is a link out of the folder"),
    "a loop": (lambda path: (path.unlink(), path.symlink_to(path)), "cannot be read"),
}


@pytest.mark.parametrize("change, message", FILE.values(), ids=FILE)
def test_damaged_files(change, message, folder):
    change(folder / WEIGHTS)
    _refused(folder, message)


JSON = {
    "not UTF-8": (b'{"prompt": "\xe4"}', "is not UTF-8 text: byte 12"),
    "no JSON": (b"{", "is not valid JSON"),
    "no object": (b"[]", "must be a JSON object"),
    "nested": (b'{"a":' * 50_000, "is nested too deeply"),
    "nested within the parser's limit": (b'{"a":' * 40 + b"1" + b"}" * 40, "is nested too deeply"),
    "twice": (b'{"format": 1, "format": 1}', "the key 'format' occurs twice"),
    "NaN": (b'{"seed": NaN}', "NaN is no JSON number"),
    "beyond floats": (b'{"seed": 1e999}', "a number is too large"),
    "digits": (b'{"seed": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    "half a character": (b'{"seed": "\\ud800"}', "is not valid JSON"),
    "a million lists": (b"[" + b"[]," * 10**6 + b"[]]", "has over 500,000 values"),
    "huge": (b" " * (9 << 20), "has 9,437,184 bytes; at most"),
    "of the future": (b'{"format": 2}', "cannot be read by this medgraft: format"),
}


@pytest.mark.parametrize("content, message", JSON.values(), ids=JSON)
def test_manifests_that_are_none(content, message, folder):
    (folder / MANIFEST).write_bytes(content)
    _refused(folder, message)


def _generation(**values):
    return lambda manifest: manifest["evaluation"].update(generation=values)


def _listed(name):
    return lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 6}})


MANIFESTS = {
    "nothing listed": (lambda m: m.update(files={}), "is not listed in medgraft.json"),
    "settings not listed": (lambda m: m["files"].pop(CONFIG), f"{CONFIG} is not listed in medgraft.json"),
    "absolute": (_listed("/etc/passwd"), "files: Value error, '/etc/passwd' is no file of a package"),
    "outside": (_listed("../secret.txt"), "files: Value error, '../secret.txt' is no file of a package"),
    "300 characters": (_listed("a" * 300), "(302 characters) is no file of a package"),
    "in place": (
        lambda m: m["training"].update(in_place=3),
        "lists no trained_tensors.safetensors or trained_changes.safetensors, which its strategy lora",
    ),
    "negative size": (lambda m: m["files"][WEIGHTS].update(bytes=-1), "files.adapter_model.safetensors.bytes"),
    "a million beams": (_generation(num_beams=10**6), "evaluation.generation: num_beams"),
    "unknown decoding": (_generation(beams=4), "evaluation.generation: unknown key 'beams'"),
    "decoding is no object": (lambda m: m["evaluation"].update(generation=[1]), "evaluation.generation"),
    "data without a name": (lambda m: m.update(data={}), "data: Value error, it needs the name"),
    "no name": (lambda m: m.update(backbone="a\x00b"), "cannot be read by this medgraft: backbone"),
}


@pytest.mark.parametrize("change, message", MANIFESTS.values(), ids=MANIFESTS)
def test_manifests_that_cannot_be_meant(change, message, folder):
    _edit(folder / MANIFEST, change)
    _refused(folder, message)


SETTINGS = {
    "a list of numbers": ({"target_modules": [1, 2]}, "target_modules must be a text or a list of texts"),
    "a number": ({"target_modules": 5}, "target_modules must be a text or a list of texts"),
    "a long text": ({"target_modules": "a" * 10**6}, "has 1,000,000 characters"),
    "many": ({"target_modules": ["x"] * 10**5}, "has 100,000 items"),
    "huge alpha": ({"lora_alpha": 1e308}, "lora_alpha is 1e+308"),
    "no alpha": ({"lora_alpha": 0}, "lora_alpha and the values of alpha_pattern must be numbers above 0"),
    "alpha in words": ({"lora_alpha": "24"}, "r and alpha must be numbers"),
    "huge alphas": ({"alpha_pattern": {"query": 1e308}}, "lora_alpha and the values of alpha_pattern"),
    "rank": ({"r": 10_000}, "r is 10000, and the weights allow at most"),
    "another rank": ({"r": 8}, "r is 8, but base_model.model."),
    "ranks": ({"rank_pattern": {"query": 900}}, "it sets the rank 900, which none of the weights has"),
    "many ranks": ({"rank_pattern": {f"x{i}": 2 for i in range(1001)}}, "rank_pattern has 1,001 items; at most 1,000 are read"),
    "ranks in words": ({"rank_pattern": {"query": "x"}}, "must be whole numbers above 0"),
    "ranks as a list": ({"rank_pattern": [1]}, "rank_pattern must map names of modules to values"),
    "iterations": ({"init_lora_weights": "pissa_niter_100000000"}, "changed the base by a random decomposition"),
    "terms": ({"num_cayley_neumann_terms": 10**6}, "num_cayley_neumann_terms is 1e+06"),
    "nested": ({"loftq_config": {"loftq_iter": 10**6}}, "loftq_iter is 1e+06"),
    "an import": ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_config is set"),
    "copies of layers": ({"layer_replication": [[0, 2]] * 9}, "layer_replication is set"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    "X-LoRA": ({"peft_type": "XLORA"}, "XLORA does not work in medgraft"),
    "no method": ({"peft_type": None}, "peft_type must name a method of PEFT"),
}


@pytest.mark.parametrize("values, message", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_peft_that_cost_or_mean_something_else(values, message, folder):
    """In a package whose digests agree, so that only the settings themselves tell."""
    _edit(folder / CONFIG, lambda settings: settings.update(values))
    sign(folder)
    _refused(folder, message)


def _header(change=lambda entries: None, length=None, data=lambda data: data):
    """Write the weights again with a changed header or changed bytes."""

    def write(path):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes((length or len(text)).to_bytes(8, "little") + text + data(content[8 + size :]))

    return write


def _first(entries):
    return next(entry for name, entry in entries.items() if name != "__metadata__")


def _empty(entries, count):
    entries.update({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})


HEADERS = {
    "length": (_header(length=2**63), "is cut off or no safetensors file"),
    "shorter": (_header(length=20), "is not valid JSON"),
    "many tensors": (_header(lambda e: _empty(e, 60_000)), "has 60,128 tensors; at most 50,000"),
    "overlap": (_header(lambda e: _first(e).update(list(e.values())[-1])), "do not begin where those before it end"),
    "more bytes": (_header(data=lambda data: data + b"1234"), "bytes where its header says"),
    "fewer bytes": (_header(data=lambda data: data[:-4]), "bytes where its header says"),
    "shape": (_header(lambda e: _first(e).update(shape=[2**62, 2**62])), "the header's entry for"),
    "negative": (_header(lambda e: _first(e).update(shape=[-1, -1])), "the header's entry for"),
    "dtype": (_header(lambda e: _first(e).update(dtype="F99")), "the header's entry for"),
    "no offsets": (_header(lambda e: _first(e).pop("data_offsets")), "the header's entry for"),
    "more keys": (_header(lambda e: _first(e).update(pickle="x")), "the header's entry for"),
    "name": (_header(lambda e: e.update({"\x1b[2J": e.popitem()[1]})), r"'\x1b[2J' is no name of a tensor"),
    "long name": (_header(lambda e: e.update({"a" * 600: e.popitem()[1]})), "a key has 600 characters"),
    "metadata": (_header(lambda e: e.update(__metadata__={"a": 1})), "__metadata__ must map names to texts"),
    "NaN": (_header(data=lambda data: b"\x00\x00\xc0\x7f" + data[4:]), "holds NaN or infinity"),
    "a huge value": (_header(data=lambda data: b"\x00\x00\x80\x49" + data[4:]), "holds a value above a million"),
    "infinity": (_header(data=lambda data: data[:-4] + b"\x00\x00\x80\xff"), "holds NaN or infinity"),
}


@pytest.mark.parametrize("write, message", HEADERS.values(), ids=HEADERS)
def test_weights_whose_header_or_values_cannot_be(write, message, folder):
    write(folder / WEIGHTS)
    (folder / MANIFEST).unlink()
    _refused(folder, message)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_number_up_to_a_million_is_read(dtype, folder):
    widest = np.finfo(dtype)
    most = min(float(widest.max), 2**20 - 1)
    tensors = {"a": np.array([most, -most, widest.tiny, 0], dtype), "b": np.zeros((0, 3), dtype)}
    (folder / MANIFEST).unlink()
    _edit(folder / CONFIG, lambda settings: settings.update(peft_type="IA3"))
    save_file(tensors, folder / WEIGHTS)
    assert verify(folder) == ()
    save_file(tensors | {"c": np.array([1, np.inf], dtype)}, folder / WEIGHTS)
    assert verify(folder) == (f"{folder / WEIGHTS}: c holds NaN or infinity. Training diverged, or the file was altered.",)


def test_a_pickle_is_refused_by_name(folder):
    (folder / MANIFEST).unlink()
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    _refused(folder, "has only adapter_model.bin, which can run code when it is loaded")


def test_links_of_the_hubs_cache_are_files(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/1234", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for name in (MANIFEST, CONFIG, WEIGHTS):
        shutil.copy(folder / name, blobs / f"blob-of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    assert verify(snapshot) == ()


NAMES = [f"vision_model.encoder.layers.{i}.self_attn.qkv" for i in range(24)]


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"target_modules": r"(.*.*)*x"}, "takes too long to match"),
        ({"exclude_modules": r"(a|.|..)*!"}, "takes too long to match"),
        ({"target_modules": ["qkv"], "rank_pattern": {"(.*)*x": 4}}, "takes too long to match"),
        ({"modules_to_save": ["(.*)*x"]}, "takes too long to match"),
        ({"target_modules": "(((("}, "is no regular expression"),
        ({"target_modules": r"vision_model\.(encoder\.layers\.\d+\.self_attn\.(qkv|projection))"}, None),
        ({"target_modules": ["(.*.*)*x"]}, None),  # in a list it is a name
    ],
)
def test_expressions_that_never_end_are_refused(settings, problem):
    if problem is None:
        check_patterns(Path("x"), settings, NAMES)
    else:
        start = time.process_time()
        with pytest.raises(AdapterError, match=problem):
            check_patterns(Path("x"), settings, NAMES)
        assert time.process_time() - start < 1


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return make_packages(tmp_path_factory.mktemp("packages"))


def test_loading_goes_through_the_reader(packages, tmp_path, logged):
    plain = packages["plain PEFT"]
    with logged() as lines:
        medgraft.load_adapter(plain.folder, backbone=plain.backbone)
    assert "is a plain PEFT adapter: without medgraft's digests it cannot be told whether it was altered." in lines[0]
    shutil.copytree(plain.folder, tmp_path / "copy")
    for values, message in (({"target_modules": "(.*.*)*x"}, "takes too long"), ({"r": 10_000}, "r is 10000")):
        _edit(tmp_path / "copy" / CONFIG, lambda settings, values=values: settings.update(values))
        with pytest.raises(AdapterError, match=message):
            medgraft.load_adapter(tmp_path / "copy", backbone=plain.backbone)


def test_tensors_trained_in_place_are_compared_with_the_base_before_they_are_read(packages, tmp_path):
    package = packages["decoder-frozen"]
    shutil.copytree(package.folder, tmp_path / "copy")
    tensors = load_file(tmp_path / "copy/trained_tensors.safetensors")
    name = next(iter(tensors))
    for changed, message in (
        (tensors | {"more": tensors[name]}, "more of shape"),
        (tensors | {name: np.zeros(7)}, "has shape"),
    ):
        save_file(changed, tmp_path / "copy/trained_tensors.safetensors")
        sign(tmp_path / "copy")
        with pytest.raises(AdapterError, match=message):
            medgraft.load_adapter(tmp_path / "copy", backbone=package.backbone)


def test_a_list_of_trained_images_that_is_none(packages, tmp_path):
    package = packages["lora"]
    shutil.copytree(package.folder, tmp_path / "copy")
    save_file({"images.counts": np.ones(4, np.uint8)}, tmp_path / "copy/trained_on.safetensors")
    sign(tmp_path / "copy")
    with pytest.raises(AdapterError, match="does not list images as medgraft does"):
        medgraft.load_adapter(tmp_path / "copy", backbone=package.backbone)


def test_a_base_or_an_adapter_of_a_long_name_is_none(folder):
    _edit(folder / MANIFEST, lambda m: m.update(backbone="blip:" + "a" * 900))
    with pytest.raises(BackboneError, match="is neither a folder nor a model that the hub gave"):
        medgraft.load_adapter(folder)
    with pytest.raises(AdapterError, match="There is no adapter folder"):
        read_contents("a" * 300)


@pytest.mark.slow
def test_a_short_round_of_mutations(packages, tmp_path):
    found = list(fuzz(packages, tmp_path, count=150, seed=0))
    assert not [row for row in found if row[2].fault]
    assert {outcome.result for _, _, outcome in found} >= {"refused", "same"}


def test_inspect_verify_and_diff_need_no_torch_and_no_base(folder, capsys):
    other = ADAPTERS / "blip-nano-lora-decoder"
    code = (
        "import sys; from medgraft.cli.main import main; codes = [main(['adapter', *words.split()]) for words in sys.argv[1:]]"
    )
    code += "; print(codes, [m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    words = [f"inspect {folder}", f"inspect --json {folder}", f"verify {folder}", f"diff {folder} {other}"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 1] []"


def test_inspect_says_what_it_is(folder, capsys):
    earlier = {"adapter": "ab" * 32, "data": "roco", "images": 8, "steps": 2, "learning_rate": 0.002, "seed": 1}
    _edit(folder / MANIFEST, lambda m: m.update(lineage=[{"adapter": "cd" * 32}, earlier]))
    assert main(["adapter", "inspect", str(folder)]) == 0
    text = " ".join(capsys.readouterr().out.split()) + " "  # lines are wrapped
    for words in ("blip-nano, weights efd0fdd8779d", "LORA, rank 6 on 64 layers, alpha 24", "230,400 parameters", "cider 0.78",
        "from adapter `cdcdcdcdcdcdcdcd`, whose training is unknown ",
        "from adapter `abababababababab`: 2 steps on 8 images of `roco`, peak learning rate 0.002, seed 1 ",
    ):  # fmt: skip
        assert words in text
    assert main(["adapter", "inspect", "--json", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranks"] == {"6": 64} and sum(group["parameters"] for group in found["groups"]) == 230_400
    (folder / MANIFEST).unlink()
    assert main(["adapter", "inspect", str(folder)]) == 0
    assert "a plain PEFT adapter, without digests" in capsys.readouterr().out


def test_verify_lists_all_that_is_wrong(folder, capsys):
    for name in (CONFIG, WEIGHTS):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    assert main(["adapter", "verify", str(folder)]) == 1
    assert capsys.readouterr().out.count("SHA-256 is not the one") == 2
    assert main(["adapter", "verify", "--json", str(folder)]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 2
    assert main(["adapter", "verify", str(folder / "nowhere")]) == 2


def test_diff_names_settings_and_tensors(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "other")
    assert main(["adapter", "diff", str(folder), str(tmp_path / "other")]) == 0
    assert "0 settings differ\n0 tensors differ\n128 tensors are equal" in capsys.readouterr().out
    tensors = load_file(folder / WEIGHTS)
    gone, changed, *_ = tensors
    tensors[changed] = tensors[changed] + 1
    del tensors[gone]
    save_file(tensors, tmp_path / "other" / WEIGHTS)
    _edit(tmp_path / "other" / CONFIG, lambda settings: settings.update(lora_alpha=12))
    sign(tmp_path / "other")
    assert main(["adapter", "diff", "--json", str(folder), str(tmp_path / "other")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == [{"name": "peft.lora_alpha", "first": 24, "second": 12}]
    assert [(row["name"], row["second"] is None) for row in found["tensors"]] == [(gone, True), (changed, False)]
    assert found["equal"] == 126


def test_what_a_stranger_wrote_does_not_control_the_terminal(folder, capsys):
    _edit(folder / MANIFEST, lambda m: m["files"].update({"\x1b[2J\u202eevil\n": {"sha256": "0" * 64, "bytes": 1}}))
    assert main(["adapter", "inspect", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "\\x1b[2J" in error and error.count("\n") == 1 and error.rstrip("\n").isprintable()
    _edit(folder / MANIFEST, lambda m: m["files"].popitem() and m.update(prompt="\x1b[2J", strategy="a\u202eb"))
    assert main(["adapter", "inspect", str(folder)]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
