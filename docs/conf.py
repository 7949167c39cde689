"""Sphinx configuration: `make docs` writes docs/_build/html; every warning is an error."""

from __future__ import annotations

import edgedistill

project = "edgedistill"
release = version = edgedistill.__version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = "edgedistill"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
