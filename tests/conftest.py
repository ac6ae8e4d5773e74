"""How many random examples the laws are tested on: HYPOTHESIS_PROFILE=fuzz draws many more (make fuzz)."""

import os

from hypothesis import settings

settings.register_profile("default", max_examples=40, deadline=None)
settings.register_profile("fuzz", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
