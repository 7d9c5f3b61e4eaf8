"""What a record says of the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """A description of a machine; None for unknown values."""

    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    allocator: str | None = None
    memory_bytes: int | None = None
    accelerators: tuple[str, ...] = ()
    bf16: bool | None = None
    platform: str | None = None

    def __str__(self) -> str:
        return ", ".join([*self.accelerators, f"{self.cpu}, {self.threads} threads"])
