"""How slow this machine is, for tests whose bar is one of seconds."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import cache

IMPORT_SECONDS = 0.8  # of CPU, in which the machine that bars are written for starts Python and imports pandas and SciPy's optimizers


@cache
def slowness() -> float:
    """Seconds of CPU that Python takes to start and import here, over those of the machine that bars are written for; at least 1."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import pandas, scipy.optimize"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(1.0, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / IMPORT_SECONDS)
