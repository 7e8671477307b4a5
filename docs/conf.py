"""The documentation site: the Markdown of this repository, and the docstrings (tox -e docs)."""

from hindsight_exec import __version__

project = "hindsight-exec"
author = copyright = "the hindsight-exec authors"  # noqa: A001 - Sphinx's name
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_external_toc",
]
# The source folder is the repository, so that links to files work here as they do on a forge.
include_patterns = ["*.md", "benchmarks/README.md", "docs/**"]
external_toc_path = "docs/toc.yml"
myst_heading_anchors = 3
default_role = "code"

maximum_signature_line_length = 70  # else a parameter for each line
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"{project} {release}"
html_copy_source = False
