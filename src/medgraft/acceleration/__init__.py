"""Kernels that compute what the plain model computes, in less time. Only medgraft.prepare imports them."""

from medgraft.acceleration.apply import KERNELS, Acceleration, Kernel, Kernels, accelerate, check_kernels

__all__ = ["Acceleration", "KERNELS", "Kernel", "Kernels", "accelerate", "check_kernels"]
