"""Stress of chains and bridges: what is required while a chain is out of reach, or transfers crawl.

**Outage** of chain c for o hours (policy ``chain_outage_h``). What settles or lies on c can neither be
moved nor netted with the rest, so the account is two: what is *there*, and the *rest*. Positions there
cannot be closed for o hours either, so their law reaches o hours further, at every horizon h by
``sqrt((h + o) / h)``::

    stand_alone = requirement(there, reaching o hours further) + requirement(rest)
    requirement = max(requirement(whole book), stand_alone)

It is never below the stand-alone number by construction. A shortfall is the sum of what the parts lack
on their own: equity there does not help the rest, nor the other way round. Cash of an account with
positions in several parts may be in any; the one where it helps least counts.

**Several chains at once** are a part each: what is out of reach on one helps nothing on another. Requirement
and shortfall are also never below those of any of the outages alone. The sum of more parts can be lower:
moving collateral that is cut off from every position asks for nothing, as it backs nothing.

**Bridge latency**: the same book with every transfer as slow as :func:`slow_bridges` says; longer transfers
raise the haircut of remote collateral (:mod:`riskml.risk.haircuts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from riskml.arrays import AnyArray, Bool1D, Bool2D, Float1D, Float2D, Float3D
from riskml.errors import ConfigError
from riskml.facts import load_facts
from riskml.risk.accounts import AccountBook, Collateral, Orders, Positions
from riskml.risk.assess import INITIAL, MAINTENANCE
from riskml.risk.collateral import Conditions, chain_facts
from riskml.risk.decisions import decide
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn
from riskml.risk.margin import slow_scale
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.settlement import book_chains, on_chain
from riskml.units import HOUR, duration_us


@dataclass(frozen=True)
class ChainOutage:
    """Requirements with one chain out of reach; rows are (initial, maintenance)."""

    chain: AnyArray
    """[n_accounts] the chain that is out of reach: of :func:`worst_chain_outage`, each account's worst; of
    several at once, those that touch the account, joined by "+"; "" where none touches it."""
    requirement_usd: Float2D
    """[2, n_accounts] never below ``stand_alone_usd``, the requirement without an outage, nor that of any of
    several outages alone."""
    stand_alone_usd: Float2D
    """[2, n_accounts] what is on each chain out of reach and the rest, each on its own."""
    shortfall_usd: Float2D
    """[2, n_accounts] what the parts lack, each on its own equity."""


def chain_outage(
    book: AccountBook,
    chain: str | Sequence[str],
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    prices: Mapping[str, float] | None = None,
    maintenance_sigma: Float3D | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
    outage_h: float | None = None,
) -> ChainOutage:
    """Requirements of a book with ``chain`` out of reach.

    Parameters
    ----------
    chain : one, or several that are out of reach at once.
    outage_h : hours; None = the policy's ``chain_outage_h``.
    Others as in :func:`riskml.risk.decisions.decide`.

    Raises
    ------
    ConfigError : an outage that is negative, NaN or infinite; no chain at all.
    DataError : as in :func:`riskml.risk.decisions.decide`.
    """
    hours = policy.chain_outage_h if outage_h is None else outage_h
    if not (np.isfinite(hours) and hours >= 0.0):
        raise ConfigError(f"an outage lasts a finite number of hours, found {hours!r}", fix="write 1.0")
    # Whose maintenance liquidates does not enter a requirement, and parts of a book have no venue's own.
    policy = replace(policy, barrier="riskml")
    slow = slow_scale(forecast, None, 0.0, policy).sigma if maintenance_sigma is None else maintenance_sigma
    chains = [chain] if isinstance(chain, str) else list(dict.fromkeys(chain))
    if not chains:
        raise ConfigError("an outage of no chain at all is none", fix="name at least one chain")
    further = _reach_factor(forecast.horizons, hours)[None, :, None]

    def under(part: AccountBook, factor: AnyArray | float) -> Decisions:
        return decide(
            part,
            replace(forecast, sigma=forecast.sigma * factor),
            policy,
            law=law,
            ts=ts,
            prices=prices,
            maintenance_sigma=slow * factor,
            conditions=conditions,
            liquidity_usd=liquidity_usd,
        )

    there = [_Part.of(book, on_chain(book, name), lambda part: under(part, further)) for name in chains]
    whole = _requirements(under(book, 1.0))
    # Each outage alone, and all of them at once.
    outages = [[part] for part in there] + ([there] if len(there) > 1 else [])
    found = [_outage(book, parts, lambda part: under(part, 1.0)) for parts in outages]
    touched = np.stack([part.touched for part in there])
    return ChainOutage(
        _joined(chains, touched),
        np.max([whole, *(stand_alone for stand_alone, _ in found)], axis=0),
        found[-1][0],
        np.max([shortfall for _, shortfall in found], axis=0),
    )


@dataclass(frozen=True)
class _Part:
    """What of a book is on one chain or, of the rest, on none of those out of reach."""

    rows: tuple[Bool1D, Bool1D, Bool1D]
    """Positions, collateral and orders of the book that are in it."""
    holds: Bool1D
    """[n_accounts] has a position in it."""
    touched: Bool1D
    """[n_accounts] has a position or collateral in it."""
    required_usd: Float2D
    """[2, n_accounts]."""
    equity_usd: Float1D
    """[n_accounts] without cash."""

    @classmethod
    def of(
        cls, book: AccountBook, rows: tuple[Bool1D, Bool1D, Bool1D], score: Callable[[AccountBook], Decisions]
    ) -> _Part:
        decisions = score(_part(book, *rows))
        holds, touched = (np.zeros(len(book), dtype=np.bool_) for _ in range(2))
        holds[book.positions.account[rows[0]]] = True
        touched |= holds
        touched[book.collateral.account[rows[1]]] = True
        return cls(rows, holds, touched, _requirements(decisions), decisions.equity_usd)


def _outage(
    book: AccountBook, there: Sequence[_Part], score: Callable[[AccountBook], Decisions]
) -> tuple[Float2D, Float2D]:
    """Stand-alone number and shortfall [2, n_accounts] with some parts out of reach, and the rest."""
    positions, collateral, orders = (
        ~np.logical_or.reduce(masks) for masks in zip(*(p.rows for p in there), strict=True)
    )
    rest = _Part.of(book, (positions, collateral, orders), score)
    parts = [*there, rest]
    return np.sum([part.required_usd for part in parts], axis=0), _shortfall(book, parts)


def _joined(chains: Sequence[str], touched: Bool2D) -> AnyArray:
    """Names of the chains [n_chains, n_accounts] that touch each account, joined by "+"."""
    names = [
        "+".join(name for name, is_on in zip(chains, column, strict=True) if is_on) for column in touched.T
    ]
    return np.asarray(names, dtype=object)


def worst_chain_outage(
    book: AccountBook,
    forecast: Forecast,
    policy: MarginPolicy,
    *,
    law: AccountLawFn,
    ts: int,
    chains: Sequence[str] | None = None,
    prices: Mapping[str, float] | None = None,
    maintenance_sigma: Float3D | None = None,
    conditions: Conditions | None = None,
    liquidity_usd: Mapping[str, float] | None = None,
) -> ChainOutage:
    """The largest requirement and shortfall over the outage of each chain, one at a time.

    Parameters
    ----------
    chains : None = every chain of the book. Others as in :func:`chain_outage`.
    """
    every = [
        chain_outage(
            book,
            chain,
            forecast,
            policy,
            law=law,
            ts=ts,
            prices=prices,
            maintenance_sigma=maintenance_sigma,
            conditions=conditions,
            liquidity_usd=liquidity_usd,
        )
        for chain in (book_chains(book) if chains is None else chains) or ("",)
    ]
    lack = np.stack([found.shortfall_usd[INITIAL] for found in every])
    need = np.stack([found.requirement_usd[INITIAL] for found in every])
    # The chain without which most is lacking; where nothing lacks, that with the largest requirement.
    worst = np.where(lack.max(axis=0) > 0.0, lack.argmax(axis=0), need.argmax(axis=0))
    accounts = np.arange(len(book))
    return ChainOutage(
        np.stack([found.chain for found in every])[worst, accounts],
        np.max([found.requirement_usd for found in every], axis=0),
        np.max([found.stand_alone_usd for found in every], axis=0),
        np.max([found.shortfall_usd for found in every], axis=0),
    )


def slow_bridges(conditions: Conditions, ts: int, hours: float | None = None) -> Conditions:
    """The conditions with every transfer ``hours`` slower; None = by each chain's canonical exit.

    Never faster than they are. Chains without facts already count with the longest exit.

    Raises
    ------
    ConfigError : a negative delay.
    """
    if hours is not None and not hours >= 0.0:
        raise ConfigError(f"a delay is a number of hours >= 0, found {hours!r}", fix="write 24.0")
    delays = dict(conditions.transfer_delay_h)
    for chain in load_facts("chains")["chain"]:
        facts = chain_facts(chain, ts)
        if facts is None:
            continue
        exits = max(float(facts["exit_s"]) - float(facts["transfer_s"]), 0.0) / 3600.0
        # NaN, no end known, stays.
        delays[chain] = float(np.maximum(delays.get(chain, 0.0), exits if hours is None else hours))
    return replace(conditions, transfer_delay_h=delays)


def _reach_factor(horizons: Sequence[str], outage_h: float) -> Float1D:
    """How much further the law reaches over h + o than over h [n_horizons]."""
    hours = np.asarray([duration_us(horizon) / HOUR for horizon in horizons])
    return np.asarray(np.sqrt((hours + outage_h) / hours))


def _requirements(decisions: Decisions) -> Float2D:
    rows = [np.empty(0), np.empty(0)]
    rows[INITIAL], rows[MAINTENANCE] = decisions.initial_margin_usd, decisions.maintenance_margin_usd
    return np.stack(rows)


def _shortfall(book: AccountBook, parts: Sequence[_Part]) -> Float2D:
    """What the parts lack [2, n_accounts], with cash in the one where it helps least.

    Cash is where a position needs it: in any part that has one, in the last part (the rest) where none has.
    """
    nowhere = ~np.any([part.holds for part in parts], axis=0)
    without = [np.maximum(part.required_usd - part.equity_usd, 0.0) for part in parts]
    worst = np.full((2, len(book)), -np.inf)
    for number, part in enumerate(parts):
        with_cash = np.maximum(part.required_usd - part.equity_usd - book.cash_usd, 0.0)
        lacking = [with_cash if place == number else usd for place, usd in enumerate(without)]
        allowed = part.holds | (nowhere if number == len(parts) - 1 else False)
        worst = np.where(allowed, np.maximum(worst, np.sum(lacking, axis=0)), worst)
    return worst


def _part(book: AccountBook, positions: Bool1D, collateral: Bool1D, orders: Bool1D) -> AccountBook:
    """The same accounts with some of their rows, without cash and without a venue's own maintenance."""
    held, backing, placed = book.positions, book.collateral, book.orders
    nothing = np.zeros(len(book))
    return replace(
        book,
        cash_usd=nothing,
        maintenance_margin_usd=np.full(len(book), np.nan),
        positions=Positions(*(getattr(held, name)[positions] for name in Positions.__dataclass_fields__)),
        collateral=Collateral(
            *(getattr(backing, name)[collateral] for name in Collateral.__dataclass_fields__)
        ),
        orders=Orders(*(getattr(placed, name)[orders] for name in Orders.__dataclass_fields__)),
    )
