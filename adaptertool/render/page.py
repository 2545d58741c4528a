"""Pages: one self-contained HTML file each, with inlined pictures and a script that sorts and filters its tables.

Pictures carry no date and no random ids: the same report, made in the same moment, gives the same bytes. A page reaches
for nothing outside itself, and lets no script run but its own. Needs the extra `report`.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import os
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from adaptertool.errors import UsageError, shown
from adaptertool.render.colours import INK
from adaptertool.render.glossary import term, terms
from adaptertool.render.made import Made
from adaptertool.render.sheet import ROWS, Sheet
from adaptertool.version import __version__

_TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # of a short logarithmic axis, times powers of ten
_SHARES, _FAR = (0.001, 0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 0.999), 0.4  # of a long logit axis
WIDE = 30.0  # positive values whose largest is so many times the smallest stand on a logarithmic axis


def require(path: str) -> None:
    """Refuse a page that cannot be made, or not be written there, before anything is computed. Raises UsageError."""
    require_libraries()
    if not path or os.path.isdir(path) or not os.path.isdir(Path(path).parent):
        raise UsageError(f"{path or 'an empty path'} cannot be a page: it must be a file in a folder that exists")
    if Path(path).is_file() and not _is_page(path):
        raise UsageError(f"{path} is there, and is no HTML page: give the page another name, or remove the file")


def _is_page(path: str) -> bool:
    with Path(path).open("rb") as file:
        begin = file.read(64).lstrip().lower()
    return not begin or begin.startswith((b"<!doctype html", b"<html"))


def require_libraries() -> None:
    """Raises UsageError where those that pages are made with are missing."""
    for library in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise UsageError(f"a page needs {library}, which is not here: pip install 'adaptertool[report]'") from error


def page(sheet: Sheet, made: Made | None = None) -> str:
    """A sheet as HTML. made: how the page came to be; None where its bytes must depend on the report alone."""
    script = resources.files("adaptertool.render").joinpath("templates", "table.js.html").read_text("utf-8")
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render("page.html", sheet, made=made, script=script, script_hash=known, terms=terms(sheet))


def render(template: str, sheet: Sheet, **values: Any) -> str:
    """A sheet by templates/`template`. Everything in it is escaped but pictures, and the script of pages."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # an extra

    environment = Environment(
        loader=PackageLoader("adaptertool.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown}
    environment.globals |= {"version": __version__, "term": term, "most": ROWS}
    return environment.get_template(template).render(sheet=sheet, **values)


def write(path: str, page: str) -> None:
    Path(path).write_text(page, encoding="utf-8")


def figure(draw: Callable[[Any], None], height: float, *, title: str) -> str:
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
