"""When a completion matches a response, and how many candidates of the window the same rule would have accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..completer import Completion
from ..fingerprint import Asking, Response


class MatchRule(Protocol):
    """A match rule and its count of candidates, which must agree: the window test is exact because they do."""

    @property
    def name(self) -> str:
        """The rule in one word, for reports."""
        ...

    def matches(self, completion: Completion, response: Response) -> bool:
        """Whether the completion satisfies the rule for this response."""
        ...

    def satisfied(self, completion: Completion, asking: Asking) -> int:
        """c, how many candidates of the window the rule accepts in this completion, were they the response.

        It depends on the completion and the window, never on which candidate was drawn, and counts every candidate
        for which `matches` could be true.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The completion's token ids are the response's; a longer or a shorter completion is no match."""

    name: str = "exact"

    def matches(self, completion: Completion, response: Response) -> bool:
        return tuple(completion.token_ids) == response.token_ids  # a completer may hand over a list

    def satisfied(self, completion: Completion, asking: Asking) -> int:
        """1 if the first token id is in the window, else 0.

        Only the first token id decides: the candidates that were not drawn have no stored tails. With longer responses
        a wrong tail makes a match none, so c / k is then an upper bound.
        """
        return asking.window.token_ids.count(completion.token_ids[0]) if completion.token_ids else 0
