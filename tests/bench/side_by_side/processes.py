"""What the kernel knows of a process."""

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def one_thread(environment: Mapping[str, str]) -> dict[str, str]:
    """The same, with libraries that use one thread each."""
    return {**environment, **dict.fromkeys(_THREADS, "1")}


def resident_mb(pid: int, key: str = "VmRSS") -> float:
    """Its resident memory, 10^6 bytes; `VmHWM` is the most that there was. 0 when it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
    return round(kb * 1024 / 1e6, 1)


def cpu_s(pid: int) -> float:
    """Processor time so far, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
