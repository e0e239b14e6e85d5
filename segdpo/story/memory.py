"""How much memory a stretch of a run has taken at most."""

import contextlib
import math
import platform
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PEAK = "VmHWM:"


def reset_peak() -> None:
    """Forget the peak so far, where the system can: jobs of a sweep follow each other in one process."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_mib() -> float:
    """Return the process's peak resident set in MiB since `reset_peak`, or since it began; NaN where nothing says."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(PEAK):
                return int(line.removeprefix(PEAK).split()[0]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if platform.system() == "Darwin" else 1024)
