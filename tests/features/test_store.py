"""The store on disk: atomic, shared, budgeted, and safe against what happens to files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medgraft.features import FeatureStore, collections, prune, verify
from medgraft.features import store as stores

KEY = {"seam": "vision", "prefix": "abc"}


def _store(root, key=KEY, max_bytes=10**9):
    return FeatureStore(key, max_bytes=max_bytes, root=root)


def _features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"{seed}-{i}": torch.randn(5, 8, generator=generator).to(torch.bfloat16) for i in range(count)}


def _filled(root, count=6, **options):
    store = _store(root, **options)
    store.put(_features(count))
    store.flush()
    return store


def test_what_is_put_comes_back_bit_identical(tmp_path):
    _filled(tmp_path)
    again = _store(tmp_path)
    for digest, feature in _features(6).items():
        assert torch.equal(again.get(digest), feature)
        assert again.get(digest).dtype == torch.bfloat16
    assert again.get("unknown") is None


def test_another_key_is_another_collection(tmp_path):
    _filled(tmp_path)
    assert _store(tmp_path, {**KEY, "prefix": "abd"}).get("0-0") is None


@pytest.mark.slow
def test_two_processes_share_one_collection(tmp_path):
    first = _store(tmp_path)
    code = (
        "import sys, torch; from pathlib import Path; from medgraft.features import FeatureStore\n"
        "store = FeatureStore({'seam': 'vision', 'prefix': 'abc'}, max_bytes=10**9, root=Path(sys.argv[1]))\n"
        "store.put({'other': torch.ones(5, 8)}); store.flush()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    first.put(_features(2))
    first.flush()
    assert first.get("other") is None
    first.refresh()
    assert torch.equal(first.get("other"), torch.ones(5, 8))
    assert _store(tmp_path).get("0-0") is not None


@pytest.mark.slow
def test_a_process_killed_while_writing_leaves_a_valid_store(tmp_path):
    _filled(tmp_path, 3)
    code = (
        "import os, sys, torch; from pathlib import Path; import medgraft.features.store as s\n"
        "real = s.save_file\n"
        "def half(tensors, path, metadata):\n"
        "    real(tensors, path, metadata=metadata); os.truncate(path, 100); os.kill(os.getpid(), 9)\n"
        "s.save_file = half\n"
        "store = s.FeatureStore({'seam': 'vision', 'prefix': 'abc'}, max_bytes=10**9, root=Path(sys.argv[1]))\n"
        "store.put({'new': torch.ones(5, 8)}); store.flush()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert done.returncode == -9
    again = _store(tmp_path)
    assert again.get("0-0") is not None
    assert again.get("new") is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it forks")
def test_processes_killed_at_random_moments_leave_whole_stores():
    script = Path(__file__).with_name("chaos_store.py")
    done = subprocess.run([sys.executable, script, "--kills", "5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("harm", ["truncated", "altered", "emptied"])
def test_damaged_shards_are_found_put_away_and_built_again(harm, tmp_path):
    folder = _filled(tmp_path).folder
    (shard,) = folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    if harm == "altered":
        content[-3] ^= 0xFF
    shard.write_bytes({"truncated": content[:-40], "altered": content, "emptied": b""}[harm])
    again = _store(tmp_path)
    lost = [digest for digest in _features(6) if again.get(digest) is None]
    assert lost
    assert list(folder.glob("*.damaged"))
    again.put(_features(6))
    again.flush()
    whole = _store(tmp_path)
    assert all(torch.equal(whole.get(digest), feature) for digest, feature in _features(6).items())


def test_the_budget_is_kept_and_said(tmp_path):
    store = _store(tmp_path, max_bytes=100)
    store.put(_features(6))
    store.flush()
    assert "reached features.max_gb" in store.problem
    assert "medgraft features prune" in store.problem
    assert not list(tmp_path.rglob("*.safetensors"))
    store.put(_features(1))  # goes on without
    assert store.get("0-0") is None


def test_a_full_disk_is_said_and_survived(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stores, "save_file", lambda *words, **more: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    store = _store(tmp_path)
    store.put(_features(2))
    store.flush()
    assert "the disk is full" in store.problem
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_nearly_full_disk_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stores.FeatureStore, "_disk_free", lambda self: 10)
    store = _store(tmp_path)
    store.put(_features(2))
    store.flush()
    assert "nearly full" in store.problem


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    store = _store(tmp_path / "file")
    store.put(_features(2))
    store.flush()
    assert "cannot be written" in store.problem


def test_listing_pruning_and_verifying(tmp_path):
    old = _filled(tmp_path, 4)
    new = _filled(tmp_path, 3, key={**KEY, "seam": "bridge"})
    os.utime(old.folder, (0, 0))
    listed = collections(tmp_path)
    assert [(info.key["seam"], info.features) for info in listed] == [("bridge", 3), ("vision", 4)]
    assert verify(tmp_path) == ((), 7)
    (shard,) = new.folder.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    damaged, sound = verify(tmp_path)
    assert [path.suffix for path in damaged] == [".damaged"] and sound <= 6
    mine = tmp_path / "my-thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("x")
    assert [info.folder for info in prune(older_than_days=30, max_bytes=10**9, root=tmp_path)] == [old.folder]
    assert not old.folder.exists() and new.folder.exists()
    assert prune(max_bytes=0, root=tmp_path)
    assert collections(tmp_path) == ()
    assert (mine / "chapter.tex").read_text() == "x"  # what is not the store's is left alone


def test_a_store_goes_to_a_worker_process(tmp_path):
    import pickle

    copy = pickle.loads(pickle.dumps(_filled(tmp_path)))
    assert torch.equal(copy.get("0-0"), _features(6)["0-0"])


def test_the_command(tmp_path, monkeypatch, capsys):
    from medgraft.cli.main import main

    monkeypatch.setenv("MEDGRAFT_FEATURES", str(tmp_path))
    _filled(tmp_path)
    assert main(["features", "ls"]) == 0
    assert "6 features" in capsys.readouterr().out
    assert main(["features", "verify"]) == 0
    assert "6 features are intact" in capsys.readouterr().out
    (shard,) = Path(tmp_path).rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-5])
    assert main(["features", "verify"]) == 1
    assert "1 shard was damaged" in capsys.readouterr().out
    assert main(["features", "prune", "--all"]) == 0
    assert main(["features", "ls"]) == 0
    assert "The store is empty" in capsys.readouterr().out
