"""Taking columns over from one feature stream into another that stands at the same bar."""

from __future__ import annotations

from riskml.arrays import AnyArray
from riskml.features.engine import FeatureStream
from riskml.features.program import Program


def adopt_columns(stream: FeatureStream, source: FeatureStream, n_columns: int) -> None:
    """Give the last ``n_columns`` markets of a stream what the last ones of another carry.

    Parameters
    ----------
    stream, source : of the same features, at the same bar; every other market, and what belongs
        to chains, stablecoins or all markets together, stays as it is in ``stream``.
    """
    order = Program.of([feature.expr for feature in stream.features]).order
    state, other = stream.state(), source.state()
    adopted: dict[str, AnyArray] = {}
    for name, array in state.items():
        part = name.partition("/")[0]
        place = part.lstrip("abcdefghijklmnopqrstuvwxyz")
        of_markets = part == "segments" or (place != "" and order[int(place)].axis == "market")
        if of_markets:
            array = array.copy()
            array[..., -n_columns:] = other[name][..., -n_columns:]
        adopted[name] = array
    stream.restore(adopted)
