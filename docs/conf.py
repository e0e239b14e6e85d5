"""The documentation site: `make docs` builds it into outputs/docs. Neither the build nor the pages fetch anything."""

import re

from sphinx.application import Sphinx

import segdpo

project = "segdpo"
author = "the authors of segdpo"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = segdpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]

# Markdown. Links to headings are those of GitHub; formulas are Unicode text, which needs neither fonts nor scripts.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# The public interface of each package: the names of its __init__.py, each with its docstring.
autodoc_default_options = {"members": True}
autodoc_member_order = "alphabetical"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
default_role = "code"  # `name` in a docstring

# References to public names have to exist. Other packages' are not resolved, since their inventories would have to be
# fetched, nor are types that stand below a package's public names.
nitpick_ignore_regex = [("py:.*", r"(?!segdpo\.).*"), ("py:.*", r"segdpo\.\w+\.\w+\.[\w.]+")]

html_theme = "furo"
html_title = f"segdpo {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def plain_text(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Keep the stars and bars of docstrings, as in [B, C, *spatial] and |G|, from being markup of docutils."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"(?<![\w*\\])\*(?=[^\s*])|(?<!\\)\|", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def short_names(
    _app: Sphinx, _what: str, _name: str, _thing: object, _options: object, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shorten signatures that Sphinx leaves as they are, since the default of a dataclass is no expression."""
    if arguments and "<factory>" in arguments:
        arguments = re.sub(r"~[\w.]+\.(\w+)", r"\1", arguments).replace("<factory>", "…")
    return arguments, returns


def setup(app: Sphinx) -> None:
    """Connect what is above; docstrings after napoleon, which has the default priority."""
    app.connect("autodoc-process-docstring", plain_text, priority=600)
    app.connect("autodoc-process-signature", short_names)
