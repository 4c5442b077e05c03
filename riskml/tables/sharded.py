"""One feature stream over groups of markets, a thread each.

Markets are independent of each other except in the cross-sections. Each group runs up to the
next level, the cross-sections are taken over all groups, and each group goes on; the values are
those of :class:`riskml.features.engine.FeatureStream` bit for bit. The kernels and numpy let go
of the interpreter lock, so threads share the inputs and nothing is copied between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType

import numpy as np

from riskml.arrays import AnyArray, Float2D, Float3D, TimeUs
from riskml.errors import ConfigError, DataError
from riskml.features.engine import (
    Clock,
    blocks,
    check_inputs,
    cross_sections,
    input_axes,
    reference_columns,
    result_array,
    store,
)
from riskml.features.program import Block, Exchange, NodeStream, Program
from riskml.features.spec import Feature
from riskml.markets import Market
from riskml.tables.compiled import CompiledOps


class ShardedStream:
    """Compiled features of many markets on several threads; use it as a context manager.

    Parameters
    ----------
    features, markets, interval, reference : as of :class:`riskml.features.engine.FeatureStream`.
    threads : groups of markets, at most one per market.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        markets: Sequence[Market],
        *,
        interval: str,
        reference: Sequence[int] | None = None,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise ConfigError(f"threads is at least 1, not {threads}")
        if not features or not markets:
            raise DataError("at least one feature and one market are required")
        self.features = tuple(features)
        self.markets = tuple(markets)
        self.reference = reference_columns(reference, len(markets))
        self._axes = input_axes(features)
        self._clock = Clock(interval)
        self._program = Program.of([feature.expr for feature in features])
        cuts = np.linspace(0, len(markets), min(threads, len(markets)) + 1).astype(int).tolist()
        self._groups = [slice(first, last) for first, last in pairwise(cuts)]
        self._ops = CompiledOps()
        self._shards = [
            NodeStream(self._program, self.markets[group], interval, self._ops) for group in self._groups
        ]
        self._pool = ThreadPoolExecutor(len(self._shards)) if len(self._shards) > 1 else None

    def push(self, ts: TimeUs, inputs: Mapping[str, Float2D], out: Float3D | None = None) -> Float3D:
        """Features of the next rows; see :meth:`riskml.features.engine.FeatureStream.push`."""
        times = np.asarray(ts, dtype=np.int64)
        check_inputs(self._axes, inputs, len(times), len(self.markets))
        first_bar = self._clock.advance(times)
        result = result_array(out, (len(self.features), len(times), len(self.markets)))
        widest = max(group.stop - group.start for group in self._groups)
        for begin, end in blocks(len(times), widest):
            exchanges = [
                shard.run(Block(times[begin:end], first_bar + begin, self._part(inputs, group, begin, end)))
                for shard, group in zip(self._shards, self._groups, strict=True)
            ]
            self._run(exchanges, result[:, begin:end])
        return result.transpose(1, 2, 0)

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> ShardedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _part(self, inputs: Mapping[str, Float2D], group: slice, begin: int, end: int) -> dict[str, Float2D]:
        # Views: the group's own thread copies them when it reads them.
        return {
            name: inputs[name][begin:end, group] if axis == "market" else inputs[name][begin:end]
            for name, axis in self._axes.items()
        }

    def _run(self, exchanges: Sequence[Exchange], out: Float3D) -> None:
        answer: Sequence[Float2D] | None = None
        for level in range(len(self._program.exchanges)):
            found = self._each(exchanges, answer)
            children = [np.concatenate(columns, axis=1) for columns in zip(*found, strict=True)]
            with np.errstate(all="ignore"):
                answer = cross_sections(self._program, level, children, self.reference, self._ops)
        self._each(exchanges, answer, [out[:, :, group] for group in self._groups])

    def _each(
        self,
        exchanges: Sequence[Exchange],
        answer: Sequence[Float2D] | None,
        outs: Sequence[Float3D] | None = None,
    ) -> list[tuple[AnyArray, ...]]:
        """Run every group to its next stop; the last time its features go to ``outs``."""

        def go_on(number: int) -> tuple[AnyArray, ...]:
            # numpy keeps its error state per thread.
            with np.errstate(all="ignore"):
                try:
                    exchange = exchanges[number]
                    return next(exchange) if answer is None else exchange.send(answer)
                except StopIteration as done:
                    if outs is not None:
                        store(done.value, outs[number], self._ops)
                    return ()

        if self._pool is None:
            return [go_on(number) for number in range(len(exchanges))]
        return list(self._pool.map(go_on, range(len(exchanges))))
