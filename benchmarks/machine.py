"""What a benchmark ran on, for the head of its page."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor, the cores this process may use, and the load of the last minute."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
