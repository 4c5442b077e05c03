"""One worker's part of a build: consecutive chunks, streamed block by block.

Rows are read, looked up and pushed through the features once, in order of time, after a warm-up
that makes the first value exact. A block's rows are written when the bars that their targets
look at have been read, so the writing trails the reading by the longest horizon. Memory holds
one block, the trailing rows and the state of the features, however long the span is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import AnyArray, Bool2D, Float2D, Float32ND, TimeUs
from riskml.features.assemble import InputReader
from riskml.features.catalog import select
from riskml.features.evaluate import input_names
from riskml.features.inputs import input_spec
from riskml.features.nodes import MAX_GAP_BARS
from riskml.features.spec import Feature
from riskml.features.weights import axis_columns
from riskml.markets import Market
from riskml.tables.align import BAR_INPUTS
from riskml.tables.chunks import Chunk, block_bars, cut_blocks
from riskml.tables.dataset import market_folder, target_columns
from riskml.tables.feed import LakeFeed
from riskml.tables.lake import Lake
from riskml.tables.onsets import onset_times
from riskml.tables.sharded import ShardedStream
from riskml.tables.staging import ChunkRecord, is_stopped, write_record
from riskml.tables.stress import KINDS, Signal, Stress, StressDetector, StressSpec
from riskml.tables.targets import Targets, slow_features, targets
from riskml.units import duration_bars, duration_us

_LIQUIDATED = ("liquidated_long_usd", "liquidated_short_usd")
_DEPTH = ("depth_bid_usd", "depth_ask_usd")
STRESS_INPUTS = (*_LIQUIDATED, *_DEPTH)
"""Inputs that stress is found in, besides the prices."""


@dataclass(frozen=True)
class BuildSpec:
    """What to build: plain values, so that it can go to another process."""

    lake: str
    markets: tuple[Market, ...]
    interval: str
    features: tuple[str, ...]
    horizons: tuple[str, ...]
    stress: StressSpec
    stress_inputs: tuple[str, ...]
    """Those of :data:`STRESS_INPUTS` whose tables the lake has."""
    limit: int
    """End of the whole range, us: nothing at or after it is read."""


@dataclass(frozen=True)
class SpanTask:
    """Consecutive chunks for one worker."""

    spec: BuildSpec
    staging: str
    chunks: tuple[Chunk, ...]
    threads: int = 1
    """Threads that share the markets."""


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of everything that is stored, or that targets are made of."""

    ts: TimeUs
    prices: dict[str, Float2D]
    stress: Stress
    features: Float32ND
    """[n_markets, n_features, n_bars] float32: as it is written, market by market."""


def build_span(task: SpanTask, finished: Callable[[ChunkRecord], None] | None = None) -> list[ChunkRecord]:
    """Build every chunk of a span, journal each as it is done, and return the records.

    Parameters
    ----------
    finished : called with each record once it is in the journal.
    """
    spec = task.spec
    feed = LakeFeed(Lake(spec.lake), spec.markets, spec.interval, _names(spec))
    rows = _Trail(spec, task.chunks[0].start)
    writer = _ChunkWriter(spec, Path(task.staging))
    records: list[ChunkRecord] = []
    waiting = list(task.chunks)
    for block, known_until in _stream(task, feed):
        if is_stopped(Path(task.staging)):
            break
        rows.append(block)
        while waiting:
            chunk = waiting[0]
            # Targets are whole up to the horizon before the newest row, or where the range ends.
            ready = known_until if known_until == spec.limit else known_until - rows.ahead_us
            stop = min(chunk.end, ready)
            if stop > rows.written:
                writer.write(chunk, *rows.take(stop))
            if rows.written < chunk.end:
                break
            record = replace(writer.close(chunk), off_grid_bars=_strays(feed, chunk))
            write_record(Path(task.staging), record)
            records.append(record)
            if finished is not None:
                finished(record)
            waiting.pop(0)
    return records


def warm_up_bars(features: Sequence[Feature], stress: StressSpec, interval: str) -> int:
    """Rows before the first one that make its features and stress exact."""
    window = stress.window_bars(interval)
    cool = duration_bars(stress.cool_down, interval)
    slow = max(feature.lookback_bars(interval) for feature in slow_features())
    of_features = max(feature.lookback_bars(interval) for feature in features)
    return max(of_features, cool + max(slow + window, stress.history_bars(interval)) + MAX_GAP_BARS + 1)


def _strays(feed: LakeFeed, chunk: Chunk) -> int:
    return sum(int(((ts >= chunk.start) & (ts < chunk.end)).sum()) for ts in feed.off_grid)


