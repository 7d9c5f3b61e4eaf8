"""Kernels that give the plain model's results in less time. Only medgraft.prepare imports them."""

from medgraft.acceleration.apply import KERNELS, Acceleration, Kernel, Kernels, accelerate, check_kernels

__all__ = ["Acceleration", "KERNELS", "Kernel", "Kernels", "accelerate", "check_kernels"]
