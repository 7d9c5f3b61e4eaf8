"""Energy that training took, where the machine counts it: processors by RAPL, NVIDIA's accelerators by NVML."""

from __future__ import annotations

from pathlib import Path

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
