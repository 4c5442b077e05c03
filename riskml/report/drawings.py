"""Small pictures for a page, as SVG text: no script, no font, colours from the page's style sheet.

A shape never says by colour alone what it means: coverage is a height, the later part a dashed
line, a verdict a symbol. Every picture carries its reading as text for those who do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STRIP_HEIGHT = 12.0
_FULL, _SOME = 0.99, 0.5


def number(value: float | None) -> str:
    """A value as short text, four significant digits.

    >>> number(0.000123456), number(-1234.5), number(None)
    ('0.0001235', '-1,234', '-')
    """
    if value is None:
        return "-"
    if value and abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def picture(body: str, width: float, height: float, reading: str, *, kind: str = "") -> str:
    """An SVG element with its text alternative."""
    said = escape(reading, quote=True)
    return (
        f'<svg class="{kind}" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{said}">{body}</svg>'
    )


def histogram(
    fit: Sequence[float],
    later: Sequence[float],
    reach: tuple[float, float],
    *,
    width: float = 150.0,
    height: float = 44.0,
    names: tuple[str, str] = ("fit", "test"),
) -> str:
    """Two distributions in the same bins: the first filled, the second a dashed outline.

    Parameters
    ----------
    fit, later : shares per bin.
    reach : value at the left and at the right end.
    names : of the two parts.
    """
    top = max(*fit, *later, 1e-9)
    floor = height - 11.0
    step = width / len(fit)

    def heights(shares: Sequence[float]) -> list[float]:
        return [floor - (floor - 1.0) * share / top for share in shares]

    filled = f"M0 {floor:g}" + "".join(f"V{y:.1f}h{step:.4g}" for y in heights(fit)) + f"V{floor:g}z"
    line = "".join(f"{'M0 ' if not i else 'V'}{y:.1f}h{step:.4g}" for i, y in enumerate(heights(later)))
    body = f'<path class="fit" d="{filled}"/><path class="later" d="{line}"/>' + _ends(
        reach, width, height, floor
    )
    reading = (
        f"distribution from {number(reach[0])} to {number(reach[1])}, {names[0]} filled, {names[1]} dashed"
    )
    return picture(body, width, height, reading)


def course(
    quartiles: Sequence[tuple[float | None, float | None, float | None]],
    seams: Sequence[float],
    *,
    width: float = 190.0,
    height: float = 44.0,
) -> str:
    """Median and middle half per period; seams of the parts as dashed uprights.

    Parameters
    ----------
    quartiles : (25 %, 50 %, 75 %) per period, None = no value.
    seams : places of the seams as shares of the range.
    """
    known = [value for three in quartiles for value in three if value is not None]
    marks = "".join(f'<path class="seam" d="M{share * width:.1f} 0V{height:g}"/>' for share in seams)
    if not known:
        return picture(marks, width, height, "no value in any period")
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    step = width / len(quartiles)

    def y(value: float) -> str:
        return f"{height - 2.0 - (height - 4.0) * (value - low) / span:.1f}"

    bands, lines = [], []
    for first, last in _known_runs([three[1] is not None for three in quartiles]):
        places = [(f"{(place + 0.5) * step:.1f}", quartiles[place]) for place in range(first, last)]
        upper = [f"{x} {y(three[2])}" for x, three in places if three[2] is not None]
        lower = [f"{x} {y(three[0])}" for x, three in places if three[0] is not None]
        middle = [f"{x} {y(three[1])}" for x, three in places if three[1] is not None]
        bands.append("M" + "L".join([*upper, *reversed(lower)]) + "z")
        lines.append("M" + "L".join(middle) + ("h0.1" if len(middle) == 1 else ""))
    body = f'{marks}<path class="band" d="{"".join(bands)}"/><path class="line" d="{"".join(lines)}"/>'
    last_value = next(three[1] for three in reversed(quartiles) if three[1] is not None)
    reading = f"median per period between {number(low)} and {number(high)}, last {number(last_value)}"
    return picture(body, width, height, reading)


def strip(
    shares: Sequence[float | None], reading: str, *, width: float = 140.0, height: float = STRIP_HEIGHT
) -> str:
    """Coverage per period as heights: full, partial, a thin line for none, nothing without a bar.

    Parameters
    ----------
    shares : per period; None = the market has no bar.
    reading : the text alternative.
    """
    step = width / max(len(shares), 1)
    paths: dict[str, list[str]] = {"full": [], "part": [], "none": []}
    levels = [_level(share) for share in shares]
    for first, last in _equal_runs(levels):
        level = levels[first]
        if level is None:
            continue
        tall = max(round(height * level, 1), 2.0)
        kind = "full" if level == 1.0 else "part" if level else "none"
        x, length = first * step, (last - first) * step
        paths[kind].append(f"M{x:.1f} {height:g}h{length:.1f}v-{tall:g}h-{length:.1f}z")
    body = "".join(f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in paths.items() if parts)
    return picture(body, width, height, reading, kind="strip")


def matrix(
    rows: Sequence[tuple[str, str]],
    columns: Sequence[str],
    marks: dict[tuple[int, int], tuple[str, str]],
    *,
    label_width: float = 215.0,
    cell: float = 15.0,
) -> str:
    """A grid of verdicts: a square for broken, a triangle for suspect, a dot for a note.

    Parameters
    ----------
    rows : (text, anchor) per row; the text links to the anchor, a row without an anchor is a heading.
    columns : text above each column.
    marks : (row, column) -> (severity, text shown when the mark is pointed at).
    """
    top = 12.0 + 6.2 * max((len(name) for name in columns), default=0)
    width, height = label_width + cell * len(columns) + 8.0, top + cell * len(rows) + 4.0
    body = []
    for place, name in enumerate(columns):
        x = label_width + (place + 0.7) * cell
        body.append(f'<text transform="translate({x:.1f} {top - 5:g}) rotate(-90)">{escape(name)}</text>')
    for place, (name, anchor) in enumerate(rows):
        y = top + (place + 0.75) * cell
        label = f'<text x="{label_width - 8:g}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>'
        rule = f'<path class="rule" d="M{label_width:g} {top + place * cell:g}H{width - 8:g}"/>'
        body.append(
            f'{rule}<a href="#{escape(anchor)}">{label}</a>'
            if anchor
            else label.replace("<text", '<text class="head"')
        )
    for (row, column), (severity, said) in marks.items():
        x, y = label_width + column * cell, top + row * cell
        body.append(f"<g><title>{escape(said)}</title>{symbol(severity, x, y, cell)}</g>")
    reading = f"verdicts of {len(rows)} rows and {len(columns)} columns; the table of findings says the same"
    return picture("".join(body), width, height, reading, kind="matrix")


def symbol(severity: str, x: float, y: float, size: float) -> str:
    """The mark of a severity in the square whose upper left corner is (x, y)."""
    a, b = 0.15 * size, 0.85 * size
    if severity == "broken":
        return f'<path class="broken" d="M{x + a:.1f} {y + a:.1f}h{b - a:.1f}v{b - a:.1f}h-{b - a:.1f}z"/>'
    if severity == "suspect":
        half = 0.5 * (b - a)
        return f'<path class="suspect" d="M{x + a:.1f} {y + b:.1f}h{b - a:.1f}l-{half:.1f} -{b - a:.1f}z"/>'
    return f'<circle class="note" cx="{x + size / 2:.1f}" cy="{y + size / 2:.1f}" r="{size / 6:.1f}"/>'


def _ends(reach: tuple[float, float], width: float, height: float, floor: float) -> str:
    return (
        f'<path class="rule" d="M0 {floor:g}H{width:g}"/>'
        f'<text x="0" y="{height - 1:g}">{number(reach[0])}</text>'
        f'<text x="{width:g}" y="{height - 1:g}" text-anchor="end">{number(reach[1])}</text>'
    )


def _level(share: float | None) -> float | None:
    """Height of a period's coverage in steps, so that neighbours can be drawn as one."""
    if share is None or share >= _FULL or share == 0.0:
        return None if share is None else float(share > 0.0)
    return 0.75 if share >= _SOME else 0.4


def _equal_runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """(first, end) of stretches of equal neighbours."""
    starts = [place for place in range(len(values)) if not place or values[place] != values[place - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _known_runs(known: Sequence[bool]) -> list[tuple[int, int]]:
    return [(first, last) for first, last in _equal_runs(known) if known[first]]
