"""A generated sample of every input table: a plausible market, no real data.

For demonstrations, for tests and for a first look at the formats. The sample is fixed
by its recipe: equal recipes give equal tables. What the market is like, and which
structure can be learnt from it, is said in ``synthetic_market``; the accounts are in
``synthetic_accounts``.

Regenerate the sample of the repository::

    python -m riskml.tables.synthetic --recipe data/sample/recipe.toml --out data/sample
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from riskml.arrays import Float2D
from riskml.errors import ConfigError, RiskmlError, nearest
from riskml.tables.lake import Lake
from riskml.tables.synthetic_account_tables import account_tables
from riskml.tables.synthetic_accounts import AccountMarket, AccountSimulation
from riskml.tables.synthetic_chain import ChainHistory, chain_tables, simulate_chains
from riskml.tables.synthetic_market import MINUTES, TRAITS, MarketPath, simulate_market
from riskml.tables.synthetic_market_tables import (
    HourlySeries,
    bar_minutes,
    flow_tables,
    funding_due,
    hourly_series,
    market_tables,
    rounded_prices,
)
from riskml.units import DAY, HOUR, to_us

END = "2024-07-01"
"""End of every sample, UTC; a Monday, so that weeks and months are whole."""


@dataclass(frozen=True)
class SampleRecipe:
    """What fixes a generated sample."""

    seed: int = 7
    days: int = 540
    """Length of the market history up to 2024-07-01."""
    markets: int = 6
    """The first so many of BTC ETH SOL ARB DOGE XRP AVAX OP."""
    accounts: int = 200
    interval: str = "1h"
    """Bar length; the other market tables stay hourly or coarser."""
    account_days: int = 14
    """Length of the account history at the end of the sample, at most ``days`` - 1."""

    def __post_init__(self) -> None:
        limits = {"seed": (0, 2**63), "days": (3, 4000), "markets": (1, len(TRAITS)), "accounts": (1, 20_000)}
        limits["account_days"] = (1, max(self.days - 1, 1))
        wrong = [
            f"{name} must be a whole number from {low} to {high}, found {getattr(self, name)!r}"
            for name, (low, high) in limits.items()
            if not _is_whole(getattr(self, name)) or not low <= getattr(self, name) <= high
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), fix="correct the sample's recipe")
        bar_minutes(self.interval)

    @classmethod
    def load(cls, path: str | Path) -> SampleRecipe:
        """Read a recipe from TOML; a key that is left out has its default.

        Raises
        ------
        ConfigError : the file is missing, is not TOML, or has an unknown key or value.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"there is no recipe '{path}'") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"recipe '{path}' is not TOML: {error}") from error
        known = [item.name for item in fields(cls)]
        unknown = [f"'{key}'.{nearest(key, known)}" for key in values if key not in known]
        if unknown:
            raise ConfigError(
                f"recipe '{path}' has unknown keys: {' '.join(unknown)}",
                fix=f"known keys: {', '.join(known)}",
            )
        return cls(**values)


@dataclass(frozen=True)
class SampleInfo:
    """What was written."""

    path: Path
    recipe: SampleRecipe
    start_us: int
    """Open of the first bar."""
    end_us: int
    """Close of the last bar."""
    symbols: tuple[str, ...]
    rows: dict[str, int]
    """Rows by table."""


def generate_tables(recipe: SampleRecipe) -> dict[str, pa.Table]:
    """Generate every input table in contract form, without touching a disk.

    Each part draws from its own stream of the seed, so that the number of accounts does
    not change the market.
    """
    start = to_us(END) - recipe.days * DAY
    streams = [np.random.default_rng(item) for item in np.random.SeedSequence(recipe.seed).spawn(6)]
    chains, drivers = simulate_chains(streams[0], start, recipe.days, recipe.account_days)
    path = simulate_market(streams[1], TRAITS[: recipe.markets], drivers)
    series = hourly_series(streams[2], path)
    volatility = np.exp(0.5 * series.activity.mean(axis=1))
    tables = market_tables(streams[2], path, series, start, recipe.interval)
    tables |= flow_tables(streams[5], path, series, start)
    tables |= chain_tables(streams[3], chains, volatility, start)
    market = _account_market(recipe, path, series, chains, start)
    simulation = AccountSimulation(streams[4], market, recipe.accounts)
    history = simulation.run()
    rows = account_tables(history, market, simulation.state.mode)
    total = tables.pop("liquidations")
    return tables | rows | {"liquidations": pa.concat_tables([total, rows["liquidations"]])}


