"""Energy that training took, where the machine counts it: processors by RAPL, NVIDIA's accelerators by NVML."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")


@dataclass
class Energy:
    """`joules` of the whole machine's counters between begin and end; None while running, and where nothing counts."""

    joules: float | None = None


@contextmanager
def measured(powercap: Path = _POWERCAP) -> Iterator[Energy]:
    """What the block took, other work on the machine included."""
    energy = Energy()
    before = _counters(powercap)
    yield energy
    after = _counters(powercap)
    if before and set(before) == set(after):
        energy.joules = sum((end - before[name][0]) % (limit or float("inf")) for name, (end, limit) in after.items()) / 1e6


def _counters(powercap: Path) -> dict[str, tuple[float, float | None]]:
    """Each counter's microjoules, and where it starts again from 0 if it does."""
    found: dict[str, tuple[float, float | None]] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:  # packages; their parts are counted in them
            try:
                values = [float((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):
                continue
            found[zone.name] = values[0], values[1]
    return found | {name: (value, None) for name, value in _accelerators().items()}


def _accelerators() -> dict[str, float]:
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return {f"gpu {i}": pynvml.nvmlDeviceGetTotalEnergyConsumption(h) * 1e3 for i, h in enumerate(handles)}
    except pynvml.NVMLError:
        return {}
