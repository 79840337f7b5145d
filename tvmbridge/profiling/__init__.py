"""Where a network's time goes: its kernels' times, rates and shares, against what this machine can do at most."""

from tvmbridge.profiling.kernels import KernelProfile, NetworkProfile, profile_kernels
from tvmbridge.profiling.peak import Peak
from tvmbridge.profiling.shares import KernelShare, share_time

__all__ = ["KernelProfile", "KernelShare", "NetworkProfile", "Peak", "profile_kernels", "share_time"]
