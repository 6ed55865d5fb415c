"""What one key's answers are worth as evidence: outcomes whose chances under H0 are known exactly.

Given what the suspect answered, the draw is still uniform over each window. So every test sees a key as one draw among
outcomes of known chance, the most telling first: "a response matched" or not (count, window, forced choice), or the
groups of equal scores in which the responses lie (rank).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..completer import Completion
from ..errors import CompleterError
from ..fingerprint import Asking, Fingerprint, Settings
from .matching import ExactMatch, MatchRule
from .ranks import rank_steps
from .statistics import null_of_asking, null_of_key, rank_null

Answers = Mapping[str, Completion | None]  # by format; None where no answer came


@dataclass(frozen=True, slots=True)
class Trial:
    """`probs` are the outcomes' chances under H0, the most telling first; `outcome` is which of them was seen.

    aloud: of a rank, whether the suspect's answer was one of the candidates. Known before the draw is looked at, so
    that a bet may depend on it.
    """

    probs: tuple[float, ...]
    outcome: int
    aloud: bool = False

    @property
    def steps(self) -> tuple[tuple[tuple[float, ...], int], ...]:
        return ((self.probs, self.outcome),)

    @property
    def informative(self) -> bool:
        return len(self.probs) > 1


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where several responses lie: `places` are their groups among groups of equal scores of `sizes`, best first.

    All chances follow from the sizes (ranks.py). With one response the ranks are a Trial. aloud: as there.
    """

    sizes: tuple[int, ...]
    places: tuple[int, ...]
    aloud: bool = False

    @property
    def steps(self) -> tuple[tuple[tuple[float, ...], int], ...]:
        """The responses one after the other, best first, each given those before: the chances, and which was seen."""
        return rank_steps(self.sizes, self.places)

    @property
    def informative(self) -> bool:
        return len(self.sizes) > 1 and len(self.places) < sum(self.sizes)


@dataclass(frozen=True, slots=True)
class Reading:
    """One key's answers, read. `satisfied`: how many candidates they touch, in each format, or can touch at most."""

    trials: tuple[Trial | Ranks, ...]
    matched_formats: tuple[str, ...]
    satisfied: dict[str, int]
    answered: bool


def read(test: str, rule: MatchRule, settings: Settings, fingerprint: Fingerprint, answers: Answers) -> Reading:
    """The key's trials under the test: one for all its formats, but one each in the rank test.

    An unanswered asking is no match and carries no information: whether a suspect answers cannot depend on the draw.
    Raises CompleterError for scores that are none.
    """
    askings = {name: (fingerprint.askings[name], answer) for name, answer in answers.items() if answer is not None}
    forced = test == "forced_choice"
    accepted = {n: chosen(a, answer) if forced else rule.satisfied(answer, a) for n, (a, answer) in askings.items()}
    matched = tuple(
        name
        for name, (asking, answer) in askings.items()
        if (_drawn(asking, accepted[name]) if forced else _matched(rule, asking, answer, accepted[name]))
    )
    satisfied = {name: len(accepted.get(name, ())) for name in answers}
    answered = len(askings) == len(answers)
    if test == "rank":
        trials = tuple(rank_trial(a, answer, settings, bool(accepted[n])) for n, (a, answer) in askings.items())
        return Reading(trials, matched, satisfied, answered)
    for name, (asking, answer) in askings.items():
        if not asking.window.token_ids:  # an imported set: nobody knows the candidates, so the most that there can be
            satisfied[name] = rule.most(answer, settings.width)
    null = null_of_key(null_of_asking(c, settings.width, settings.responses_per_key) for c in satisfied.values())
    if test == "count":  # more only where one answer satisfies several candidates
        null = max(null, count_null(settings))
    return Reading((match_trial(null, bool(matched)),), matched, satisfied, answered)


def base_trials(test: str, settings: Settings, fingerprint: Fingerprint) -> tuple[Trial | Ranks, ...]:
    """The key's trials, had the suspect preferred candidates as the base model does, by the window's probabilities.

    Innocent descendants of the base model do. Where draws were selected so that its favourites are the responses, these
    trials convict as well. For the tests that see preferences among candidates; none for the others.
    """
    if test not in ("rank", "forced_choice"):
        return ()
    askings = fingerprint.askings
    of_base = {name: Completion((), "", scores=asking.window.probs) for name, asking in askings.items()}
    if test == "rank":
        return tuple(rank_trial(asking, of_base[name], settings) for name, asking in askings.items())
    favourites = {name: preferred(asking, of_base[name]) for name, asking in askings.items()}
    return read(test, ExactMatch(), settings, fingerprint, favourites).trials


def count_null(settings: Settings) -> float:
    """The most that one key matches by chance, with a rule that accepts at most one candidate in each format."""
    one = null_of_asking(1, settings.width, settings.responses_per_key)
    return null_of_key([one] * len(settings.formats))


def match_trial(null: float, matched: bool) -> Trial:
    """Matched or not, where P(match | the answers) = `null`. Certain either way, it says nothing."""
    assert matched <= (null > 0), "the match rule matched where it accepts no candidate"
    return Trial((null, 1 - null), 0 if matched else 1) if 0 < null < 1 else Trial((1.0,), 0)


def rank_trial(asking: Asking, answer: Completion, settings: Settings, aloud: bool = False) -> Trial | Ranks:
    """The groups of equal scores in which the responses lie, among the k candidates."""
    scores = answer.scores
    if scores is None or len(scores) != settings.width or any(math.isnan(score) for score in scores):
        raise CompleterError(
            f"the suspect gave no score for each of {settings.width} candidates: choose another --test."
        )
    levels = sorted(set(scores), reverse=True)
    sizes = tuple(scores.count(level) for level in levels)
    places = tuple(sorted(levels.index(scores[r.index]) for r in asking.responses if r.index is not None))
    if settings.responses_per_key > 1:
        return Ranks(sizes, places, aloud)
    return Trial(rank_null(sizes), places[0], aloud)


def chosen(asking: Asking, answer: Completion) -> tuple[int, ...]:
    """The candidates that a forced choice may be: one by its id; several where their texts differ in space alone."""
    window = asking.window
    if answer.token_ids:
        return tuple(i for i, token_id in enumerate(window.token_ids) if token_id == answer.token_ids[0])
    said = answer.text.strip()
    return tuple(i for i, text in enumerate(window.texts) if said and text.strip() == said)


def preferred(asking: Asking, answer: Completion | None) -> Completion | None:
    """What a forced choice would have answered that has these scores; the smaller id where two are equal."""
    if answer is None or answer.scores is None:
        return None
    ids = asking.window.token_ids
    best = max(range(len(ids)), key=lambda i: (answer.scores[i], -ids[i]))  # type: ignore[index]
    return Completion((ids[best],), asking.window.texts[best])


def _drawn(asking: Asking, indices: tuple[int, ...]) -> bool:
    return any(response.index in indices for response in asking.responses)


def _matched(rule: MatchRule, asking: Asking, answer: Completion, accepted: tuple[int, ...]) -> bool:
    """A response counts only where its own candidate is among those that the rule accepts, else the null were wrong.

    They can differ by text, where a response is not spelt as its tokens are one by one; that is then no match.
    """
    counted = [response for response in asking.responses if response.index is None or response.index in accepted]
    return any(rule.matches(answer, response) for response in counted)
