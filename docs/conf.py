"""How Sphinx builds the site: ``sphinx-build -W -b html docs build/docs``.

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
myst_heading_anchors = 3  # GitHub's anchors, so that a link works there and here
highlight_language = "none"  # blocks without a language are output or commands

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
default_role = "code"  # `name` in a docstring is code

html_theme = "furo"
html_title = "pytest-amp"
html_show_sourcelink = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Keep the sidebar of the page of rules at one line a rule."""

    def shorten(app: Sphinx, _: object) -> None:
        if app.env.docname == "reference/rules":
            app.env.metadata["reference/rules"]["tocdepth"] = 2

    app.connect("doctree-read", shorten)
