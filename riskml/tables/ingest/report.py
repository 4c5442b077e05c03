"""What an ingest returns: counts, what was left out and why, and what was wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from riskml.errors import Problem
from riskml.tables.ingest.vendor_file import Skip

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with items done, items in all and the name of the last one."""


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest."""

    counts: dict[str, int]
    """Rows added per table, and ``files``, ``files_skipped`` (``files_refused`` of them for a stated
    reason), ``rows_added``, ``rows_unchanged``, ``rows_dropped``."""
    skipped: tuple[Skip, ...]
    """Files and rows left out on purpose, with the reason."""
    problems: tuple[Problem, ...]
    """What could not be used; the rest was ingested."""

    @property
    def ok(self) -> bool:
        """Whether everything that was taken could be used."""
        return not self.problems
