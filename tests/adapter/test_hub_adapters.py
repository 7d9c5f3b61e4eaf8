"""Adapters on the hub, through the hub's own client: pushed, pulled, loaded by name, and refused in one line."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import READS, WRITES, Repo, hub_server
from huggingface_hub import _tree_cache, constants

import medgraft
from medgraft.adapter import TrainedOn
from medgraft.adapter.hub import PACKAGE_FILES, HubName
from medgraft.adapter.locating import locate
from medgraft.adapter.manifest import file_entry, read_manifest, write_manifest
from medgraft.adapter.pulling import pull
from medgraft.adapter.pushing import plan_push, push
from medgraft.cli.main import main
from medgraft.errors import AdapterError
from medgraft.types import Example

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client
SHIPPED = Path(__file__).parent.parent.parent / "adapters"
NAME = HubName("radiology/blip-lora")
_COUNT = 20 * 10**9


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, which the hub's client uses, with a token that may write and an empty cache."""
    with hub_server() as server:
        _use(monkeypatch, server.url, tmp_path / "cache")
        yield server


def _use(monkeypatch, url, cache):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the other protocol for large files
    monkeypatch.setenv("HF_TOKEN", WRITES)


@pytest.fixture
def package(tmp_path):
    """A package beside files of its run, with the digests of two training images."""
    folder = tmp_path / "my-adapter"
    shutil.copytree(SHIPPED / "blip-nano-lora", folder)
    images = [tmp_path / "1.png", tmp_path / "2.png"]
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]))
    name = TrainedOn.of([Example(image.name, image, ("a",), "train", "patient") for image in images]).write(folder)
    manifest = read_manifest(folder)
    files = {**manifest.files, name: file_entry(folder / name)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return folder


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in PACKAGE_FILES}


