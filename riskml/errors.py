"""The error tree: every mistake that riskml reports, in one file.

A message names the thing, what is required, what was found and the fix. The place is
carried in attributes (``table``, ``market``, ``row``, ``fix``) so that a caller can act
on it without parsing text; :func:`nearest` finds the near name for a "did you mean".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding of a validation; validators collect all of them, then raise once."""

    code: str
    """Stable reason code in kebab case, e.g. ``high-below-low``."""
    message: str
    """What is required and what was found."""
    fix: str = ""
    """What the reader can do about it."""
    table: str | None = None
    market: str | None = None
    row: int | None = None
    """Row of the offending table or partition, counted from 0."""
    partition: str | None = None
    """Path of the lake partition, relative to the lake."""

    def to_dict(self) -> dict[str, object]:
        """The JSON form of DESIGN section 8, plus ``partition``."""
        return {
            "table": self.table,
            "market": self.market,
            "row": self.row,
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
            "partition": self.partition,
        }

    def __str__(self) -> str:
        place = _place(self.table, self.market, self.row, self.partition)
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{place}{self.message} [{self.code}]{fix}"


class RiskmlError(Exception):
    """Base of every error that riskml raises on purpose.

    Parameters
    ----------
    message : what is required and what was found.
    table, market, row : where; ``row`` counts from 0.
    fix : what the reader can do about it.
    problems : the single findings, when a validation collected several.
    """

    def __init__(
        self,
        message: str,
        *,
        table: str | None = None,
        market: str | None = None,
        row: int | None = None,
        fix: str | None = None,
        problems: Iterable[Problem] = (),
    ) -> None:
        self.message = message
        self.table = table
        self.market = market
        self.row = row
        self.fix = fix
        self.problems = tuple(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        text = _place(self.table, self.market, self.row, None) + self.message
        if self.fix:
            text += f" Fix: {self.fix}"
        if len(self.problems) > 1:
            shown = "\n".join(f"  - {problem}" for problem in self.problems[:20])
            text += f"\n{shown}"
            if len(self.problems) > 20:
                text += f"\n  ... and {len(self.problems) - 20} more"
        return text

    @classmethod
    def from_problems(cls, problems: Iterable[Problem], summary: str) -> RiskmlError:
        """Build one error from collected findings; the first gives the place."""
        found = tuple(problems)
        first = found[0]
        message = first.message if len(found) == 1 else f"{summary}: {len(found)} problems"
        return cls(
            message,
            table=first.table,
            market=first.market,
            row=first.row,
            fix=first.fix or None,
            problems=found,
        )


class DataError(RiskmlError, ValueError):
    """A value, row or range of data is not usable."""


class ContractError(DataError):
    """A table does not follow its contract (columns, types, keys, units)."""


class ConflictError(ContractError):
    """New rows have the key of stored rows and other values; ``problems`` lists the first of them."""

    rows: Sequence[int] = ()
    """Every such row of the rows that were passed, counted from 0, ascending."""


class StaleDataError(DataError):
    """Data is older than its limit, judged against the time passed in."""


class BundleError(RiskmlError):
    """A bundle is damaged, unsigned, of another protocol or of other features."""


class ConfigError(RiskmlError):
    """A recipe, policy or option is not usable."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


def missing_extra(module: str, extra: str) -> ConfigError:
    """The error for a missing optional dependency, with the exact install command."""
    return ConfigError(
        f"'{module}' is not installed; it is needed for this command.",
        fix=f"pip install 'riskml[{extra}]'",
    )


def _place(table: str | None, market: str | None, row: int | None, partition: str | None) -> str:
    parts = [
        f"{label} {value!r}" if label != "row" else f"row {value}"
        for label, value in (
            ("table", table),
            ("market", market),
            ("partition", partition),
            ("row", row),
        )
        if value is not None
    ]
    return f"{', '.join(parts)}: " if parts else ""
