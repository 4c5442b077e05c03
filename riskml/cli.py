"""The command line: one verb per step from raw data to margin decisions.

This module only parses and reports. What a verb does is in ``cli_verbs`` (data, model,
scoring), ``cli_score`` and ``cli_lifecycle`` (replay, reports, releases), which import the tier that
they need when they run: ``riskml --help`` loads no data library.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from riskml import __version__, cli_lifecycle, cli_score, cli_search, cli_verbs
from riskml.cli_output import FAILED, REFUSED, USAGE, Outcome, Progress, outcome_json, print_outcome
from riskml.errors import BundleError, ConfigError, DataError, Problem, RiskmlError
from riskml.units import to_us

Run = Callable[[argparse.Namespace, Progress], Outcome]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it (128 + SIGINT)."""


class UsageError(Exception):
    """The command line is not usable; carries the usage text."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.format_usage().strip()}\n{self.prog}: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (0 ok, 1 failed or partial, 2 usage, 3 refused)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    started = time.monotonic()
    command = next((word for word in given if not word.startswith("-")), "")
    as_json = "--json" in given
    try:
        options = build_parser().parse_args(given)
        command = options.command
        with Progress(enabled=not options.quiet) as progress:
            outcome: Outcome = options.run(options, progress)
    except UsageError as error:
        outcome = _failure(error, "usage", USAGE)
    except RiskmlError as error:
        outcome = Outcome(problems=error.problems or (_problem(error),), exit_code=_exit_code(error))
        print(f"riskml {command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        outcome = _failure(error, "file-system", FAILED)
    except Exception as error:  # noqa: BLE001 - the boundary: --json promises an object on every end
        traceback.print_exc()
        outcome = _failure(error, "internal-error", FAILED, quiet=True)
    try:
        if as_json:
            print(outcome_json(outcome, command, time.monotonic() - started))
        elif outcome.exit_code == 0 or outcome.text:
            print_outcome(outcome)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough: riskml score ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.exit_code


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb; each one's help ends with an example."""
    parser = _Parser(
        prog="riskml",
        description="Volatility and liquidation risk of perpetual futures, from Parquet to margin.",
        epilog="First steps: riskml demo",
    )
    parser.add_argument("--version", action="version", version=f"riskml {__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="VERB", parser_class=_Parser)
    _add_data_verbs(verbs)
    _add_model_verbs(verbs)
    _add_scoring_verbs(verbs)
    _add_lifecycle_verbs(verbs)
    return parser


_Verbs = argparse._SubParsersAction  # the only name that argparse gives this type


def _verb(verbs: _Verbs[_Parser], name: str, run: Run, purpose: str, example: str) -> _Parser:
    parser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"Example: riskml {name} {example}".rstrip(),
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=run)
    return parser


def _range(parser: _Parser, *, required: bool = False) -> None:
    _time(parser, "--start", required=required, help="first time, UTC, inclusive")
    _time(parser, "--end", required=required, help="last time, UTC, exclusive")


def _time(parser: _Parser, name: str, *, metavar: str = "DATE", required: bool = False, help: str) -> None:
    parser.add_argument(name, type=_date, metavar=metavar, required=required, help=help)


