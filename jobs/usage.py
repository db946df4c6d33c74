"""What this process has cost so far, for the ledger and the benchmark."""

from __future__ import annotations

import resource


def usage() -> dict[str, float]:
    """Return CPU seconds (user and system) and peak resident memory in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "peak_mib": round(used.ru_maxrss / 1024, 1),  # Linux reports KiB
    }
