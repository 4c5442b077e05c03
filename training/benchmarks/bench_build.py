"""The build of every market of a lake, as a user runs it, timed.

    python training/benchmarks/bench_build.py LAKE [--interval 1h] [--jobs 2]

Starts ``riskml build --markets all`` in a process of its own, so that imports, kernels and workers
count, into a temporary folder. Run it twice for a warm disk. The last line is the result as JSON; it
is also written to training/results/bench_build.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULT = Path(__file__).resolve().parents[1] / "results" / "bench_build.json"
MIB = 2.0**20


def main() -> None:
    """Build, measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lake", type=Path)
    parser.add_argument("--interval", default="1h")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-build-") as folder:
        arguments = [
            "--lake",
            options.lake,
            "--out",
            Path(folder) / "dataset",
            "--interval",
            options.interval,
        ]
        command = [sys.executable, "-m", "riskml.cli", "build", *arguments, "--markets", "all"]
        command += ["--jobs", options.jobs, "--json"]
        begun = time.perf_counter()
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - begun
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "benchmark": "build",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python {' '.join(sys.argv)}",
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("numpy", "numba", "pyarrow", "riskml")},
        "interval": options.interval,
        "jobs": options.jobs,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib_of_a_process": round(used.ru_maxrss * 1024 / MIB),
        "dataset_mib": round(size / MIB),
        "counts": json.loads(done.stdout)["counts"],
    }
    RESULT.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
