"""How many random examples the laws are tested on: HYPOTHESIS_PROFILE=fuzz draws many more (make fuzz).

Simulated graphs are not cached, unless a test asks for it.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("default", max_examples=40, deadline=None)
settings.register_profile("fuzz", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
os.environ["RAPID_ASTRA_CACHE_MODE"] = "NO_CACHE"
# Commands in the tests' process print as into a pipe; workers of pytest-xdist are told the width of the terminal.
os.environ.pop("COLUMNS", None)
# A shell starts what it runs in the background with SIGINT ignored, which commands inherit: tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
