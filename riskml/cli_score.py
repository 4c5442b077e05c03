"""The verb ``score``: decisions at one time, and what they mean for markets, positions and orders."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from riskml.cli_output import Outcome, Progress, text_table
from riskml.cli_verbs import SHOWN_ACCOUNTS, action_counts, decisions_text, optional_imports

if TYPE_CHECKING:
    from riskml.risk.deleverage import DeleveragePlan
    from riskml.risk.liquidation_price import LiquidationPrices
    from riskml.risk.outcome import Decisions
    from riskml.scoring.account_engine import LeverageLimits
    from riskml.scoring.scorer import Scorer

SHOWN_SIZE_USD = 10_000.0
"""Position size whose leverage limit the table of markets shows; ``--json`` has all sizes."""


def score(options: Namespace, progress: Progress) -> Outcome:
    """Decide margin and action of every account at one time, and say what state every market is in."""
    with optional_imports():
        from riskml.backfill.score_at import warm_scorer
        from riskml.tables.book import read_book
        from riskml.tables.lake import Lake
    from riskml.scoring.session import load_bundle
    from riskml.units import to_us

    bundle, lake, moment = load_bundle(options.bundle), Lake(options.lake), to_us(options.at)
    book = read_book(lake, moment)
    progress("warming the scorer up from the lake")
    scorer = warm_scorer(bundle, lake, moment, breaker=options.breaker)
    # Before score(), which remembers actions: plans and prices are of the same moment and memory.
    states = scorer.market_states_at(moment)
    extra: dict[str, Any] = {"market_states": states}
    texts: list[str] = []
    if options.plans:
        progress("planning what to close")
        plans = scorer.deleverage(book, ts=moment)
        extra["plans"] = [plan.to_dict() for plan in plans]
        texts.append(plans_text(plans))
    if options.prices:
        progress("finding liquidation prices and limits")
        found, limits = scorer.liquidation_prices(book, moment), scorer.leverage_limits(book, moment)
        extra |= {"liquidation_prices": found.to_dicts(), "leverage_limits": limits.to_dict()}
    decisions = scorer.score(book, moment)
    if options.prices:
        shown = shown_accounts(decisions)
        texts += [prices_text(found, shown), limits_text(limits, shown)]
    extra["decisions"] = decisions.to_dicts()
    counts = {"accounts": len(decisions), **action_counts(decisions), **state_counts(states)}
    text = "\n\n".join([decisions_text(decisions), states_text(states, scorer), *texts])
    return Outcome(text, (), counts, extra=extra)


def state_counts(states: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many markets are restricted and halted, where any is."""
    found = [row["state"] for row in states]
    counts = {"restricted_markets": found.count("restrict"), "halted_markets": found.count("halt")}
    return {name: count for name, count in counts.items() if count}


def shown_accounts(decisions: Decisions) -> set[str]:
    """The riskiest accounts: those of the table of decisions."""
    order = sorted(range(len(decisions)), key=lambda row: -float(decisions.risk_score[row]))
    return {str(decisions.account_id[row]) for row in order[:SHOWN_ACCOUNTS]}


def states_text(states: Sequence[dict[str, Any]], scorer: Scorer) -> str:
    """Markets that are not normal, with their reasons."""
    rows = [[row["market"], row["state"], ", ".join(row["reasons"])] for row in states]
    rows = [row for row in rows if row[1] != "normal"]
    title = f"{len(rows)} of {len(states)} markets not normal (stress and jumps at {scorer.breaker.horizon})"
    return f"{title}\n{text_table(['market', 'state', 'because'], rows)}" if rows else title


def plans_text(plans: Sequence[DeleveragePlan]) -> str:
    """Every step of every plan."""
    rows = [
        [
            plan.account_id,
            plan.pool,
            step.number,
            f"{step.venue}:{step.symbol}",
            f"{step.size:.6g}",
            f"{step.notional_usd:,.0f}",
            f"{step.equity_usd:,.0f}",
            f"{step.initial_margin_usd:,.0f}",
        ]
        for plan in plans
        for step in plan.steps
    ]
    lines = [f"{len(plans)} pools to deleverage"]
    if rows:
        headers = ["account", "pool", "step", "market", "trade", "USD", "equity after", "initial after"]
        lines.append(text_table(headers, rows))
    lines += [
        f"{plan.account_id} {plan.pool}: cancel its open orders first" for plan in plans if plan.cancel_orders
    ]
    lines += [
        f"{plan.account_id} {plan.pool}: nothing that may be closed restores the target"
        for plan in plans
        if not plan.feasible
    ]
    return "\n".join(lines)


def prices_text(found: LiquidationPrices, accounts: set[str]) -> str:
    """Positions of some accounts: mark, and where the market is when the account is liquidated."""
    rows = [
        [
            str(found.account_id[row]),
            f"{found.venue[row]}:{found.symbol[row]}",
            f"{found.mark[row]:.6g}",
            f"{found.standstill_price[row]:.6g}",
            *(f"{price:.6g}" for price in found.co_moving_price[row]),
        ]
        for row in range(len(found))
        if str(found.account_id[row]) in accounts
    ]
    headers = ["account", "market", "mark", "alone", *(f"together {horizon}" for horizon in found.horizons)]
    title = (
        "liquidation prices of these accounts (alone: the other markets stand still; together: they move as "
        "forecast; 0, inf and nan are never reached)"
    )
    return f"{title}\n{text_table(headers, rows)}"


def limits_text(limits: LeverageLimits, accounts: set[str]) -> str:
    """Largest leverage of a stand-alone position per market, and how far some accounts have gone."""
    found = limits.to_dict()
    markets = [
        [
            row["market"],
            row["state"],
            *(
                f"{limit['max_leverage']:.1f}"
                for limit in row["limits"]
                if limit["size_usd"] == SHOWN_SIZE_USD
            ),
        ]
        for row in found["markets"]
    ]
    used = [
        [
            row["account_id"],
            f"{row['effective_leverage']:.1f}",
            f"{row['leverage_limit']:.1f}",
            f"{100 * row['margin_used']:.0f} %",
        ]
        for row in found["accounts"]
        if row["account_id"] in accounts
    ]
    return "\n".join(
        [
            f"largest leverage of a position of {SHOWN_SIZE_USD:,.0f} USD that stands alone",
            text_table(["market", "state", "long", "short"], markets),
            "\nleverage of these accounts, and the largest at which their books meet initial margin",
            text_table(["account", "leverage", "limit", "margin used"], used),
        ]
    )
