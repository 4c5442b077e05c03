"""From feature rows to guarded forecasts: the step that live and batch share.

:class:`ForecastStream` takes bars in order, as many at a time as there are, and runs the
market graph and the guards once per bar. The live scorer feeds it one bar, the backfill
years of them; the arithmetic per bar is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riskml.arrays import Bool1D, Bool2D, BoolND, Float2D, Float3D, Float32ND, TimeUs
from riskml.scoring.buffer import FeatureBuffer
from riskml.scoring.guards import BarStatus, Bounds, GuardedForecast, Guards, InputWatch
from riskml.scoring.session import LoadedBundle, MarketOutput

PRESENCE_INPUT = "close"
"""A market has a bar in a slot when this input is there."""


WARM_UP = "7d"
"""History over which the guards run before the first bar that is used. A source that has
been silent for longer counts as absent, not as lost, after a cold start."""


@dataclass(frozen=True)
class StreamStep:
    """One bar that went through the graph and the guards."""

    raw: MarketOutput
    """What the graph says."""
    guarded: GuardedForecast
    """What to use."""
    available: Bool1D
    """The market took part in the bar [n_markets]."""


class ForecastStream:
    """Runs a bundle's market graph over bars in order.

    Parameters
    ----------
    bundle : what to run.
    markets : symbols, in the order of the arrays' market axis.
    input_names : inputs whose loss degrades a market; ``close`` is among them.
    """

    def __init__(self, bundle: LoadedBundle, markets: Sequence[str], input_names: Sequence[str]) -> None:
        self.bundle = bundle
        self.markets = tuple(markets)
        self.watch = InputWatch(input_names, len(self.markets))
        self.guards = Guards(bundle.manifest, self.markets)
        self.buffer = FeatureBuffer(bundle.manifest.n_bars, len(self.markets), len(bundle.features))
        self._bounds = Bounds(bundle.manifest)

    def fill(self, features: Float3D, inputs: Mapping[str, Float2D]) -> None:
        """Take bars into the window without running the graph; shapes as in :meth:`push`."""
        _, values, mask, _ = self._prepare(features, inputs)
        self.buffer.append(values, mask)

    def push(self, ts: TimeUs, features: Float3D, inputs: Mapping[str, Float2D]) -> Iterator[StreamStep]:
        """Take new bars and run the graph on each.

        Parameters
        ----------
        ts : closes of the bars [n_new].
        features : [n_new, n_markets, n_features], NaN = missing.
        inputs : per name [n_new, n_markets]; has to hold every watched input.
        """
        clipped, values, mask, invalid = self._prepare(features, inputs)
        missing = ~np.isfinite(inputs[PRESENCE_INPUT])
        for row, bar_ts in enumerate(ts.tolist()):
            self.buffer.append(values[row : row + 1], mask[row : row + 1])
            arguments = self.buffer.graph_inputs()
            raw = self.bundle.market.run(*arguments)
            lost = self.watch.step({name: inputs[name][row] for name in self.watch.names})
            status = BarStatus(missing[row], lost)
            guarded = self.guards.step(bar_ts, raw, status, clipped[row], invalid[row])
            yield StreamStep(raw, guarded, arguments[2])

    def adopt(self, old: ForecastStream, n_markets: int) -> None:
        """Take over what a stream of the first ``n_markets`` markets remembered."""
        self.watch.seen[:, :n_markets] = old.watch.seen
        for name, values in vars(old.guards.last_good).items():
            getattr(self.guards.last_good, name)[:n_markets] = values

    def _prepare(
        self, features: Float3D, inputs: Mapping[str, Float2D]
    ) -> tuple[Float3D, Float32ND, BoolND, Bool2D]:
        clipped, invalid = self._bounds.apply(features)
        # A missing bar is a masked slot, although its rolling features have values.
        present = np.isfinite(inputs[PRESENCE_INPUT])
        mask = np.isfinite(clipped) & present[:, :, None]
        return clipped, np.where(mask, clipped, 0.0).astype(np.float32), mask, invalid
