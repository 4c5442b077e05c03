"""A page: sections of text, table and picture in one HTML file without scripts."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from riskml import __version__


@dataclass(frozen=True)
class Section:
    """One part of a page."""

    title: str
    text: str = ""
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    image: str = ""
    """PNG, base64."""


def write_page(out: Path, title: str, source: str, sections: Sequence[Section]) -> None:
    """Render a page and write it atomically.

    Parameters
    ----------
    out : the HTML file.
    source : what the page is about, e.g. the path of a bundle.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["cell"] = cell
    template = environment.from_string(
        files("riskml.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    text = template.render(title=title, source=source, sections=sections, version=__version__)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".{out.name}.tmp")
    try:
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, out)
    finally:
        staging.unlink(missing_ok=True)


def cell(value: object) -> str:
    """A table value as text: five significant digits, a dash for nothing.

    >>> cell(0.123456789), cell(1234567), cell(None)
    ('0.12346', '1,234,567', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def picture(draw: Callable[[Any], None], *, width: float = 9.0, height: float = 4.0) -> str:
    """What ``draw`` puts on a matplotlib axes, as a base64 PNG.

    Only the Agg canvas is used, so that no display is needed and no global state changes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def embedded(file: Path) -> str:
    """A PNG file as base64."""
    return base64.b64encode(file.read_bytes()).decode()