def _date(text: str) -> str:
    try:
        to_us(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _jobs(parser: _Parser) -> None:
    parser.add_argument("--jobs", type=_positive, default=1, metavar="N", help="cores to use (default 1)")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is required, not '{text}'")
    return int(text)


def _add_data_verbs(verbs: _Verbs[_Parser]) -> None:
    ingest = _verb(
        verbs,
        "ingest",
        cli_verbs.ingest,
        "read a folder of source files into a lake",
        "vendor ../shared/data --lake data/lake",
    )
    ingest.add_argument("kind", choices=["vendor", "tables", "binance", "freqtrade"], help="layout of PATH")
    ingest.add_argument("path", metavar="PATH")
    ingest.add_argument("--lake", required=True)
    ingest.add_argument(
        "--market", choices=["um", "spot"], help="of binance klines whose folders do not say it"
    )
    check = _verb(
        verbs,
        "check",
        cli_verbs.check,
        "report every problem of a lake at once",
        "data/lake --json",
    )
    check.add_argument("lake", metavar="LAKE")
    build = _verb(
        verbs,
        "build",
        cli_verbs.build,
        "compute features and targets of a lake",
        "--lake data/lake --out runs/data --markets BTC,ETH --start 2020-01-01",
    )
    build.add_argument("--lake", required=True)
    build.add_argument("--out", metavar="DIR", required=True)
    build.add_argument("--interval", default="1h", help="bar length (default 1h)")
    build.add_argument("--markets", default="all", help="names separated by commas, or all (default)")
    build.add_argument(
        "--features", default="all", help="families or features separated by commas, or all (default)"
    )
    _range(build)
    build.add_argument(
        "--stress",
        default="",
        metavar="KEY=VALUE,...",
        help="what counts as stress, such as drop=0.05,window=4h (default: the evaluation protocol's)",
    )
    _jobs(build)
    build.add_argument("--resume", action="store_true", help="keep what an interrupted build finished")


def _add_model_verbs(verbs: _Verbs[_Parser]) -> None:
    fit = _verb(
        verbs,
        "fit",
        cli_verbs.fit,
        "train the market network on a built data set",
        "--data runs/data --recipe quick --out runs/first",
    )
    fit.add_argument("--data", metavar="DIR", required=True)
    fit.add_argument("--recipe", default="quick", help="quick, standard or a TOML file (default quick)")
    fit.add_argument("--out", metavar="RUN", required=True)
    _time(fit, "--fit-end", help="end of the fit part (default: 70 %% of the range)")
    _time(fit, "--calibrate-end", help="end of the calibrate part (default: 85 %%)")
    fit.add_argument("--seed", type=int, help="default: the recipe's")
    fit.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: SQLite beside RUN)")
    fit.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    _add_search(verbs)
    export = _verb(
        verbs,
        "export",
        cli_verbs.export,
        "write the ONNX bundle of a run",
        "runs/first --out models/first",
    )
    export.add_argument("run_dir", metavar="RUN")
    export.add_argument("--out", metavar="BUNDLE", required=True)
    export.add_argument("--evaluation", metavar="FILE", help="of the recipe's folds, for the model card")
    evaluate = _verb(
        verbs,
        "evaluate",
        cli_verbs.evaluate,
        "measure a bundle or a recipe against baselines",
        "--bundle models/first --lake data/lake --start 2025-01-01 --end 2025-10-01 --out first.json",
    )
    which = evaluate.add_mutually_exclusive_group(required=True)
    which.add_argument("--bundle")
    which.add_argument("--walk-forward", action="store_true", help="fit and test one bundle per fold")
    evaluate.add_argument("--recipe", help="for --walk-forward")
    evaluate.add_argument("--lake", required=True)
    _range(evaluate, required=True)
    evaluate.add_argument("--markets", help="names separated by commas (default: the bundle's)")
    evaluate.add_argument("--accounts", action="store_true", help="account measures as well")
    evaluate.add_argument("--portfolios", action="store_true", help="coverage of random books as well")
    evaluate.add_argument(
        "--baselines",
        choices=("light", "full"),
        default="light",
        help="full adds HARQ, GARCH(1,1)-t and boosting, with --bundle (default: light)",
    )
    evaluate.add_argument("--out", metavar="FILE", required=True)


def _add_search(verbs: _Verbs[_Parser]) -> None:
    search = _verb(
        verbs,
        "search",
        cli_search.search,
        "search a recipe's keys by many short fits; goes on where it was cut off",
        "--data runs/data --space space.toml --trials 40 --out runs/search",
    )
    search.add_argument("--data", metavar="DIR", required=True)
    search.add_argument("--space", metavar="FILE", required=True, help="keys and ranges, TOML")
    search.add_argument("--trials", type=_positive, default=30, metavar="N", help="in all (default 30)")
    search.add_argument("--out", metavar="DIR", required=True)
    search.add_argument("--storage", metavar="URI", help="Optuna storage (default: SQLite in DIR)")
    _time(search, "--fit-end", help="end of the fit part (default: 70 %% of the range)")
    _time(search, "--calibrate-end", help="end of the calibrate part (default: 85 %%)")
    search.add_argument("--seed", type=int, default=7, help="of the draws (default 7)")
    search.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: SQLite in DIR)")


def _add_scoring_verbs(verbs: _Verbs[_Parser]) -> None:
    score = _verb(
        verbs,
        "score",
        cli_score.score,
        "decide margin and action of every account at one time",
        "--bundle models/first --lake data/lake --at 2023-03-10T12:00",
    )
    score.add_argument("--bundle", required=True)
    score.add_argument("--lake", required=True)
    _time(score, "--at", metavar="TIME", required=True, help="UTC")
    score.add_argument("--breaker", metavar="FILE", help="circuit breaker policy, TOML (default: built in)")
    score.add_argument(
        "--plans", action="store_true", help="what to close, for accounts whose action is deleverage"
    )
    score.add_argument(
        "--prices", action="store_true", help="liquidation prices per position and leverage limits"
    )
    backfill = _verb(
        verbs,
        "backfill",
        cli_verbs.backfill,
        "score an account history into the margins table",
        "--bundle models/folds --lake data/lake --out runs/margins --resume",
    )
    backfill.add_argument(
        "--bundle", metavar="B|FOLDS", required=True, help="a bundle, or a folder of bundles"
    )
    backfill.add_argument("--lake", required=True)
    backfill.add_argument("--out", metavar="DIR", required=True)
    _range(backfill)
    backfill.add_argument("--engine", default="riskml", metavar="A,B", help="engines (default riskml)")
    _jobs(backfill)
    backfill.add_argument(
        "--breaker", metavar="FILE", help="circuit breaker policy, TOML (default: built in)"
    )
    backfill.add_argument(
        "--resume", action="store_true", help="keep finished dates whose inputs are unchanged"
    )
    backfill.add_argument("--dry-run", action="store_true", help="say what would be done")


def _add_lifecycle_verbs(verbs: _Verbs[_Parser]) -> None:
    _add_replay(verbs)
    _add_report(verbs)
    _add_release_verbs(verbs)


