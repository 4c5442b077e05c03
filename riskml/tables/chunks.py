"""How a range of bars is cut: into chunks that are files, and into blocks that fit in memory.

Both cuts depend on the calendar, the interval and the width of the data alone, never on where a
range begins or how many workers share it. The same rows are therefore written in the same
pieces by any build.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from riskml.units import MINUTE, duration_us, format_us, to_us

YEARLY_FROM = 15 * MINUTE
"""Bars at least this long are stored by calendar year, shorter ones by month."""
BLOCK_BYTES = 96 << 20
"""Inputs and features of one block in memory, float64."""
MIN_BLOCK_BARS = 64


@dataclass(frozen=True)
class Chunk:
    """A calendar year or month of bar closes: what one file holds and one journal entry stands for."""

    name: str
    """``2024`` or ``2024-03``."""
    start: int
    """First bar close, us."""
    end: int
    """Exclusive, us."""

    @property
    def file_name(self) -> str:
        """``year=2024.parquet`` or ``month=2024-03.parquet``."""
        return f"{'month' if '-' in self.name else 'year'}={self.name}.parquet"


def chunk_of(name: str) -> Chunk:
    """The whole year or month of a chunk's name or file name.

    >>> chunk_of("month=2024-03.parquet").name
    '2024-03'
    """
    text = name.removesuffix(".parquet").rpartition("=")[2]
    year, month = int(text[:4]), int(text[5:7] or 1)
    following = _next_month(year, month) if "-" in text else datetime(year + 1, 1, 1, tzinfo=UTC)
    return Chunk(text, to_us(datetime(year, month, 1, tzinfo=UTC)), to_us(following))


def cut_chunks(first: int, last: int, interval: str) -> list[Chunk]:
    """The chunks of the bar closes in [first, last), in order.

    Parameters
    ----------
    first, last : us, multiples of the interval.
    """
    bar = duration_us(interval)
    yearly = bar >= YEARLY_FROM
    chunks = []
    while first < last:
        text = format_us(first)
        whole = chunk_of(text[:4] if yearly else text[:7])
        stop = min(-(-whole.end // bar) * bar, last)
        chunks.append(Chunk(whole.name, first, stop))
        first = stop
    return chunks


THREAD_GAIN = 0.8
"""What a further thread adds to a worker's speed, as a share of what a process would add."""


def workers_for(jobs: int, range_us: int, warm_up_us: int) -> int:
    """How many of ``jobs`` should share the time; the rest are threads over markets within each.

    Every process pays for the warm-up again, a thread does not: a range that is short beside the
    warm-up (180 days, for two months of minutes) is better shared by markets than by time.

    >>> workers_for(4, 8 * 365, 180), workers_for(4, 60, 180)
    (4, 1)
    """

    def cost(processes: int) -> float:
        threads = 1.0 + THREAD_GAIN * (jobs // processes - 1)
        return (range_us / processes + warm_up_us) / threads

    return min(range(1, jobs + 1), key=cost)


def cut_spans(chunks: Sequence[Chunk], jobs: int) -> list[list[Chunk]]:
    """Chunks shared out: runs of consecutive ones, at most ``jobs`` of about equal length.

    A run pays for its warm-up once, so there are no more of them than workers; a hole in the
    chunks (some are done already) ends a run.
    """
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        if runs and runs[-1][-1].end == chunk.start:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    while len(runs) < jobs:
        longest = max(runs, key=lambda run: (len(run) > 1, run[-1].end - run[0].start), default=None)
        if longest is None or len(longest) == 1:
            break
        place = runs.index(longest)
        runs[place : place + 1] = _halves(longest)
    return runs


def _halves(run: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    middle = (run[0].start + run[-1].end) / 2
    cut = min(range(1, len(run)), key=lambda place: abs(run[place].start - middle))
    return list(run[:cut]), list(run[cut:])


def _next_month(year: int, month: int) -> datetime:
    return datetime(year + (month == 12), month % 12 + 1, 1, tzinfo=UTC)


def block_bars(n_columns: int) -> int:
    """Bars of one block when each bar has ``n_columns`` float64 values; a power of two."""
    bars = MIN_BLOCK_BARS
    while 2 * bars * n_columns * 8 <= BLOCK_BYTES:
        bars *= 2
    return bars


def cut_blocks(first: int, last: int, interval: str, bars: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the blocks of [first, last), us; edges are multiples of ``bars`` bars since 1970."""
    size = bars * duration_us(interval)
    while first < last:
        stop = min((first // size + 1) * size, last)
        yield first, stop
        first = stop
