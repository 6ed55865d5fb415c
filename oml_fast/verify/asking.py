"""How a test asks: which one the suspect allows, and one answer for each key and format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from ..completer import (
    CHOOSE,
    SCORE,
    TOP_SCORES,
    Candidates,
    Chooser,
    Completer,
    Completion,
    Prompt,
    Scorer,
    capabilities,
)
from ..errors import CompleterError, InvalidArgumentError
from ..fingerprint import Asking, Fingerprint, FingerprintSet
from .journal import Journal
from .matching import MatchRule
from .statistics import TESTS
from .trials import Answers

_BATCH = 256  # keys a call, where answers are kept: at most these are asked again after a kill


def choose_test(test: str, fingerprints: FingerprintSet, completer: Completer) -> tuple[str, str]:
    """The test, and why. "auto" takes the strongest that suspect and set allow. Raises InvalidArgumentError."""
    if test not in (*TESTS, "auto"):
        raise InvalidArgumentError(f"test {test!r} is unknown: choose auto, {', '.join(TESTS)}.")
    able = capabilities(completer)
    if test == "auto":
        test, why = _strongest(fingerprints, able)
    else:
        why = "chosen by the owner, before anything was asked."
    if test != "count" and not fingerprints.has_windows:
        raise InvalidArgumentError(
            f"this set has no windows (it was imported), which the {test} test needs: choose --test count."
        )
    if test == "rank" and not able & {SCORE, TOP_SCORES}:
        raise InvalidArgumentError(
            f"{completer.name} shows no log-probabilities, which the rank test needs: choose --test window."
        )
    if test == "forced_choice" and CHOOSE not in able:
        raise InvalidArgumentError(
            f"{completer.name} takes no constraint on the next token, which a forced choice needs: choose "
            "--test window."
        )
    return test, why


def _strongest(fingerprints: FingerprintSet, able: frozenset[str]) -> tuple[str, str]:
    if not fingerprints.has_windows:
        return "count", "the set has no windows: it was imported."
    if SCORE in able:
        return "rank", "the strongest where log-probabilities of all candidates can be seen."
    if CHOOSE in able:
        return "forced_choice", "the strongest where the next token can be constrained to the candidates."
    return "window", "the strongest where only answers can be seen."


class Asker:
    """Asks keys of one suspect as one test needs it, and keeps the answers in the journal."""

    def __init__(
        self, fingerprints: FingerprintSet, completer: Completer, test: str, rule: MatchRule, journal: Journal | None
    ) -> None:
        self._formats, self._completer, self._test, self._journal = (
            fingerprints.settings.formats,
            completer,
            test,
            journal,
        )
        self._length = rule.length(fingerprints.settings.response_length)
        self._by_number = {fingerprint.number: fingerprint for fingerprint in fingerprints}

    def ask(self, numbers: Sequence[int]) -> Iterator[tuple[Fingerprint, Answers]]:
        """Each fingerprint with its answers by format, in the order of `numbers`. Raises CompleterError."""
        size = _BATCH if self._journal is not None else max(1, len(numbers))
        for start in range(0, len(numbers), size):
            asked = [self._by_number[number] for number in numbers[start : start + size]]
            found = {name: self._ask_format(asked, name) for name in self._formats}
            for place, fingerprint in enumerate(asked):
                yield fingerprint, {name: answers[place] for name, answers in found.items()}

    def _ask_format(self, asked: Sequence[Fingerprint], name: str) -> list[Completion | None]:
        kept = [None if self._journal is None else self._journal.get(f.number, name) for f in asked]
        open_places = [place for place, answer in enumerate(kept) if answer is None]
        if not open_places:
            return kept
        wanted = [asked[place] for place in open_places]

        def keep(place: int, answer: Completion) -> None:
            if self._journal is not None:
                self._journal.keep(wanted[place].number, name, answer)

        with _listening(self._completer, keep):
            answers = self._call([(f, f.askings[name]) for f in wanted], name)
        for place, answer in enumerate(answers):
            kept[open_places[place]] = answer
            if answer is not None:
                keep(place, answer)
        return kept

    def _call(self, wanted: Sequence[tuple[Fingerprint, Asking]], name: str) -> Sequence[Completion | None]:
        prompts = [Prompt(asking.prompt_ids, fingerprint.key, name) for fingerprint, asking in wanted]
        candidates = [Candidates(asking.window.token_ids, asking.window.texts) for _, asking in wanted]
        longest = 1 if self._test == "forced_choice" else self._length
        if self._test == "rank":
            answers = cast(Scorer, self._completer).score(prompts, candidates, self._length)
        elif self._test == "forced_choice":
            answers = cast(Chooser, self._completer).choose(prompts, candidates)
        else:
            answers = self._completer.complete(prompts, self._length)
        if len(answers) != len(prompts):
            raise CompleterError(
                f"{self._completer.name} gave {len(answers)} completions for {len(prompts)} keys ({name}): "
                "it must give one for each, in order."
            )
        given = max((len(answer.token_ids) for answer in answers if answer is not None), default=0)
        if given > longest:
            raise CompleterError(
                f"{self._completer.name} gave {given} token ids where {longest} were asked for ({name})."
            )
        return answers


class _listening:  # noqa: N801 - used as `with _listening(...)`
    """For a block: a completer that tells each answer as it comes (`on_answer`) tells it to `listener`."""

    def __init__(self, completer: Any, listener: Any) -> None:
        self._completer, self._listener = completer, listener
        self._tells = hasattr(completer, "on_answer")

    def __enter__(self) -> None:
        if self._tells:
            self._completer.on_answer = self._listener

    def __exit__(self, *exc: object) -> None:
        if self._tells:
            self._completer.on_answer = None
