"""Threads over markets give the bits of the single stream."""

import numpy as np
import pytest

from riskml.errors import ConfigError, DataError
from riskml.features.catalog import CATALOG
from riskml.features.engine import FeatureStream
from riskml.markets import Market
from riskml.tables.compiled import CompiledOps
from riskml.tables.sharded import ShardedStream

MARKETS = [Market(symbol, "binance") for symbol in ("BTC", "ETH", "SOL", "ARB")]


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_however_many_threads_share_the_markets_no_bit_changes(panels, threads):
    ts, inputs = panels.random_panel(900, interval="4h", seed=3)
    whole = FeatureStream(CATALOG, MARKETS, interval="4h", reference=[0, 1, 3], ops=CompiledOps())
    expected = whole.push(ts, inputs)
    with ShardedStream(CATALOG, MARKETS, interval="4h", reference=[0, 1, 3], threads=threads) as stream:
        parts = [
            stream.push(ts[first:last], {name: values[first:last] for name, values in inputs.items()})
            for first, last in ((0, 1), (1, 400), (400, 900))
        ]
    assert np.concatenate(parts).tobytes() == np.ascontiguousarray(expected).tobytes()


def test_an_error_in_a_thread_reaches_the_caller(panels):
    ts, inputs = panels.random_panel(300, interval="4h", seed=3)
    with (
        ShardedStream(CATALOG, MARKETS, interval="4h", threads=2) as stream,
        pytest.raises(DataError, match="inputs close are missing"),
    ):
        stream.push(ts, {name: values for name, values in inputs.items() if name != "close"})


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        ShardedStream(CATALOG, MARKETS, interval="4h", threads=0)