def _refused(*words, capsys):
    """The one line that the command line prints."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("medgraft: "), said
    assert len(said) == 1 or said[0].startswith("For "), said
    return said[-1]


def test_pushed_privately_and_pulled_it_is_the_same_package(hub, package, tmp_path, capsys):
    assert main(["adapter", "push", str(package), str(NAME), "--yes", "--message", "first"]) == 0
    said = capsys.readouterr()
    repo = hub.repos[NAME.repo]
    assert repo.private and repo.messages == ["initial commit", "first"]
    assert said.out == f"{hub.url}/{NAME} is at commit {repo.branches['main']}\n"
    assert "private" in said.err and "truncated digests of the training images" in said.err and "blip-nano" in said.err
    assert set(repo.commits[repo.branches["main"]]) == {*_content(package), ".gitattributes"}  # no record.json

    found = pull(NAME, tmp_path / "theirs")
    assert found.name == f"{NAME}@{repo.branches['main']}"
    ours, theirs = _content(package), _content(tmp_path / "theirs")
    card = theirs.pop("README.md").decode()
    assert f'load_adapter("{NAME}")' in card and "base_model: blip-nano" not in card and ours.pop("README.md")
    assert theirs == ours
    assert not any(path.is_symlink() for path in (tmp_path / "theirs").iterdir())


def test_what_was_downloaded_serves_without_the_hub(hub, package, logged, monkeypatch):
    done = push(plan_push(package, NAME))
    with logged() as lines:
        found = locate(str(NAME))
    assert found.name == f"{NAME}@{done.commit}" and any(done.commit in line for line in lines)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with logged() as lines:
        assert locate(str(NAME)) == found
    assert done.commit in lines[0] and "HF_HUB_OFFLINE" in lines[0] and not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.status = 503
    for no_server in (False, True):
        if no_server:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with logged() as lines:
            assert locate(str(NAME)) == found
        assert "downloaded before" in lines[0] and "cannot be reached" in lines[0]
        with pytest.raises(AdapterError, match=r"no folder a/b\. a/b was not downloaded .* and the hub cannot be reached"):
            locate("a/b")


@pytest.mark.parametrize("lost", ["snapshots/*/adapter_model.safetensors", "trees/*"])
def test_half_a_download_does_not_serve(hub, package, tmp_path, monkeypatch, lost):
    """Nor does one that another program made, of which it is unknown whether it is whole."""
    push(plan_push(package, NAME))
    locate(str(NAME))
    (path,) = (tmp_path / "cache" / "models--radiology--blip-lora").glob(lost)
    path.unlink()
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()  # as in a new process
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match="or not all of it, and HF_HUB_OFFLINE is set"):
        locate(str(NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert _content(locate(str(NAME)).folder).keys() == _content(package).keys()


def test_revisions(hub, package, tmp_path):
    first = push(plan_push(package, NAME)).commit
    (package / "README.md").write_text("# Second\n")
    branch = push(plan_push(package, HubName(NAME.repo, "trial/2"))).commit
    repo = hub.repos[NAME.repo]
    assert repo.branches == {"main": first, "trial/2": branch}
    for revision, card in ((first, "# lora"), (branch, "# Second"), ("trial/2", "# Second"), ("main", "# lora")):
        found = locate(f"{NAME.repo}@{revision}")
        assert card in (found.folder / "README.md").read_text() and found.name.endswith(repo.find(revision))
    with pytest.raises(AdapterError, match="has no branch, tag or commit nope"):
        pull(HubName(NAME.repo, "nope"))
    with pytest.raises(AdapterError, match="is a commit, which cannot be changed"):
        plan_push(package, HubName(NAME.repo, first))


def test_a_second_push_leaves_nothing_of_the_first(hub, package, tmp_path):
    push(plan_push(package, NAME))
    repo = hub.repos[NAME.repo]
    repo.commit({**repo.commits[repo.branches["main"]], "trained_tensors.safetensors": b"old", "theirs.txt": b"kept"})
    plan = plan_push(package, NAME)
    assert plan.stale == ("trained_tensors.safetensors",) and "trained_tensors.safetensors  deleted" in str(plan)
    repo.commit(repo.commits[repo.branches["main"]], message="by a colleague")
    with pytest.raises(AdapterError, match="was changed on the hub meanwhile"):
        push(plan)
    push(plan_push(package, NAME))
    last = repo.commits[repo.branches["main"]]
    assert "theirs.txt" in last and "trained_tensors.safetensors" not in last


def test_who_can_see_it_is_as_asked(hub, package, capsys):
    assert main(["adapter", "push", str(package), "a/public", "--public", "--yes"]) == 0
    assert not hub.repos["a/public"].private and "anyone can download it" in capsys.readouterr().err
    hub.repos["a/private"] = Repo(private=True)
    hub.repos["a/private"].commit({})
    assert "exists on the hub and is public" in _refused("adapter", "push", package, "a/public", "--yes", capsys=capsys)
    line = _refused("adapter", "push", package, "a/private", "--yes", "--public", capsys=capsys)
    assert "exists on the hub and is private" in line


@pytest.mark.parametrize(("answer", "uploads"), [("y\n", True), ("\n", False), ("no\n", False), (None, False)])
def test_it_asks_before_uploading(hub, package, capsys, monkeypatch, answer, uploads):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: answer, raising=False)
    assert (main(["adapter", "push", str(package), str(NAME)]) == 0) == uploads
    assert bool(hub.repos) == uploads
    assert uploads or "Nothing was uploaded" in capsys.readouterr().err


_CARD = """---
base_model: some/base
---
adapter = medgraft.load_adapter("a", backbone="blip:b")
base = BlipForConditionalGeneration.from_pretrained("b", dtype="float32")
from safetensors.torch import load_file
model = PeftModel.from_pretrained(base, "a")
tensors = load_file("a/trained_tensors.safetensors")
"""


def test_the_card_names_the_adapter_as_it_is_called_there(hub, package):
    (package / "README.md").write_text(_CARD)
    card = plan_push(package, HubName(NAME.repo, "trial")).files["README.md"].decode()
    assert card.split("---\n")[1:] == [
        "base_model: some/base\n",
        """adapter = medgraft.load_adapter("radiology/blip-lora@trial", backbone="blip:b")
