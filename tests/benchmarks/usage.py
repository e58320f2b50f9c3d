"""What a process has used, as the kernel counts it."""

import os
from pathlib import Path

KIBIBYTE = 1024
# Behind the command's name: the 14th and 15th field of the line (proc(5)).
USER, SYSTEM = 11, 12


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process so far, user and system, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[USER]) + int(fields[SYSTEM])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """Give the most memory that a process has had in RAM at once."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * KIBIBYTE
    raise ProcessLookupError(pid)
