"""Sphinx configuration. `make docs` builds; warnings are errors."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Penstock"
author = "the Penstock maintainers"
copyright = "the Penstock maintainers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
# What needs it is described without it, too.
autodoc_mock_imports = [] if find_spec("torch") else ["torch"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

exclude_patterns = ["_build", "_extensions", "_generated"]
html_theme = "furo"
html_title = "Penstock"
html_theme_options = {"navigation_with_keys": True}
# Nothing is fetched from elsewhere when somebody reads the documentation.
html_show_sphinx = False