base = BlipForConditionalGeneration.from_pretrained("b", dtype="float32")
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
model = PeftModel.from_pretrained(base, "radiology/blip-lora", revision="trial")
tensors = load_file(hf_hub_download("radiology/blip-lora", revision="trial", filename="trained_tensors.safetensors"))
""",
    ]


def test_paths_of_this_machine_are_shown_before_they_leave_it(hub, package):
    manifest = read_manifest(package)
    write_manifest(package, manifest.model_copy(update={"backbone": "blip:/home/alice/ward-3/blip"}))
    assert "medgraft.json tells the path /home/alice/ward-3/blip." in str(plan_push(package, NAME))


def _lora_in(package, **changes):
    """The files of the package, with those of `changes` (dots as underscores) replaced, or left out if None."""
    files = _content(package) | {name.replace("__", "."): content for name, content in changes.items()}
    return {name: content for name, content in files.items() if content is not None}


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"adapter_model__safetensors": None, "adapter_model__bin": b"\x80"}, {}, "'adapter_model.bin', a pickle"),
        ({"adapter_model__safetensors": None}, {}, "has no weights: adapter_model.safetensors is missing"),
        ({"medgraft__json": None, "adapter_config__json": None}, {}, "is no adapter: it has neither medgraft.json"),
        ({}, {"adapter_model.safetensors": _COUNT}, "adapter_model.safetensors of radiology/blip-lora on the hub has 20.0 GB"),
        ({}, {"tokenizer_config.json": _COUNT, "README.md": _COUNT}, "README.md of radiology/blip-lora on the hub has 20.0 GB"),
    ],
)
def test_what_is_no_package_is_not_downloaded(hub, package, changes, sizes, message, capsys):
    hub.repos[NAME.repo] = Repo(private=False)
    hub.repos[NAME.repo].commit(_lora_in(package, **changes))
    hub.sizes = sizes
    assert message in _refused("adapter", "pull", NAME, capsys=capsys)
    assert not any("/resolve/" in request for request in hub.requests)


def test_other_files_beside_a_package_are_not_downloaded(hub, package):
    hub.repos[NAME.repo] = Repo(private=False)
    other = {"adapter_model.bin": b"\x80", "sub/adapter_model.safetensors": b"x", "run.py": b"x", "weights.safetensors": b"x"}
    hub.repos[NAME.repo].commit({**_content(package), **other})
    hub.sizes = dict.fromkeys(other, _COUNT)
    folder = pull(NAME).folder
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == set(_content(package))


def test_damaged_copies(hub, package, tmp_path):
    push(plan_push(package, NAME))
    weights = (pull(NAME).folder / "adapter_model.safetensors").resolve()
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + b"?")
    with pytest.raises(AdapterError, match="was altered or cut off"):
        medgraft.load_adapter(str(NAME))
    assert (pull(NAME).folder / "adapter_model.safetensors").read_bytes() == sound  # downloaded again
    with (package / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(AdapterError, match="was altered or cut off"):
        plan_push(package, HubName("a/other"))
    assert "a/other" not in hub.repos
    hub.repos[NAME.repo].commit(_content(package))
    with pytest.raises(AdapterError, match="was altered or cut off"):
        pull(NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_by_accident(hub, package, tmp_path, capsys):
    push(plan_push(package, NAME))
    out = tmp_path / "out"
    pull(NAME, out)
    before = _content(out)
    assert "Name a new folder, or add --overwrite" in _refused("adapter", "pull", NAME, "--out", out, capsys=capsys)
    (out / "adapter_model.safetensors").unlink()
    pull(NAME, out, overwrite=True)
    assert _content(out) == before and not list(tmp_path.glob(".out*"))
    (out / "notes.txt").write_text("mine")
    line = _refused("adapter", "pull", NAME, "--out", out, "--overwrite", capsys=capsys)
    assert "holds other files, such as notes.txt" in line and (out / "notes.txt").is_file()


@pytest.mark.parametrize(
    ("token", "status", "words", "message"),
    [
        (WRITES, None, "pull a/missing", "The hub has no model a/missing, or your token may not read it."),
        (None, None, "pull a/missing", "The hub has no model a/missing, or it is private: log in with `hf auth login`"),
        (None, None, "pull a/private", "The hub has no model a/private, or it is private: log in"),
        ("hf_old", None, "pull a/private", "The hub does not accept your token: log in"),
        (WRITES, 429, "pull a/private", "The hub takes no more requests from you"),
        (WRITES, 500, "pull a/private", "or not all of it, and the hub cannot be reached (Server error '500"),
        (WRITES, None, "pull a/b--c", "a/b--c on the hub: Cannot have -- or .. in repo_id"),
        (WRITES, None, "pull missing", "missing is no name on the hub. Write USER/REPO"),
        (WRITES, None, "pull a/b@../../x", "is no name on the hub"),
        (None, None, "push FOLDER a/new --yes", "Pushing needs a token of the Hugging Face hub: log in with `hf auth login`"),
        (READS, None, "push FOLDER a/new --yes", "it needs the right to write to a/new"),
        ("hf_old", None, "push FOLDER a/new --yes", "The hub does not accept your token"),
        (WRITES, 503, "push FOLDER a/new --yes", "The hub cannot be reached"),
        (WRITES, None, "push EMPTY a/new --yes", "is no medgraft adapter: it has no medgraft.json"),
    ],
)
def test_errors_are_one_line(hub, package, tmp_path, capsys, monkeypatch, token, status, words, message):
    hub.repos["a/private"], hub.status = Repo(), status
    hub.repos["a/private"].commit(_content(package))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "empty").mkdir()
    filled = words.replace("FOLDER", str(package)).replace("EMPTY", str(tmp_path / "empty"))
    assert message in _refused("adapter", *filled.split(), capsys=capsys)
    assert set(hub.repos) == {"a/private"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my-adaptr", "There is no adapter folder my-adaptr, nor is that a name on the hub such as USER/REPO"),
        ("./a/b", "There is no adapter folder ./a/b, nor is that a name on the hub"),
        ("a/b/c", "There is no adapter folder a/b/c, nor"),
        ("a" * 300, "a, nor is that a name on the hub"),
        (Path("a/b"), "There is no adapter folder a/b, nor"),
        ("runs/lora", "There is no folder runs/lora. The hub has no model runs/lora, or your token may not read it."),
        ("here/medgraft.json", "here/medgraft.json is a file. Name the adapter's folder"),
    ],
)
def test_names_that_are_neither_a_folder_nor_on_the_hub(hub, package, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    package.rename(tmp_path / "here")
    with pytest.raises(AdapterError) as caught:
        locate(source)
    assert message in str(caught.value)
    assert bool(hub.requests) == (source == "runs/lora")


def test_a_gated_repository(hub, capsys):
    hub.status, hub.code = 403, "GatedRepo"
    assert "is open only to those who asked for access on its page" in _refused("adapter", "pull", NAME, capsys=capsys)


def test_a_folder_is_taken_before_the_hub(hub, package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(package, NAME.repo)
    assert locate(str(NAME)).name == str(NAME) and not hub.requests


@pytest.mark.slow
def test_as_a_user_types_it_in_new_processes(package, tmp_path, phantoms_folder):
    image = sorted(phantoms_folder.rglob("*.jpg"))[0]
    with hub_server() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITES, "HF_HUB_DISABLE_XET": "1"}

        def medgraft_(*words, offline="0"):
            command = [sys.executable, "-m", "medgraft", *map(str, words)]
            environment = {**os.environ, **own, "HF_HUB_OFFLINE": offline}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            return done.stdout

        medgraft_("adapter", "push", package, NAME, "--yes")
        scores = medgraft_("evaluate", "--adapter", NAME, "--data", f"roco:{phantoms_folder}", "--max-images", 2, "--json")
        commit = hub.repos[NAME.repo].branches["main"]
        assert json.loads(scores)["adapter"] == f"{NAME}@{commit}"
    (expected,) = medgraft.caption([image], adapter=package)
    assert medgraft_("caption", image, "--adapter", f"{NAME}@{commit}", offline="1").strip() == expected
