"""What every benchmark says about where and when it ran."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path


def machine() -> str:
    """Processor, load, commit and date, in one line."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cores = f"{os.cpu_count()} cores of {model or platform.processor()}, load {os.getloadavg()[0]:.1f} at the end"
    return f"{cores}, commit {git.stdout.strip()}, {time.strftime('%Y-%m-%d')}"
