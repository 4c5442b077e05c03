"""Risk: the excursion law, accounts, margin, collateral and actions (numpy only)."""

from riskml.risk.accounts import AccountBook
from riskml.risk.decisions import decide
from riskml.risk.forecast import Forecast
from riskml.risk.law import AccountLawFn, LawOutput, account_law, numpy_law
from riskml.risk.outcome import ACTIONS, Contributions, Decisions
from riskml.risk.policy import MarginPolicy
from riskml.risk.reasons import REASONS, reason_names

__all__ = [
    "ACTIONS",
    "REASONS",
    "AccountBook",
    "AccountLawFn",
    "Contributions",
    "Decisions",
    "Forecast",
    "LawOutput",
    "MarginPolicy",
    "account_law",
    "decide",
    "numpy_law",
    "reason_names",
]
