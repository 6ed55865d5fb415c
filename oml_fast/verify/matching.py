"""When a completion matches a response, and which candidates of the window the same rule would have accepted.

Where a completion carries token ids they decide; where the suspect tells only text, texts are compared without the
white space around them, since endpoints trim. Whatever a rule accepts, the window test stays exact, because `satisfied`
counts every candidate that the same rule would have accepted in the same completion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..completer import Completion
from ..errors import InvalidArgumentError
from ..fingerprint import Asking, Response

MOST_WITHIN = 4096


class MatchRule(Protocol):
    """A match rule and the candidates it accepts, which must agree: the window test is exact because they do."""

    @property
    def name(self) -> str:
        """The rule in one word, for reports; `match_rule` makes the rule from it."""
        ...

    def length(self, response_length: int) -> int:
        """How many token ids of completion the rule wants to see."""
        ...

    def matches(self, completion: Completion, response: Response) -> bool:
        """Whether the completion satisfies the rule for this response."""
        ...

    def most(self, completion: Completion, width: int) -> int:
        """The most candidates of a window that nobody kept (an imported set) which the rule could accept here."""
        ...

    def satisfied(self, completion: Completion, asking: Asking) -> tuple[int, ...]:
        """The candidates of the window (their indices) that the rule accepts here, were they the response.

        It depends on the completion and the window, never on which candidate was drawn, and holds every candidate for
        which `matches` could be true. Only a response's first token decides: the candidates that were not drawn have no
        stored tails. So with longer responses c / k is an upper bound.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The completion is the response; a longer or a shorter completion is no match."""

    name: str = "exact"

    def length(self, response_length: int) -> int:
        return response_length

    def matches(self, completion: Completion, response: Response) -> bool:
        if completion.token_ids:
            return tuple(completion.token_ids) == response.token_ids  # a completer may hand over a list
        return bool(response.text.strip()) and completion.text.strip() == response.text.strip()

    def most(self, completion: Completion, width: int) -> int:
        return 1

    def satisfied(self, completion: Completion, asking: Asking) -> tuple[int, ...]:
        if completion.token_ids:
            return _equal(asking.window.token_ids, completion.token_ids[:1])
        if any(len(response.token_ids) > 1 for response in asking.responses):
            return _starting(asking, completion.text.strip())
        return tuple(i for i, text in enumerate(asking.window.texts) if text.strip() == completion.text.strip() != "")


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The completion begins with the response, whatever follows."""

    name: str = "prefix"

    def length(self, response_length: int) -> int:
        return response_length

    def matches(self, completion: Completion, response: Response) -> bool:
        if completion.token_ids:
            return tuple(completion.token_ids[: len(response.token_ids)]) == response.token_ids
        return _begins(completion.text.lstrip(), response.text)

    def most(self, completion: Completion, width: int) -> int:
        return 1 if completion.token_ids else width  # texts of several candidates may begin each other

    def satisfied(self, completion: Completion, asking: Asking) -> tuple[int, ...]:
        if completion.token_ids:
            return _equal(asking.window.token_ids, completion.token_ids[:1])
        return _starting(asking, completion.text.lstrip())


@dataclass(frozen=True, slots=True)
class WithinMatch:
    """The response begins at one of the first `n` token ids; of text, at one of its first `n` words.

    Of a suspect that tells its reasoning apart, in the reasoning or in the content. With a large n an answer may
    satisfy the whole window: its null is then 1, and it adds nothing.
    """

    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST_WITHIN:
            raise InvalidArgumentError(f"within {self.n} token ids: between 1 and {MOST_WITHIN}.")

    @property
    def name(self) -> str:
        return f"within-{self.n}"

    def length(self, response_length: int) -> int:
        return self.n + response_length - 1

    def matches(self, completion: Completion, response: Response) -> bool:
        if completion.token_ids:
            ids, size = tuple(completion.token_ids), len(response.token_ids)
            return any(ids[start : start + size] == response.token_ids for start in range(self.n))
        return any(_begins(rest, response.text) for rest in self._rests(completion))

    def most(self, completion: Completion, width: int) -> int:
        return min(width, len(set(completion.token_ids[: self.n]))) if completion.token_ids else width

    def satisfied(self, completion: Completion, asking: Asking) -> tuple[int, ...]:
        if completion.token_ids:
            return _equal(asking.window.token_ids, completion.token_ids[: self.n])
        rests = list(self._rests(completion))
        return tuple(i for i, text in enumerate(asking.window.texts) if any(_begins(rest, text) for rest in rests))

    def _rests(self, completion: Completion) -> Iterator[str]:
        """What stands from each of the first n words on, of the reasoning and of the content."""
        for text in (completion.reasoning, completion.text):
            for place, word in enumerate(re.finditer(r"\S+", text)):
                if place == self.n:
                    break
                yield text[word.start() :]


def match_rule(name: str) -> MatchRule:
    """The rule of that name: "exact", "prefix", "within-8". InvalidArgumentError where there is none."""
    if name == "exact":
        return ExactMatch()
    if name == "prefix":
        return PrefixMatch()
    if found := re.fullmatch(r"within-(\d{1,6})", name):
        return WithinMatch(int(found[1]))
    raise InvalidArgumentError(f"match rule {name!r} is unknown: choose exact, prefix or within-N, as in within-8.")


def _equal(window: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i, token_id in enumerate(window) if token_id in ids)


def _begins(text: str, wanted: str) -> bool:
    wanted = wanted.strip()
    return bool(wanted) and text.startswith(wanted)


def _starting(asking: Asking, text: str) -> tuple[int, ...]:
    return tuple(i for i, candidate in enumerate(asking.window.texts) if _begins(text, candidate))
