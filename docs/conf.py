"""How the documentation is built: `make docs`."""

from typing import TYPE_CHECKING

from resnet_deploy.version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "resnet-deploy"
author = "The resnet-deploy authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
html_theme = "furo"
html_title = f"resnet-deploy {release}"
html_show_copyright = False
smartquotes = False  # which would make one dash of the two before an option

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
napoleon_use_ivar = True  # attributes of frozen values stand in the table of their class
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
add_module_names = False


def examples_as_typed(app: object, ctx: object, lines: list[str]) -> None:
    """Set the paragraphs of `--help` that keep their lines, which are examples, as they are typed."""
    del app, ctx
    typed: list[str] = []
    inside = False
    for line in lines:
        if not line.startswith("| "):
            inside = False
            typed.append(line.replace("*", r"\*"))
            continue
        text = line.removeprefix("| ")
        if not inside and text.endswith(":"):
            typed.append(text)
            continue
        if not inside:
            typed += ["", ".. code-block:: text", ""]
        inside = True
        typed.append(f"   {text.strip()}")
    lines[:] = typed


def setup(app: "Sphinx") -> None:
    """Hook into the build; called by Sphinx."""
    app.connect("sphinx-click-process-description", examples_as_typed)