def _add_replay(verbs: _Verbs[_Parser]) -> None:
    replay = _verb(
        verbs,
        "replay",
        cli_lifecycle.replay,
        "run an account history through margin engines and count who is caught in time",
        "--margins runs/margins --lake data/lake --out runs/replay",
    )
    replay.add_argument(
        "what",
        nargs="?",
        choices=["margins", "labels"],
        default="margins",
        help="margins (default), or labels: when would each account, held still, be liquidated",
    )
    replay.add_argument("--margins", metavar="DIR", help="margins: what 'riskml backfill' wrote")
    replay.add_argument("--lake", required=True)
    replay.add_argument(
        "--out", metavar="PATH", required=True, help="margins: a folder; labels: a Parquet file"
    )
    _range(replay)
    replay.add_argument("--horizons", default="1h,8h,24h", metavar="A,B", help="labels: default 1h,8h,24h")
    replay.add_argument("--interval", default="auto", help="labels: bars of the path (default the finest)")
    replay.add_argument("--barrier", default="venue", help="labels: whose maintenance, venue or an engine")
    replay.add_argument(
        "--haircuts", choices=["policy", "none"], default="policy", help="labels: of collateral"
    )
    replay.add_argument("--fills", action="store_true", help="labels: fills where no venue has bars")
    replay.add_argument("--keep-marks", action="store_true", help="labels: start from the snapshot's marks")


def _add_report(verbs: _Verbs[_Parser]) -> None:
    report = _verb(
        verbs,
        "report",
        cli_lifecycle.report,
        "write a single-file page about a step's output",
        "bundle models/first --out first.html",
    )
    kinds = ["features", "drift", "bundle", "impulse", "run", "backfill", "replay"]
    report.add_argument("kind", choices=kinds)
    report.add_argument("path", metavar="PATH", nargs="?", help="what the step wrote (drift: the bundle)")
    report.add_argument("--bundle", help="instead of PATH (drift)")
    report.add_argument("--out", metavar="FILE", help="default: <kind>.html")
    only = "(features)"
    _time(report, "--fit-end", help=f"end of the fit part, as for fit {only}")
    _time(report, "--calibrate-end", help=f"end of the calibrate part; drift is judged behind it {only}")
    report.add_argument("--lake", help="features: adds its coverage by source and year; drift: required")
    _time(report, "--start", help="first time, UTC, inclusive (drift)")
    _time(report, "--end", help="last time, UTC, exclusive (drift)")


def _add_release_verbs(verbs: _Verbs[_Parser]) -> None:
    inspect = _verb(
        verbs, "inspect", cli_lifecycle.inspect, "verify a bundle and say what it is", "models/first"
    )
    inspect.add_argument("bundle", metavar="BUNDLE")
    diff = _verb(
        verbs, "diff", cli_lifecycle.diff, "say how two bundles differ", "models/first models/second"
    )
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")
    compare = _verb(
        verbs, "compare", cli_lifecycle.compare, "metrics of two runs side by side", "runs/a runs/b"
    )
    compare.add_argument("first", metavar="RUN")
    compare.add_argument("second", metavar="RUN")
    promote = _verb(
        verbs,
        "promote",
        cli_lifecycle.promote,
        "release a run's bundle if it beats the current release on the same rows",
        "runs/first --evaluation first.json",
    )
    promote.add_argument("run_dir", metavar="RUN")
    promote.add_argument("--evaluation", metavar="FILE", help="of RUN's bundle (default RUN/evaluation.json)")
    promote.add_argument(
        "--fold",
        metavar="BUNDLE",
        help="RUN refits this fold to later data; the evaluation is the fold's",
    )
    promote.add_argument("--models", metavar="DIR", default="models", help="releases (default models)")
    promote.add_argument("--name", help="name of the release (default perp-<interval>-<version>)")
    demo = _verb(
        verbs,
        "demo",
        cli_lifecycle.demo,
        "run every step on a generated market, or on a lake of your own",
        "--out demo-out",
    )
    demo.add_argument("--lake", help="use this lake instead of the generated one")
    demo.add_argument("--out", metavar="DIR", default="demo-out", help="default demo-out")
    demo.add_argument(
        "--short", action="store_true", help="a small market and a short fit, to see that it runs"
    )


def _exit_code(error: RiskmlError) -> int:
    if isinstance(error, BundleError):
        return REFUSED
    return USAGE if isinstance(error, ConfigError) else FAILED


def _problem(error: RiskmlError) -> Problem:
    code = {"BundleError": "bundle-refused", "ConfigError": "config", "ContractError": "contract"}
    return Problem(
        code.get(type(error).__name__, "data"),
        error.message,
        error.fix or "",
        error.table,
        error.market,
        error.row,
    )


def _failure(error: BaseException, code: str, exit_code: int, *, quiet: bool = False) -> Outcome:
    if not quiet:
        print(error, file=sys.stderr)
    return Outcome(problems=(Problem(code, str(error)),), exit_code=exit_code)


if __name__ == "__main__":
    raise SystemExit(main())
