"""Energy that training took, where the machine counts it: processors by RAPL, NVIDIA's accelerators by NVML."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from medgraft import hardware

_POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up the machine's counters, other work on it included; to be read often, since some start again after minutes."""

    def __init__(self, powercap: Path = _POWERCAP) -> None:
        self._packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_package(zone)]
        self._last = self._counters()
        self.joules: float | None = 0.0 if self._last else None

    def update(self) -> None:
        """Add what was used since the last time."""
        if self.joules is None:
            return
        now = self._counters()
        for name in set(now) & set(self._last):
            (end, limit), (begin, _) = now[name], self._last[name]
            self.joules += (end - begin) % (limit or float("inf")) / 1e6
        self._last = now

    def _counters(self) -> dict[str, tuple[float, float | None]]:
        """Each counter's microjoules, and where it starts again from 0 if it does."""
        found: dict[str, tuple[float, float | None]] = {}
        for zone in self._packages:
            try:
                energy, limit = (float((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):  # readable by root alone, on most systems
                continue
            found[zone.name] = energy, limit
        return found | {name: (value, None) for name, value in _accelerators().items()}


def _is_package(zone: Path) -> bool:
    """A whole processor, not a part of one and not the platform around it, in which it is counted too."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


@functools.cache
def _handles() -> tuple[Any, ...]:
    """NVML's handles of the accelerators that this process sees; none if it computes on the CPU."""
    if not torch.cuda.is_available() or hardware.device().type != "cuda":
        return ()
    try:
        import pynvml
    except ImportError:
        return ()
    names = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    try:
        pynvml.nvmlInit()
        return tuple(pynvml.nvmlDeviceGetHandleByUUID(name) for name in names)
    except pynvml.NVMLError:
        return ()


def _accelerators() -> dict[str, float]:
    """Each accelerator's microjoules since its driver was loaded."""
    handles = _handles()
    if not handles:
        return {}
    import pynvml

    try:
        return {f"gpu {i}": pynvml.nvmlDeviceGetTotalEnergyConsumption(h) * 1e3 for i, h in enumerate(handles)}
    except pynvml.NVMLError:
        return {}
