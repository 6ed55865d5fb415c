"""Any OpenAI-compatible endpoint as a suspect: what it can do (preflight), what it may cost, and its answers."""

from .budget import BudgetSpentError, EndpointError, Meter
from .capabilities import Capabilities, Way
from .completer import EndpointCompleter
from .http import RefusedError
from .preflight import preflight
from .requests import dry_run
from .settings import Endpoint

__all__ = [
    "BudgetSpentError",
    "Capabilities",
    "Endpoint",
    "EndpointCompleter",
    "EndpointError",
    "Meter",
    "RefusedError",
    "Way",
    "dry_run",
    "preflight",
]