def _streamed(spec: BuildSpec) -> tuple[Feature, ...]:
    """The features asked for, and the slow variance, which is written only if it is one of them."""
    chosen = select(spec.features)
    return (*chosen, *(feature for feature in slow_features() if feature not in chosen))


def _names(spec: BuildSpec) -> tuple[str, ...]:
    return tuple(sorted({*input_names(_streamed(spec)), *BAR_INPUTS, *spec.stress_inputs}))


def _stream(task: SpanTask, feed: LakeFeed) -> Iterator[tuple[_Block, int]]:
    """Blocks from just before the first chunk to the horizon behind the last, and where each ends (us)."""
    spec, first, last = task.spec, task.chunks[0].start, task.chunks[-1].end
    bar = duration_us(spec.interval)
    streamed, names = _streamed(spec), _names(spec)
    n_chosen = len(spec.features)
    slow_place = [feature.name for feature in streamed].index(slow_features()[0].name)
    reader = InputReader(feed.store, spec.markets, interval=spec.interval, names=names)
    detector = StressDetector(spec.stress, spec.interval, len(spec.markets))
    stop = min(last + _ahead_bars(spec) * bar, spec.limit)
    kept_from = first - _before_bars(spec) * bar
    begin = first - warm_up_bars(streamed, spec.stress, spec.interval) * bar
    size = block_bars(_width(names, len(streamed), len(spec.markets)))
    with ShardedStream(streamed, spec.markets, interval=spec.interval, threads=task.threads) as stream:
        for start, end in cut_blocks(begin, stop, spec.interval, size):
            ts = np.arange(start, end, bar, dtype=np.int64)
            feed.advance(start, end)
            inputs = reader.read(ts)
            values = stream.push(ts, inputs)
            prices = {name: inputs[name] for name in BAR_INPUTS}
            slow = values[:, :, slow_place]
            found = detector.push(ts, _stress_series(inputs, spec.stress_inputs, slow))
            if end > kept_from:
                stored = values[:, :, :n_chosen].transpose(1, 2, 0)
                yield _Block(ts, prices, found, stored.astype(np.float32, order="C")), end


def _stress_series(inputs: Mapping[str, Float2D], names: Sequence[str], slow: Float2D) -> dict[str, Float2D]:
    """What the detector looks at; a side that is missing counts as nothing when the other is there."""
    series = {name: inputs[name] for name in BAR_INPUTS} | {"slow": slow}
    for name, parts in (("liquidated_usd", _LIQUIDATED), ("depth_usd", _DEPTH)):
        if all(part in names for part in parts):
            one, other = (inputs[part] for part in parts)
            both = np.where(np.isfinite(one), one, 0.0) + np.where(np.isfinite(other), other, 0.0)
            series[name] = np.where(np.isfinite(one) | np.isfinite(other), both, np.nan)
    return series


def _ahead_bars(spec: BuildSpec) -> int:
    """Rows behind a bar that decide its targets: the horizon, and whether a gap begins in it."""
    longest = max(duration_bars(horizon, spec.interval) for horizon in spec.horizons)
    return longest + MAX_GAP_BARS + 1


def _before_bars(spec: BuildSpec) -> int:
    """Rows before a bar that targets, onsets and its being listed look at."""
    return duration_bars(spec.stress.cool_down, spec.interval) + MAX_GAP_BARS + 1


def _width(names: Sequence[str], n_features: int, n_markets: int) -> int:
    """float64 values of one bar, inputs and features."""
    columns = {"market": n_markets, "one": 1}
    inputs = sum(columns.get(axis, len(axis_columns(axis))) for axis in (input_spec(n).axis for n in names))
    return inputs + n_features * n_markets


