"""What a process has used, according to the kernel."""

import ctypes
import os
import time
from pathlib import Path

KIBIBYTE = 1024
_LIBC = ctypes.CDLL(None)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process so far, user and system.

    It is exact to the nanosecond; /proc has steps of 10 ms, too coarse for an idle process.
    """
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def peak_bytes(pid: int) -> int:
    """Return the peak resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * KIBIBYTE
    raise ProcessLookupError(pid)


def reaped_seconds(pid: int) -> float:
    """Return the CPU time of a process's children that have ended, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return the CPU time of everything on this machine so far, in steps of 10 ms."""
    # Idle and waiting for disks come fourth and fifth; guests are counted in the first (proc(5)).
    spent = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(spent) - spent[3] - spent[4]) / os.sysconf("SC_CLK_TCK")
