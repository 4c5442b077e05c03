"""Liquidation episodes: the forced closes of an account, told apart by quiet time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Int1D
from riskml.tables.lake import Lake
from riskml.units import HOUR, format_us


@dataclass(frozen=True)
class Episode:
    """The first forced close of an account after a quiet time."""

    account_id: str
    ts: int
    """Microseconds UTC."""
    notional_usd: float
    """Closed value of the whole episode."""


@dataclass(frozen=True)
class SeenEpisode:
    """An episode of an account that was being scored, and whether a call came before it."""

    episode: Episode
    lead_us: int | None
    """From the first call within the lookback to the close; None without a call."""

    def to_row(self, engine: str) -> dict[str, Any]:
        """One line of ``episodes.csv``."""
        return {
            "engine": engine,
            "account_id": self.episode.account_id,
            "ts": format_us(self.episode.ts),
            "notional_usd": round(self.episode.notional_usd, 2),
            "foreseen": self.lead_us is not None,
            "lead_h": "" if self.lead_us is None else self.lead_us / HOUR,
        }


def liquidation_episodes(lake: Lake, start: int, end: int, quiet: int) -> list[Episode]:
    """Recorded liquidations of named accounts, closes within ``quiet`` of the last one merged.

    Parameters
    ----------
    start, end : microseconds UTC, end exclusive.
    quiet : microseconds without a close after which a new episode begins.
    """
    table = lake.read("liquidations", start=start, end=end, columns=["ts", "account_id", "notional_usd"])
    ts = table.column("ts").cast("int64").to_numpy()
    accounts = table.column("account_id").to_pylist()
    values = table.column("notional_usd").to_numpy()
    closes: dict[str, list[tuple[int, float]]] = {}
    for account, moment, value in zip(accounts, ts.tolist(), values.tolist(), strict=True):
        if account:
            closes.setdefault(account, []).append((moment, value))
    episodes = []
    for account, found in closes.items():
        found.sort()
        first, last, total = found[0][0], found[0][0], 0.0
        for moment, value in found:
            if moment - last > quiet:
                episodes.append(Episode(account, first, total))
                first, total = moment, 0.0
            last, total = moment, total + value
        episodes.append(Episode(account, first, total))
    return sorted(episodes, key=lambda item: (item.ts, item.account_id))


def seen_before(
    accounts: AnyArray, times: Int1D, called: Bool1D, episodes: Sequence[Episode], lookback: int
) -> list[SeenEpisode]:
    """Which episodes of scored accounts had a call within the lookback before them.

    Parameters
    ----------
    accounts, times, called : account, microseconds UTC and whether it was called, [n_rows].
    episodes : see :func:`liquidation_episodes`. One whose account has no row within the
        lookback before it was not being scored, and is left out.
    """
    rows_of: dict[str, list[int]] = {}
    for row, account in enumerate(accounts.tolist()):
        rows_of.setdefault(str(account), []).append(row)
    seen = []
    for episode in episodes:
        rows = np.asarray(rows_of.get(episode.account_id, []), dtype=np.int64)
        near = rows[(times[rows] < episode.ts) & (times[rows] >= episode.ts - lookback)]
        if not len(near):
            continue
        calls = near[called[near]]
        lead = int(episode.ts - times[calls].min()) if len(calls) else None
        seen.append(SeenEpisode(episode, lead))
    return seen