class _Trail:
    """Rows that were computed and not yet written, with those before them that targets look at."""

    def __init__(self, spec: BuildSpec, first: int) -> None:
        self._spec = spec
        self._bar = duration_us(spec.interval)
        self._before = _before_bars(spec)
        self.ahead_us = _ahead_bars(spec) * self._bar
        self.written = first
        """Close of the first row that is not written, us."""
        self._rows: _Block | None = None

    def append(self, block: _Block) -> None:
        """Rows that follow the last ones."""
        if self._rows is None:
            self._rows = block
            return
        place = max(0, (self.written - int(self._rows.ts[0])) // self._bar - self._before)
        self._rows = _joined(_rows_of(self._rows, slice(place, None)), block)

    def take(self, stop: int) -> tuple[_Block, Targets, slice]:
        """Everything up to ``stop`` (us) as the trailing rows, their targets, and which rows are new."""
        rows = self._rows
        if rows is None:
            raise ValueError("there are no rows to take")
        first = (self.written - int(rows.ts[0])) // self._bar
        last = (stop - int(rows.ts[0])) // self._bar
        self.written = stop
        # Whoever cuts a range ahead of this one must not see it: the rows behind `last` that a
        # target looks at end with the horizon, whatever has been read by now.
        seen = _rows_of(rows, slice(max(0, first - self._before), last + self.ahead_us // self._bar))
        first, last = (place - max(0, first - self._before) for place in (first, last))
        found = targets(
            seen.prices["close"],
            seen.prices["high"],
            seen.prices["low"],
            seen.ts,
            self._spec.interval,
            self._spec.horizons,
            stress=seen.stress,
        )
        return seen, found, slice(first, last)


class _ChunkWriter:
    """Writes the files of one chunk at a time: a file per market, a row group per block."""

    def __init__(self, spec: BuildSpec, staging: Path) -> None:
        self._spec = spec
        self._root = staging / "rows"
        self._open: dict[Path, pq.ParquetWriter] = {}
        self._onsets: list[pa.Table] = []
        self._rows = 0

    def write(self, chunk: Chunk, block: _Block, found: Targets, rows: slice) -> None:
        """Append rows to the files of a chunk."""
        spec = self._spec
        alive = alive_rows(np.isfinite(block.prices["close"]))[rows]
        for place, market in enumerate(spec.markets):
            chosen = alive[:, place]
            if not chosen.any():
                continue
            columns: dict[str, AnyArray | pa.Array] = {
                "ts": pa.array(block.ts[rows][chosen], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
                "close": block.prices["close"][rows, place][chosen],
            }
            features = block.features[place][:, rows]
            whole = chosen.all()
            for number, name in enumerate(spec.features):
                columns[name] = features[number] if whole else features[number][chosen]
            for name, values in target_columns(found, spec.horizons, rows, place).items():
                columns[name] = values[chosen]
            self._append(market_folder(self._root, market) / chunk.file_name, pa.table(columns))
            self._rows += int(chosen.sum())
        self._onsets.append(
            onset_times(
                block.stress,
                block.ts,
                spec.markets,
                spec.interval,
                spec=spec.stress,
                first_row=rows.start,
                last_row=rows.stop,
            )
        )

    def close(self, chunk: Chunk) -> ChunkRecord:
        """Move the chunk's files into place; its journal entry."""
        files: dict[str, int] = {}
        for file, writer in self._open.items():
            writer.close()
            os.replace(_part(file), file)
            files[file.relative_to(self._root).as_posix()] = file.stat().st_size
        onsets = self._root / f".onsets-{chunk.name}.parquet"
        pq.write_table(pa.concat_tables(self._onsets), _part(onsets))
        os.replace(_part(onsets), onsets)
        files[onsets.name] = onsets.stat().st_size
        record = ChunkRecord(chunk.name, self._rows, files)
        self._open, self._onsets, self._rows = {}, [], 0
        return record

    def _append(self, file: Path, rows: pa.Table) -> None:
        writer = self._open.get(file)
        if writer is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Dictionaries and statistics cost time and save nothing on floats.
            writer = self._open[file] = pq.ParquetWriter(
                _part(file),
                rows.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=["ts"],
            )
        writer.write_table(rows)


def alive_rows(present: Bool2D) -> Bool2D:
    """Rows [n_bars, n_markets] that belong to a segment: a bar there, or at most three missing since one."""
    alive = present.copy()
    for shift in range(1, MAX_GAP_BARS + 1):
        alive[shift:] |= present[:-shift]
    return alive


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _rows_of(block: _Block, rows: slice) -> _Block:
    return _Block(
        block.ts[rows],
        {name: values[rows] for name, values in block.prices.items()},
        _map_stress(lambda *parts: parts[0][rows], block.stress),
        block.features[:, :, rows],
    )


def _joined(one: _Block, other: _Block) -> _Block:
    return _Block(
        np.concatenate([one.ts, other.ts]),
        {name: np.concatenate([one.prices[name], other.prices[name]]) for name in one.prices},
        _map_stress(lambda *parts: np.concatenate(parts), one.stress, other.stress),
        np.concatenate([one.features, other.features], axis=2),
    )


def _map_stress(function: Callable[..., Float2D], *parts: Stress) -> Stress:
    """A stress record of whose every array ``function`` was taken."""

    def signal(kind: str) -> Signal:
        signals = [part.signal(kind) for part in parts]
        arrays = [[getattr(one, name) for one in signals] for name in ("flag", "size", "limit")]
        flag, size, limit = (function(*same) for same in arrays)
        return Signal(flag, size, limit, signals[0].window_bars)

    drop, liquidation, depth = (signal(kind) for kind in KINDS)
    return Stress(drop, liquidation, depth, function(*(part.sigma for part in parts)))
