"""What asking an endpoint costs, and how fast it goes: a budget that is never overdrawn, and a pace."""

from __future__ import annotations

import asyncio
import time

from ...completer import Completion
from ...errors import CompleterError
from .answers import counted
from .settings import Endpoint

_ROUNDING = 1e-9  # relative: a budget of exactly n requests must pay for n


class EndpointError(CompleterError):
    """The asking stopped. `answers`: those settled before, by their number in the call; on_answer had them."""

    answers: dict[int, Completion | None]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.answers = {}


class BudgetSpentError(EndpointError):
    """The next request could cost more than is left, or is one too many. It was not sent."""


class Meter:
    """Counts requests, token ids and money over preflight and asking together.

    Before a request its worst case is held back; after it, what it cost is taken from the answer's usage.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.requests = self.in_flight = self.prompt_tokens = self.completion_tokens = 0
        self.spent = self._held = 0.0
        self.pace = Pace(endpoint.requests_per_second)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for so many token ids."""
        prices = self._endpoint
        return (prompt_tokens * prices.price_per_1k_prompt + completion_tokens * prices.price_per_1k_completion) / 1000

    def fits(self, cost: float) -> bool:
        """Whether a request of this cost can start now. BudgetSpentError where none of it can ever."""
        budget, most = self._endpoint.budget, self._endpoint.max_requests
        if most is not None and self.requests >= most:
            raise BudgetSpentError(f"all {most} requests are made: raise the number of requests, and go on.")
        if budget is None or self.spent + self._held + cost <= budget * (1 + _ROUNDING):
            return True
        if not self.in_flight:
            raise BudgetSpentError(
                f"{self.spent:.6g} of the budget of {budget:g} is spent, and the next request may cost {cost:.6g}: "
                "raise the budget, and go on."
            )
        return False

    def hold(self, cost: float) -> None:
        self.requests += 1
        self.in_flight += 1
        self._held += cost

    def settle(self, held: float, cost: float) -> None:
        self.in_flight -= 1
        self._held = self._held - held if self.in_flight else 0.0
        self.spent += cost

    def price(self, usage: object, held: float) -> float:
        """What an answer cost by its `usage`; all that was held back where it tells none."""
        told = usage if isinstance(usage, dict) else {}
        prompt, completion = counted(told.get("prompt_tokens")), counted(told.get("completion_tokens"))
        if prompt is None or completion is None:
            return held
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        return self.cost(prompt, completion)


class Pace:
    """At most so many requests a second, evenly; None for no limit."""

    def __init__(self, requests_per_second: float | None) -> None:
        self._gap = 1 / requests_per_second if requests_per_second else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until the next request may go out."""
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._gap
        if at > now:
            await asyncio.sleep(at - now)

    def pause(self, seconds: float) -> None:
        """Nothing goes out for so long: the server said so."""
        self._next = max(self._next, time.monotonic() + seconds)
