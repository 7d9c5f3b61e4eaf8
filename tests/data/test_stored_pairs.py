"""Near-duplicates are looked for once among the same images."""

import numpy as np

from medgraft.data.stored_pairs import stored_pairs


def test_pairs_are_found_once_among_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGRAFT_CACHE", str(tmp_path))
    monkeypatch.delenv("MEDGRAFT_FILE_INDEX", raising=False)
    calls = []

    def found(later, earlier, pairs):
        def find():
            calls.append(pairs)
            return np.array(pairs, dtype=np.intp).reshape(-1, 2)

        given = stored_pairs(np.array(later, dtype=np.uint64), np.array(earlier, dtype=np.uint64), find)
        assert given.tolist() == pairs and given.shape == (len(pairs), 2)
        return len(calls)

    pairs = [[0, 1], [1, 0]]
    assert [found([7, 8], [9, 10], pairs) for _ in range(2)] == [1, 1]
    assert [found([7, 8, 9], [10], []) for _ in range(2)] == [2, 2]  # the same digests, otherwise divided
    (largest,) = (path for path in (tmp_path / "near-duplicates").iterdir() if "0" in path.read_text())
    largest.write_text("[[0, 1], [1")
    assert [found([7, 8], [9, 10], pairs) for _ in range(2)] == [3, 3]
    monkeypatch.setenv("MEDGRAFT_FILE_INDEX", "off")
    assert found([7, 8], [9, 10], pairs) == 4
