"""Sphinx's configuration of the documentation site: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "rapid_dse"
author = "the authors of rapid_dse"
extensions = ["myst_parser", "schema_directive"]
exclude_patterns = ["_ext", "_tests", "**/.ipynb_checkpoints", "*.ipynb"]
html_theme = "furo"
html_title = "rapid_dse"
html_copy_source = False
html_extra_path = ["analysis.ipynb"]
html_theme_options = {"navigation_with_keys": True}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_url_schemes = ["http", "https"]
