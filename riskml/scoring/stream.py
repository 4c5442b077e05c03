"""From feature rows to guarded forecasts: the step that live and batch share.

:class:`GraphStream` takes bars in order and runs the market graph on each; :class:`GuardStream`
takes what it says and guards it. The live scorer feeds them one bar, the backfill years; the
arithmetic per bar is the same. They are two because the graph's outputs depend on a window of
bars alone, while the guards remember: a backfill runs the graph once and the guards per day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import Bool1D, Bool2D, BoolND, Float1D, Float2D, Float3D, Float32ND, TimeUs
from riskml.features.nodes import PRESENCE_INPUT
from riskml.markets import Market, symbols
from riskml.risk.policy import MarginPolicy
from riskml.scoring.buffer import FeatureBuffer
from riskml.scoring.guards import BarStatus, Bounds, GuardedForecast, Guards, InputWatch
from riskml.scoring.session import LoadedBundle, MarketOutput

WARM_UP = "7d"
"""History over which the guards run before the first bar that is used. A source that has
been silent for longer counts as absent, not as lost, after a cold start."""

PRICE_INPUTS = ("high", "low", "close")
"""What the level control needs of a bar, in the order of ``GuardedForecast.prices``."""


@dataclass(frozen=True)
class RawBar:
    """What the graph says after one bar, and what the guards need to judge it."""

    ts: int
    """Close of the bar, microseconds."""
    output: MarketOutput
    """Outputs of the graph."""
    available: Bool1D
    """The market's bar is there [n_markets]."""
    features: Float2D
    """The bar's features, clipped, NaN = missing [n_markets, n_features]."""
    invalid: Bool1D
    """A feature was beyond reason [n_markets]."""
    inputs: Mapping[str, Float1D]
    """The bar's inputs, [n_columns of the input's axis] each."""


class GraphStream:
    """Runs a bundle's market graph over bars in order.

    Parameters
    ----------
    bundle : what to run.
    markets : symbols, in the order of the arrays' market axis. Only the bundle's own take part
        in pooling, so that a forecast does not depend on which others happen to be observed.
    """

    def __init__(self, bundle: LoadedBundle, markets: Sequence[str]) -> None:
        self.bundle = bundle
        self.buffer = FeatureBuffer(bundle.manifest.n_bars, len(markets), len(bundle.features))
        self._pooled = np.array([market in bundle.manifest.markets for market in markets], dtype=np.bool_)
        self._bounds = Bounds(bundle.manifest)

    def fill(self, features: Float3D, inputs: Mapping[str, Float2D]) -> None:
        """Take bars into the window without running the graph; shapes as in :meth:`push`."""
        _, values, mask, _ = self._prepare(features, inputs)
        self.buffer.append(values, mask)

    def push(self, ts: TimeUs, features: Float3D, inputs: Mapping[str, Float2D]) -> Iterator[RawBar]:
        """Take new bars and run the graph on each.

        Parameters
        ----------
        ts : closes of the bars [n_new].
        features : [n_new, n_markets, n_features], NaN = missing.
        inputs : per name [n_new, n_columns of its axis], ``close`` among them.
        """
        clipped, values, mask, invalid = self._prepare(features, inputs)
        available = np.isfinite(inputs[PRESENCE_INPUT])
        for row, bar_ts in enumerate(ts.tolist()):
            self.buffer.append(values[row : row + 1], mask[row : row + 1])
            output = self.bundle.market.run(*self.buffer.graph_inputs(), available[row] & self._pooled)
            slot = {name: column[row] for name, column in inputs.items()}
            yield RawBar(bar_ts, output, available[row], clipped[row], invalid[row], slot)

    def _prepare(
        self, features: Float3D, inputs: Mapping[str, Float2D]
    ) -> tuple[Float3D, Float32ND, BoolND, Bool2D]:
        clipped, invalid = self._bounds.apply(features)
        # A missing bar is a masked slot, although its rolling features have values.
        present = np.isfinite(inputs[PRESENCE_INPUT])
        mask = np.isfinite(clipped) & present[:, :, None]
        return clipped, np.where(mask, clipped, 0.0).astype(np.float32), mask, invalid


class GuardStream:
    """Guards bars in order; remembers what each market had and its last sound values.

    Parameters
    ----------
    bundle : gives the fallback law and the stressed scale.
    markets : in the order of the arrays' market axis.
    input_names : inputs whose loss degrades a market.
    policy : gives the stressed floor; None = the default policy.
    """

    def __init__(
        self,
        bundle: LoadedBundle,
        markets: Sequence[Market],
        input_names: Sequence[str],
        policy: MarginPolicy | None = None,
    ) -> None:
        floor = (policy or MarginPolicy()).stressed_floor
        self.watch = InputWatch(input_names, markets)
        self.guards = Guards(bundle.manifest, symbols(markets), floor)

    def step(self, bar: RawBar) -> GuardedForecast:
        """Guard the next bar."""
        status = BarStatus(~bar.available, self.watch.step(bar.inputs))
        guarded = self.guards.step(bar.ts, bar.output, status, bar.features, bar.invalid)
        if any(name not in bar.inputs for name in PRICE_INPUTS):
            return guarded
        return replace(guarded, prices=np.stack([bar.inputs[name] for name in PRICE_INPUTS], axis=1))

    def adopt(self, old: GuardStream, n_markets: int) -> None:
        """Take over what a stream of the first ``n_markets`` markets remembered."""
        self.watch.seen[:, :n_markets] = old.watch.seen
        self.watch.lost[:, :n_markets] = old.watch.lost
        for name, values in vars(old.guards.last_good).items():
            getattr(self.guards.last_good, name)[:n_markets] = values
