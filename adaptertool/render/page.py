"""Pages: one self-contained HTML file each, from a template that extends templates/page.html, with inlined pictures.

The same report gives the same bytes: pictures carry no date and no random ids. Needs the extra `report`.
"""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.errors import UsageError, shown
from adaptertool.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

NEUTRAL, ALARMING = "#3b7dd8", "#e5484d"  # readable on white and on black
INK = "#0a0b0c"  # stands for the colour of the page's text, which depends on its mode
_TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # of a short logarithmic axis, times powers of ten
_SHARES, _FAR = (0.001, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 0.999), 0.4  # of a long logit axis
WIDE = 30.0  # positive values whose largest is so many times the smallest stand on a logarithmic axis


def require(path: str) -> None:
    """Refuse a page that cannot be made, or not be written there, before anything is computed. Raises UsageError."""
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
    from markupsafe import Markup, escape  # noqa: PLC0415  # comes with jinja2
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


def set_scale(axis: Any, values: Sequence[float], scale: str) -> None:
    """Sets the scale, with ticks in plain numbers."""
    from matplotlib import ticker  # noqa: PLC0415  # an extra

    axis.axes.set(**{f"{axis.axis_name}scale": scale})
    ticks: ticker.Locator = ticker.MaxNLocator(6)
    if scale == "log":
        ticks = ticker.LogLocator(subs=_TICKS if max(values) < WIDE * min(values) else (1.0,))
    elif scale == "logit" and max(values) - min(values) > _FAR:
        ticks = ticker.FixedLocator(_SHARES)
    axis.set_major_locator(ticks)
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
