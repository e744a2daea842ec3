"""What this process has used of the machine."""

import resource
from pathlib import Path


def cpu_seconds() -> float:
    """CPU seconds of this process, and of the children that it has waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak() -> int:
    """Most bytes of memory of this process since it began; unlike `ru_maxrss`, nothing is inherited by a fork."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
