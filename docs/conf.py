"""Configure Sphinx, which builds the site: ``sphinx-build -W -b html docs build/docs``.

Nothing is fetched during the build, and no page loads anything from another host.
"""

from __future__ import annotations

from sphinx.application import Sphinx

from pytest_amp import __version__

project = "pytest-amp"
author = "The pytest-amp developers"
copyright = author  # noqa: A001 - Sphinx reads this name
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3  # the same anchors as on GitHub, so that links work in both places
highlight_language = "none"  # blocks without a language are output or commands

autodoc_member_order = "bysource"
# Constructors are left out, because pytest-amp makes all these objects, and users only read them.
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_google_docstring = True
default_role = "code"  # `name` in a docstring is code

html_theme = "furo"
html_title = "pytest-amp"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Register what this site adds to Sphinx."""
    app.connect("doctree-read", _one_line_a_rule)


def _one_line_a_rule(app: Sphinx, _: object) -> None:
    """List only the rules' names in the contents beside the page of rules."""
    if app.env.docname == "reference/rules":
        app.env.metadata["reference/rules"]["tocdepth"] = 2
