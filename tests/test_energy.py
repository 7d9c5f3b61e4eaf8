"""Energy by the machine's counters, here of files that stand for them."""

import pytest

from medgraft.energy import EnergyMeter


@pytest.fixture
def powercap(tmp_path):
    def put(zone, joules, name="package-0", limit=1000):
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        for file, text in (("energy_uj", round(joules * 1e6)), ("max_energy_range_uj", limit * 1_000_000), ("name", name)):
            (folder / file).write_text(f"{text}\n")

    put.folder = tmp_path
    return put


def test_packages_are_added_and_neither_parts_nor_the_platform(powercap):
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:2": "psys"}
    for zone, name in zones.items():
        powercap(zone, 10, name)
    meter = EnergyMeter(powercap.folder)
    for zone, joules in zip(zones, (13, 15, 12, 60), strict=True):
        powercap(zone, joules, zones[zone])
    assert meter.joules == 0
    meter.update()
    assert meter.joules == pytest.approx(8)


def test_a_counter_that_starts_again_twice(powercap):
    powercap("intel-rapl:0", 990)
    meter = EnergyMeter(powercap.folder)
    for joules in (20, 900, 10):
        powercap("intel-rapl:0", joules)
        meter.update()
    assert meter.joules == pytest.approx(30 + 880 + 110)


def test_nothing_counts(tmp_path):
    meter = EnergyMeter(tmp_path)
    meter.update()
    assert meter.joules is None
