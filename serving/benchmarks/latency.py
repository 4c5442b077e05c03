"""How long one bar and one book take, against the cost of calling onnxruntime at all.

    python serving/benchmarks/latency.py BUNDLE [--out FILE.json]

Absolute times drift with the machine and its neighbours, so every figure also comes as a
ratio to an identity graph that is timed in turn with it in the same run: the floor of any
design that calls onnxruntime. Prints a table; the last line is the result as JSON, which is
also written to serving/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from riskml import __version__
from riskml.risk.assess import MarketLaw
from riskml.risk.policy import MarginPolicy
from riskml.scoring import AccountBook, Scorer
from riskml.units import to_us

# onnx is a training dependency; these are the bytes of a graph y = Identity(x), float32 [1].
IDENTITY = bytes.fromhex(
    "080a3a3e0a100a017812017922084964656e7469747912086964656e746974795a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001014"
)
HISTORY_BARS = 4_600
BOOK_SIZES = (1, 100, 1_000, 10_000)
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file (default: serving/results/latency-<date>.json)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per figure (default: 2)")
    options = parser.parse_args()
    result = measure(options.bundle, options.seconds)
    out = options.out or RESULTS / f"latency-{result['date'][:10]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, row in result["figures"].items():
        times = f"p50 {row['p50_us']:>10.1f} us  p99 {row['p99_us']:>10.1f} us"
        print(f"{name:<24} {times}  {row['ratio']:>8.1f} x identity")
    print(json.dumps(result))


def measure(bundle: Path, seconds: float) -> dict[str, Any]:
    """Every figure of one run."""
    scorer, slots = warm_scorer(bundle)
    identity = identity_call()
    figures = {"identity call": timed(identity, identity, seconds)}
    bars = iter(slots[HISTORY_BARS:])

    def close() -> None:
        slot = next(bars)
        scorer.observe("bars", slot)
        scorer.close_bar(int(slot["ts"][0]))

    figures["close bar"] = timed(close, identity, seconds, most=len(slots) - HISTORY_BARS)
    for size in BOOK_SIZES:
        book = make_book(scorer.markets, size)
        figures[f"score {size}"] = timed(lambda book=book: scorer.score(book), identity, seconds)
    for size in BOOK_SIZES:
        figures[f"account graph {size}"] = timed(graph_call(scorer, size), identity, seconds)
    return {
        "benchmark": "latency",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load_1min": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
            "riskml": __version__,
        },
        "bundle_id": scorer.bundle.manifest.bundle_id,
        "n_markets": len(scorer.markets),
        "n_features": len(scorer.bundle.features),
        "figures": figures,
    }


def timed(
    call: Callable[[], object], identity: Callable[[], object], seconds: float, most: int = 100_000
) -> dict[str, float]:
    """Times of single calls, each followed by a warm identity call, until ``seconds`` have passed."""
    for _ in range(min(3, most // 2)):
        call()
        identity()
    ours, floor = [], []
    stop = time.perf_counter() + seconds
    while (time.perf_counter() < stop or len(ours) < 3) and len(ours) < most - 3:
        begin = time.perf_counter_ns()
        call()
        ours.append(time.perf_counter_ns() - begin)
        identity()  # brings its own code back into the caches, so that the next one is the floor
        begin = time.perf_counter_ns()
        identity()
        floor.append(time.perf_counter_ns() - begin)
    p50, p99 = np.percentile(ours, [50, 99]) / 1e3
    identity_p50 = float(np.median(floor)) / 1e3
    return {
        "n": len(ours),
        "p50_us": round(float(p50), 2),
        "p99_us": round(float(p99), 2),
        "identity_p50_us": round(identity_p50, 2),
        "ratio": round(float(p50) / identity_p50, 2),
    }


def identity_call() -> Callable[[], object]:
    """One call of an onnxruntime session that does nothing, with the scorer's settings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(IDENTITY, options, providers=["CPUExecutionProvider"])
    feed = {"x": np.zeros(1, dtype=np.float32)}
    return lambda: session.run(None, feed)


def graph_call(scorer: Scorer, n_accounts: int) -> Callable[[], object]:
    """The account graph alone on accounts of four legs."""
    forecast = scorer.forecast
    assert forecast is not None
    market = MarketLaw.make(forecast, forecast.sigma, MarginPolicy())
    random = np.random.default_rng(0)
    weight = random.normal(size=(n_accounts, 4))
    arguments = {
        "leg_market": random.integers(len(forecast.markets), size=(n_accounts, 4)),
        "leg_weight": weight / np.abs(weight).sum(axis=1, keepdims=True),
        "leg_mm_rate": np.full((n_accounts, 4), 0.01),
        "buffer_ratio": np.full(n_accounts, 0.1),
        "sigma": market.sigma,
        "nu": market.nu,
        "loadings": market.loadings,
        "quantile_table": market.quantiles,
    }
    return lambda: scorer.bundle.account(**arguments)


def warm_scorer(bundle: Path) -> tuple[Scorer, list[dict[str, np.ndarray]]]:
    """A scorer with a full lookback of simulated bars, and all the bars."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
    from risk_engine import simulate

    scorer = Scorer.load(bundle)
    slots = simulate(list(scorer.markets), HISTORY_BARS + 2_000, to_us("2024-01-01"))
    past = slots[:HISTORY_BARS]
    scorer.observe("bars", {name: np.concatenate([slot[name] for slot in past]) for name in past[0]})
    scorer.close_bar(int(past[-1]["ts"][0]))
    return scorer, slots


def make_book(markets: tuple[str, ...], n_accounts: int) -> AccountBook:
    """Accounts of four legs (or as many as there are markets), seeded."""
    random = np.random.default_rng(2)
    legs = min(4, len(markets))
    names = np.array([f"account-{row}" for row in range(n_accounts)])
    symbol = np.concatenate([random.permutation(markets)[:legs] for _ in range(n_accounts)])
    size = random.normal(0.0, 5.0, n_accounts * legs)
    return AccountBook.from_arrays(
        accounts={"account_id": names, "cash_usd": np.full(n_accounts, 20_000.0)},
        positions={
            "account_id": np.repeat(names, legs),
            "venue": np.full(len(symbol), "sim"),
            "symbol": symbol,
            "size": size,
            "mark_price": np.full(len(symbol), 1_000.0),
        },
    )


def commit() -> str:
    """The commit that was measured; empty outside a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return found.stdout.strip()


def processor() -> str:
    """The processor's name where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
