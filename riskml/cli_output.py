"""What a command says: one outcome as text or JSON on stdout, progress on stderr.

Keeping the two apart lets ``riskml backfill ... --json | jq`` work while a person still
sees how far the run is.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from riskml.errors import Problem

OK, FAILED, USAGE, REFUSED = 0, 1, 2, 3
"""Exit codes: fine; data or run failed or partial; wrong usage; refused (bundle, promotion, check)."""


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    text: str = ""
    """For people; printed on stdout unless JSON is asked for."""
    outputs: tuple[Path, ...] = ()
    """Files and folders that were written."""
    counts: Mapping[str, int | float] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    exit_code: int = OK
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the JSON object, e.g. ``decisions``."""


def outcome_json(outcome: Outcome, command: str, seconds: float) -> str:
    """The one JSON object that ``--json`` prints; non-finite numbers become null."""
    record = {
        "ok": outcome.exit_code == OK,
        "command": command,
        "seconds": round(seconds, 3),
        "outputs": [str(path) for path in outcome.outputs],
        "counts": dict(outcome.counts),
        "problems": [problem.to_dict() for problem in outcome.problems],
        **outcome.extra,
    }
    return json.dumps(finite(record), allow_nan=False)


def finite(value: Any) -> Any:
    """A copy of nested containers in which NaN and infinity are None, and numpy scalars plain."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy here
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_outcome(outcome: Outcome) -> None:
    """The outcome for people: text (or the counts), problems, and what was written."""
    if outcome.text:
        print(outcome.text)
    for problem in outcome.problems[:MAX_PROBLEMS]:
        print(f"  - {problem}")
    if len(outcome.problems) > MAX_PROBLEMS:
        print(f"  ... and {len(outcome.problems) - MAX_PROBLEMS} more (--json lists all)")
    if outcome.counts and not outcome.text:
        print("  ".join(f"{name}: {number:,}" for name, number in outcome.counts.items()))
    for path in outcome.outputs:
        print(f"wrote {path}")


MAX_PROBLEMS = 20


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as aligned text; numbers to the right.

    >>> print(text_table(["market", "rows"], [["BTC", 12], ["kPEPE", 3]]))
    market  rows
    BTC       12
    kPEPE      3
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    right = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(headers))]
    lines = []
    for row in [list(headers), *cells]:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_number(cell: str) -> bool:
    return (
        cell == "-"
        or cell.replace(",", "").replace(".", "").replace("%", "").lstrip("-").replace("e-", "").isdigit()
    )


class Progress:
    """Progress of long work on stderr: a bar with rich on a terminal, plain lines otherwise.

    Call it as ``progress(message)`` for a step, or ``progress(done, total, message)`` for a
    share of one. On a terminal a new message starts a new bar. Plain output shows every
    step, and of a share one line per ten per cent and ``pause`` seconds, so that logs stay short.
    """

    def __init__(self, enabled: bool = True, *, pause: float = 1.0) -> None:
        self._enabled = enabled
        self._pause = pause
        self._printed = -math.inf
        self._message: str | None = None
        self._tenth = -1
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._enabled and sys.stderr.isatty():
            self._bar = _rich_bar()
            if self._bar is not None:
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @overload
    def __call__(self, step: str, /) -> None: ...

    @overload
    def __call__(self, step: int, total: int | None = None, message: str = "", /) -> None: ...

    def __call__(self, step: int | str, total: int | None = None, message: str = "", /) -> None:
        if not self._enabled:
            return
        done, message = (0, step) if isinstance(step, str) else (step, message)
        if self._bar is not None:
            self._draw(done, total, message)
            return
        now, tenth = time.monotonic(), 10 * done // total if total else 0
        is_new = (message, tenth) != (self._message, self._tenth)
        if isinstance(step, str) or (is_new and now - self._printed >= self._pause):
            share = f" {10 * tenth} %" if total else ""
            print(f"[{now - self._started:6.1f} s] {message}{share}", file=sys.stderr, flush=True)
            self._message, self._tenth, self._printed = message, tenth, now

    def _draw(self, done: int, total: int | None, message: str) -> None:
        if message != self._message:
            self._task = self._bar.add_task(message or "working", total=total)
            self._message = message
        self._bar.update(self._task, completed=done, total=total)


def _rich_bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
    except ImportError:  # rich is a convenience of the data extra
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return RichProgress(*columns, console=Console(stderr=True))
