"""Pages: one self-contained HTML file each, from a template that extends templates/page.html, with inlined pictures.

The same report gives the same bytes: pictures carry no date and no random ids. Needs the extra `report`.
"""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool import __version__
from adaptertool.errors import UsageError, shown

if TYPE_CHECKING:
    from markupsafe import Markup

NEUTRAL, ALARMING = "#3b7dd8", "#e5484d"  # readable on white and on black
INK = "#0a0b0c"  # stands for the colour of the page's text, which depends on its mode


def require(path: str) -> None:
    """Before anything is computed: raises UsageError where a page cannot be made, or not be written there."""
    require_libraries()
    if not path or os.path.isdir(path) or not os.path.isdir(Path(path).parent):
        raise UsageError(f"{path or 'an empty path'} cannot be a page: it must be a file in a folder that exists")


def require_libraries() -> None:
    """Raises UsageError where those that pages are made with are missing."""
    for library in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise UsageError(f"a page needs {library}, which is not here: pip install 'adaptertool[report]'") from error


def render(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page of templates/`template`. Everything in it is escaped but what `figure` made."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # an extra

    environment = Environment(
        loader=PackageLoader("adaptertool.render"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": shown, **filters}
    return environment.get_template(template).render(version=__version__, **values)


def write(path: str, page: str) -> None:
    Path(path).write_text(page, encoding="utf-8")


def figure(draw: Callable[[Any], None], height: float, *, title: str) -> Markup:
    """A picture as SVG, from what `draw` puts on matplotlib axes. Half a page wide, and `height` inches high. `title`
    is for those who cannot see it."""
    import matplotlib as mpl  # noqa: PLC0415  # an extra
    from markupsafe import Markup, escape  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"svg.hashsalt": "adaptertool", "svg.fonttype": "none", "font.size": 9.0, "text.parse_math": False}
    with mpl.rc_context(style):
        drawn = Figure(figsize=(5.2, height), layout="constrained")
        axes = drawn.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        file = io.StringIO()
        drawn.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)  # the page sets them; the viewBox keeps the proportions
    return Markup(f'{head} role="img" aria-label="{escape(title)}">{rest}')  # our own: nothing in it needs escaping
