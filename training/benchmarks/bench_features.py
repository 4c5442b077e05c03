"""The whole catalogue over years of minutes, beside pandas, Polars and the memory.

    python training/benchmarks/bench_features.py [--quick] [--bars N] [--markets N] [--engines ours,pandas]

Random inputs are written to a folder once; each engine reads them in a process of its own, one after the
other, and hands every value to the same digest. Reading inputs is not timed. The floor is the time to read
every input and write every output once, at the traffic of a plain copy in the same run. Ours and Polars may
use ``--threads`` cores; pandas uses one, as it does. Prints a table; the last line is the result as JSON,
which is also written to training/results/bench_features.json unless the run is ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench_inputs import INTERVAL, InputFolder, write_inputs
from digest import Digest

from riskml.features.catalog import CATALOG
from riskml.features.nodes import Rolling, walk

ENGINES = ("ours", "pandas", "polars")
RESULT = Path(__file__).resolve().parents[1] / "results" / "bench_features.json"
QUICK_BARS = 100_000
GIB = 2.0**30


def main() -> None:
    """Measure, print and write."""
    options = _options()
    if options.child:
        run_child(options.child, InputFolder(options.folder), options.threads)
        return
    with tempfile.TemporaryDirectory(prefix="bench-features-", dir=options.folder) as name:
        folder = write_inputs(Path(name), options.bars, options.markets)
        result = measure(folder, options.engines.split(","), options.threads)
    print_table(result)
    if not options.quick:
        RESULT.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_BARS} bars; the result is not kept")
    parser.add_argument("--bars", type=int, help="bars per market (default: 1,000,000)")
    parser.add_argument("--markets", type=int, default=20, help="markets (default: 20)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="which, and in which order")
    parser.add_argument("--threads", type=int, default=2, help="cores that an engine may use (default: 2)")
    parser.add_argument(
        "--folder", type=Path, help="where inputs are written (default: the temporary folder)"
    )
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.bars = options.bars or (QUICK_BARS if options.quick else 1_000_000)
    return options


def measure(folder: InputFolder, engines: list[str], threads: int) -> dict[str, Any]:
    """Every engine in turn, then the comparison."""
    n_cells = folder.n_bars * len(folder.markets) * len(CATALOG)
    bandwidth = copy_bandwidth(threads)
    n_bytes = 8 * (folder.n_values + n_cells)
    runs = {engine: in_child(engine, folder, threads) for engine in engines}
    result: dict[str, Any] = {
        "benchmark": "features",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python {' '.join(sys.argv)}",
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("numpy", "numba", "pandas", "polars", "riskml")},
        "n_bars": folder.n_bars,
        "n_markets": len(folder.markets),
        "n_features": len(CATALOG),
        "interval": INTERVAL,
        "threads": threads,
        "traffic_gb_per_s": round(bandwidth / 1e9, 2),
        "traffic_gb": round(n_bytes / 1e9, 2),
        "floor_s": round(n_bytes / bandwidth, 3),
        "engines": runs,
    }
    if "ours" in runs:
        ours = runs["ours"]["seconds"]
        result["ratio"] = {
            name: round(run["seconds"] / ours, 2) for name, run in runs.items() if name != "ours"
        }
        result["over_floor"] = round(ours / result["floor_s"], 1)
        result["agreement"] = {name: agreement(folder, name) for name in runs if name != "ours"}
    return result


def in_child(engine: str, folder: InputFolder, threads: int) -> dict[str, Any]:
    """Run an engine in a fresh process and read back its time and its peak memory."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), str(threads))
    arguments = ["--child", engine, "--folder", str(folder.path), "--threads", str(threads)]
    print(f"{engine} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=os.environ | limits,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_child(engine: str, folder: InputFolder, threads: int) -> None:
    """One engine: its values go into a digest, its cost to standard output."""
    digest = Digest(folder.n_bars, len(folder.markets), len(CATALOG))
    if engine == "ours":
        from ours import run_ours

        run_ours(folder, digest, threads)
    elif engine == "pandas":
        from pandas_peer import PandasPeer

        peer = PandasPeer(folder)
        digest.start()
        peer.run(digest)
    else:
        from polars_peer import PolarsPeer

        peer_of_polars = PolarsPeer(folder)
        digest.start()
        peer_of_polars.run(digest)
    seconds = digest.seconds
    np.savez(folder.path / f"{engine}.npz", counts=digest.counts, sums=digest.sums, samples=digest.samples)
    n_cells = folder.n_bars * len(folder.markets) * len(CATALOG)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "peak_gib": round(peak_bytes() / GIB, 2),
                "ns_per_value": round(1e9 * seconds / n_cells, 2),
                "values": int(digest.counts.sum()),
            }
        )
    )


def peak_bytes() -> float:
    """Most memory that this process has held; unlike ``ru_maxrss`` it forgets what was there before exec."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError("the peak memory is read from /proc/self/status, which holds no VmHWM here")


def copy_bandwidth(threads: int, n_bytes: int = 1 << 29, times: int = 5) -> float:
    """Memory traffic of a copy, bytes read and bytes written per second, best of a few."""
    source = [np.ones(n_bytes // 8 // threads) for _ in range(threads)]
    target = [np.empty_like(part) for part in source]
    best = np.inf
    for _ in range(times):
        workers = [threading.Thread(target=np.copyto, args=pair) for pair in zip(target, source, strict=True)]
        begun = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - begun)
    return 2 * n_bytes / best


def agreement(folder: InputFolder, engine: str) -> dict[str, Any]:
    """How a peer's sampled values compare with ours: features that agree, and why others do not."""
    with np.load(folder.path / "ours.npz") as ours, np.load(folder.path / f"{engine}.npz") as peer:
        mine, theirs = ours["samples"], peer["samples"]
    scale = np.nanmax(np.abs(mine), axis=(0, 1), initial=1e-300, where=np.isfinite(mine))
    close = np.isclose(mine, theirs, rtol=1e-6, atol=1e-7 * scale, equal_nan=True)
    differ: dict[str, float] = {}
    endless: dict[str, float] = {}
    for place, feature in enumerate(CATALOG):
        if close[:, :, place].all():
            continue
        share = round(float((~close[:, :, place]).mean()), 4)
        weighted = any(
            isinstance(node, Rolling) and node.statistic == "ewm_mean" for node in walk(feature.expr)
        )
        (endless if weighted else differ)[feature.name] = share
    return {
        "equal": len(CATALOG) - len(differ) - len(endless),
        "endless_ewm": list(endless),
        "differ": differ,
        "finite": round(float(np.isfinite(mine).mean()), 4),
    }


def print_table(result: dict[str, Any]) -> None:
    """For people."""
    size = f"{result['n_markets']} markets x {result['n_bars']:,} bars x {result['n_features']} features"
    print(f"{size}, {result['threads']} threads")
    moved = f"{result['traffic_gb']} GB at {result['traffic_gb_per_s']} GB/s"
    print(f"floor   {result['floor_s']:>10.2f} s ({moved})")
    for name, run in result["engines"].items():
        ratio = result.get("ratio", {}).get(name)
        beside = f"{ratio:>8.2f} x ours" if ratio else ""
        line = f"{run['seconds']:>10.2f} s {run['ns_per_value']:>9.2f} ns/value {run['peak_gib']:>7.2f} GiB"
        print(f"{name:<8}{line}{beside}")
    for name, found in result.get("agreement", {}).items():
        print(f"{name}: {found}")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