def generate_sample(
    out_lake: str | Path,
    *,
    seed: int = 7,
    days: int = 540,
    markets: int = 6,
    accounts: int = 200,
    interval: str = "1h",
    account_days: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> SampleInfo:
    """Generate a sample and write it into a lake.

    Parameters
    ----------
    out_lake : folder of the lake, made if need be.
    seed, days, markets, accounts, interval : see :class:`SampleRecipe`.
    account_days : 14, or less when ``days`` is too short for that.
    progress : called with one line per step.

    Raises
    ------
    ConfigError : a parameter is out of its range.
    """
    window = min(14, max(days - 1, 1)) if account_days is None else account_days
    recipe = SampleRecipe(seed, days, markets, accounts, interval, window)
    say = progress or (lambda line: None)
    say(f"generate {days} days of {markets} markets and {accounts} accounts")
    tables = generate_tables(recipe)
    lake = Lake(out_lake)
    for name, data in tables.items():
        say(f"write {name}: {data.num_rows} rows")
        lake.write(name, data)
    end = to_us(END)
    symbols = tuple(market.symbol for market in TRAITS[:markets])
    rows = {name: data.num_rows for name, data in tables.items()}
    return SampleInfo(Path(out_lake), recipe, end - days * DAY, end, symbols, rows)


def write_files(recipe: SampleRecipe, out: str | Path) -> dict[str, Path]:
    """Generate a sample and write one ``<table>.parquet`` per table, each atomically."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, data in generate_tables(recipe).items():
        target, temporary = folder / f"{name}.parquet", folder / f".{name}.parquet.tmp"
        try:
            pq.write_table(data, temporary, compression="zstd", compression_level=9)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        written[name] = target
    return written


def _account_market(
    recipe: SampleRecipe, path: MarketPath, series: HourlySeries, chains: ChainHistory, start: int
) -> AccountMarket:
    """The last ``account_days`` of the market, prices on their ticks."""
    hours = recipe.account_days * 24
    first = recipe.days * 24 - hours
    decimals = [market.decimals for market in path.traits]
    symbols = tuple(market.symbol for market in path.traits)
    shape = (hours, MINUTES, len(symbols))
    collateral = np.column_stack([np.round(chains.peg, 5), _volatile_collateral(series, symbols)])
    return AccountMarket(
        start_us=start + first * HOUR,
        price=series.price[first - 1 :],
        minute_high=rounded_prices(path.minutes.high[first * MINUTES :], decimals).reshape(shape),
        minute_low=rounded_prices(path.minutes.low[first * MINUTES :], decimals).reshape(shape),
        funding=funding_due(path, series, start)[first:],
        collateral_price=collateral[first - 1 :],
        maintenance_rate=np.array([market.maintenance_rate for market in path.traits]),
        symbols=symbols,
    )


def _volatile_collateral(series: HourlySeries, symbols: tuple[str, ...]) -> Float2D:
    """The price of ETH [n_hours, 1]; 1 when there is no such market (then nobody holds it)."""
    if "ETH" in symbols:
        return series.price[:, [symbols.index("ETH")]]
    return np.ones((len(series.price), 1))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sample of a recipe as ``<table>.parquet`` files; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m riskml.tables.synthetic",
        description="Generate a sample of every input table.",
        epilog="example: %(prog)s --recipe data/sample/recipe.toml --out data/sample",
    )
    parser.add_argument("--recipe", required=True, type=Path, help="TOML recipe of the sample")
    parser.add_argument("--out", required=True, type=Path, help="folder that receives <table>.parquet")
    options = parser.parse_args(arguments)
    try:
        written = write_files(SampleRecipe.load(options.recipe), options.out)
    except RiskmlError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for path in written.values():
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
