"""The site: `make docs`. Pages of reference are made of the code first; nothing is fetched."""

import runpy
from pathlib import Path

from adaptertool.version import __version__

HERE = Path(__file__).parent
runpy.run_path(str(HERE.parent / "tools" / "reference.py"), run_name="__main__")

project, author, copyright = "adaptertool", "adaptertool contributors", "adaptertool contributors"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
root_doc = "index"
html_theme = "furo"
html_title = f"adaptertool {__version__}"
html_copy_source = False
myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub
nitpicky = True
