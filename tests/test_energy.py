"""Energy by the machine's counters, here of files that stand for them."""

import pytest

from medgraft.energy import measured


@pytest.fixture
def powercap(tmp_path):
    def put(zone, joules, limit=1000):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (folder / "max_energy_range_uj").write_text(f"{limit * 1_000_000}\n")

    put.folder = tmp_path
    return put


def test_packages_are_added_and_their_parts_are_not(powercap):
    for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        powercap(zone, 10)
    with measured(powercap.folder) as energy:
        for zone, joules in (("intel-rapl:0", 13), ("intel-rapl:1", 15), ("intel-rapl:0:0", 12)):
            powercap(zone, joules)
        assert energy.joules is None
    assert energy.joules == pytest.approx(8)


def test_a_counter_that_starts_again(powercap):
    powercap("intel-rapl:0", 990)
    with measured(powercap.folder) as energy:
        powercap("intel-rapl:0", 20)
    assert energy.joules == pytest.approx(30)


def test_nothing_counts(tmp_path):
    with measured(tmp_path) as energy:
        pass
    assert energy.joules is None
