"""A risk engine in sixty lines: how the scorer is embedded.

    python serving/examples/risk_engine.py BUNDLE

Simulates two days of hourly bars and, within each hour, prices; a real engine feeds its own.
Everything runs in one thread and one process with numpy and onnxruntime only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from riskml.scoring import AccountBook, Scorer
from riskml.units import HOUR, to_us

HISTORY_BARS = 1_000
LIVE_BARS = 48


def simulate(symbols: list[str], n_bars: int, start: int) -> list[dict[str, np.ndarray]]:
    """Bars of every slot, as the columns of the ``bars`` table; seeded."""
    random = np.random.default_rng(1)
    close = np.full(len(symbols), 1_000.0)
    slots = []
    for number in range(n_bars):
        opened, move = close, random.normal(0.0, 0.006, len(symbols))
        close = opened * np.exp(move)
        ts = np.full(len(symbols), start + number * HOUR)
        slots.append(
            {
                "ts": ts,
                "known_at": ts,
                "venue": np.full(len(symbols), "sim"),
                "symbol": np.array(symbols),
                "interval": np.full(len(symbols), "1h"),
                "open": opened,
                "high": np.maximum(opened, close) * 1.001,
                "low": np.minimum(opened, close) * 0.999,
                "close": close,
                "volume": random.lognormal(2.0, 0.3, len(symbols)),
            }
        )
    return slots


def make_book(symbol: str, price: float) -> AccountBook:
    """One long at about eight times leverage, one short with stablecoins as collateral."""
    usdc = {"chain": "ethereum", "asset": "USDC", "amount": 2_500.0, "price_usd": 1.0}
    held = {"venue": "sim", "symbol": symbol, "mark_price": price, "entry_price": price}
    return AccountBook.from_dicts(
        [
            {"account_id": "long", "cash_usd": 1_250.0, "positions": [held | {"size": 10_000.0 / price}]},
            {
                "account_id": "short",
                "cash_usd": 0.0,
                "positions": [held | {"size": -9_000.0 / price}],
                "collateral": [usdc],
            },
        ]
    )


def main(bundle: Path) -> None:
    """Warm up from history, then run bar by bar and price by price."""
    scorer = Scorer.load(bundle)  # verifies every byte, the feature definitions and the golden cases
    slots = simulate(list(scorer.markets), HISTORY_BARS + LIVE_BARS, to_us("2025-06-01"))
    history = slots[:HISTORY_BARS]
    scorer.observe("bars", {name: np.concatenate([slot[name] for slot in history]) for name in history[0]})
    scorer.close_bar(int(history[-1]["ts"][0]))

    symbol = scorer.markets[0]
    book = make_book(symbol, float(history[-1]["close"][0]))
    actions: dict[str, str] = {}
    for slot in slots[HISTORY_BARS:]:
        closed = int(slot["ts"][0])
        for part in (1, 2, 3):  # prices within the bar re-mark the book; the forecast stays
            price = slot["open"][0] + (slot["close"][0] - slot["open"][0]) * part / 4
            scorer.on_price(symbol, float(price), closed - HOUR + part * HOUR // 4)
            report(scorer, book, actions)
        scorer.observe("bars", slot)
        scorer.close_bar(closed)
        report(scorer, book, actions)
    check(scorer, book, symbol)
    state = scorer.save_state(Path(bundle).parent / "scorer-state.npz")
    print(f"state saved to {state}")
    print(scorer.telemetry.to_prometheus(), end="")


def check(scorer: Scorer, book: AccountBook, symbol: str) -> None:
    """Ask for an order of the long, and print what state its market is in."""
    order = {"account_id": ["long"], "venue": ["sim"], "symbol": [symbol], "size": [1.0], "price": [1_000.0]}
    found = scorer.check_orders(book, order).to_dicts()[0]
    verdict = "allowed" if found["allowed"] else "refused"
    print(f"{symbol} is {found['market_state']}; one more is {verdict} because {', '.join(found['reasons'])}")


def report(scorer: Scorer, book: AccountBook, actions: dict[str, str]) -> None:
    """Print an account whenever its action changes."""
    for row in scorer.score(book).to_dicts():
        account, action = row["account_id"], row["action"]
        if actions.get(account) != action:
            actions[account] = action
            print(
                f"{row['ts']} {account:<6} {action:<10} equity {row['equity_usd']:>9.2f} maintenance "
                f"{row['maintenance_margin_usd']:>8.2f} p(8h) {row['p_liq_8h']:.2e} "
                f"because {', '.join(row['reasons'])}"
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} BUNDLE")
    main(Path(sys.argv[1]))
