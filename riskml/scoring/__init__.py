"""The live path: load a bundle, observe rows, forecast and decide; numpy and onnxruntime only."""

from riskml.risk.accounts import AccountBook
from riskml.risk.breaker import BreakerState
from riskml.risk.breaker_policy import BreakerPolicy
from riskml.risk.forecast import Forecast
from riskml.risk.outcome import Decisions
from riskml.risk.policy import MarginPolicy
from riskml.scoring.account_engine import LeverageLimits
from riskml.scoring.observe import Observed
from riskml.scoring.scorer import Scorer
from riskml.scoring.session import LoadedBundle, load_bundle

__all__ = [
    "AccountBook",
    "BreakerPolicy",
    "BreakerState",
    "Decisions",
    "Forecast",
    "LeverageLimits",
    "LoadedBundle",
    "MarginPolicy",
    "Observed",
    "Scorer",
    "load_bundle",
]
