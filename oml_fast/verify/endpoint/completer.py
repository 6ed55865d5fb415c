"""A completer over any OpenAI-compatible endpoint. Synchronous from outside, asyncio inside; docs/endpoints.md."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ...completer import CHOOSE, SCORE, TOP_SCORES, Candidates, Completion
from ...errors import CompleterError, InvalidArgumentError
from . import answers, requests
from .budget import EndpointError, Meter
from .capabilities import Capabilities, Way
from .http import Http
from .settings import Endpoint

OnAnswer = Callable[[int, Completion], None]
_MOST_UNANSWERED = 8  # keys in a row without an answer: asking on would only spend more of them


@dataclass(frozen=True, slots=True)
class _Question:
    """One prompt's request, and how its answer is read."""

    path: str
    body: dict[str, Any]
    tokens: tuple[int, int]
    read: Callable[[dict[str, Any]], Completion | None]


class EndpointCompleter:
    """Asks an endpoint as its preflight says it can be asked: Completer, and Scorer and Chooser where it is one.

    on_answer(number in the call, completion) is called as each answer comes: keep what it gets, and nothing received
    is lost, whatever ends the asking (Ctrl-C, a budget, a fault). formats: those that will be asked (None: all that
    can be); raises CompleterError here, before a key is spent, where one of them cannot be asked as it was made.
    tokenizer_digest: of the set's tokenizer, where the preflight compared it. meter: the preflight's, so that one
    budget covers both. An endpoint that speaks only text is told the texts of Candidates. An empty answer is no answer:
    it is not asked for again, and its prompt counts as unanswered.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        capabilities: Capabilities,
        api_key: str | None = None,
        *,
        formats: Sequence[str] | None = None,
        tokenizer_digest: str = "",
        meter: Meter | None = None,
        on_answer: OnAnswer | None = None,
        progress: bool = False,
    ) -> None:
        self._endpoint, self._learnt, self._api_key = endpoint, capabilities, api_key
        self._digest, self._progress = tokenizer_digest, progress
        self.meter = meter or Meter(endpoint)
        self.on_answer = on_answer
        if formats is None:
            thinking = () if endpoint.reasoning_tokens else [way for way in capabilities.ways if way.thinks_first]
            able = capabilities.formats()
            formats = [name for name in able if capabilities.way_for(name) not in thinking] or able
        self._ways = {name: self._way(name) for name in formats}

    @property
    def name(self) -> str:
        paths = {("token ids" if way.takes_ids else "text", requests.PATHS[way.path]) for way in self._ways.values()}
        how = " and ".join(f"{path} by {form}" for form, path in sorted(paths))
        return f"{self.identity} ({how})"

    @property
    def identity(self) -> str:
        """Which suspect this is: the URL without its query, and the model's name."""
        return f"endpoint {self._endpoint.shown}, model {answers.printable(self._learnt.model)}"

    @property
    def tokenizer_digest(self) -> str:
        by_ids = any(way.takes_ids for way in self._ways.values())
        return self._digest if by_ids and self._learnt.same_tokenizer else ""

    @property
    def capabilities(self) -> frozenset[str]:
        """SCORE, else TOP_SCORES, and CHOOSE, where every format that will be asked allows it."""
        ways = list(self._ways.values())
        every = all(way.candidate_logprobs for way in ways)
        able = {
            SCORE: every,
            TOP_SCORES: all(way.logprobs for way in ways) and not every,
            CHOOSE: all(way.constraint for way in ways),
        }
        return frozenset(name for name, holds in able.items() if ways and holds)

    def complete(self, prompts: Sequence[Sequence[int]], length: int) -> list[Completion | None]:
        """One greedy completion of at most `length` token ids for each prompt. Raises EndpointError."""
        return self._ask([self._completion(prompt, length) for prompt in prompts])

    def score(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], length: int
    ) -> list[Completion | None]:
        """As `complete`, with the log-probability of each candidate that the endpoint lists; -inf for the others."""
        self._require(SCORE, TOP_SCORES)
        pairs = zip(prompts, candidates, strict=True)
        return self._ask([self._completion(prompt, length, among) for prompt, among in pairs])

    def choose(self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> list[Completion | None]:
        """The likeliest candidate as the next token of each prompt.

        An endpoint that steps outside the candidates all the same gives what it answered.
        """
        self._require(CHOOSE)
        return self._ask([self._choice(prompt, among) for prompt, among in zip(prompts, candidates, strict=True)])

    def _way(self, format_name: str) -> Way:
        way = self._learnt.way_for(format_name)
        if way.thinks_first and not self._endpoint.reasoning_tokens:
            raise CompleterError(
                f"{self._endpoint.shown} thinks before it answers: give it reasoning tokens (--reasoning-tokens), or "
                'switch thinking off (--extra-body \'{"chat_template_kwargs": {"enable_thinking": false}}\').'
            )
        return way

    def _way_of(self, prompt: Sequence[int]) -> Way:
        name = getattr(prompt, "format", "raw")
        if name not in self._ways:
            self._ways[name] = self._way(name)
        return self._ways[name]

    def _require(self, *either: str) -> None:
        if not self.capabilities.intersection(either):
            lacking = "lists no log-probabilities" if SCORE in either else "lets nobody constrain its answer"
            raise CompleterError(f"{self._endpoint.shown} {lacking}: choose another test.")

    def _completion(self, prompt: Sequence[int], length: int, candidates: Sequence[int] | None = None) -> _Question:
        way = self._way_of(prompt)
        texts = candidates.texts if isinstance(candidates, Candidates) else None
        if candidates is not None and not way.logprobs_by_id:
            self._require_texts(texts)
        asked = requests.prompt_of(way, prompt)
        body = requests.body(self._endpoint, self._learnt.model, way, asked, length)
        if candidates is not None:
            body |= requests.scoring(way, candidates)

        def read(raw: dict[str, Any]) -> Completion | None:
            answer = answers.read(raw, _echoed(way, asked))
            whole = not (way.echoes or answer.thought)  # else the ids are not those of the answer alone
            ids = answer.token_ids[:length] if whole else ()
            scores = answers.scores(answer, candidates, texts) if candidates is not None else None
            return _unless_empty(Completion(ids, answer.text, answer.reasoning, scores))

        tokens = requests.worst_tokens(way, asked), body[way.limit_field]
        return _Question(requests.PATHS[way.path], body, tokens, read)

    def _choice(self, prompt: Sequence[int], candidates: Sequence[int]) -> _Question:
        way = self._way_of(prompt)
        texts = candidates.texts if isinstance(candidates, Candidates) else None
        if way.chooses_texts:
            self._require_texts(texts)
        asked = requests.prompt_of(way, prompt)
        length = requests.choice_length(way)
        body = requests.body(self._endpoint, self._learnt.model, way, asked, length)
        body |= requests.choosing(way, candidates, texts or ())

        def read(raw: dict[str, Any]) -> Completion | None:
            answer = answers.read(raw, _echoed(way, asked))
            ids = () if way.chooses_texts else answer.token_ids[:1]
            return _unless_empty(Completion(ids, answer.text, answer.reasoning))

        tokens = requests.worst_tokens(way, asked), body[way.limit_field]
        return _Question(requests.PATHS[way.path], body, tokens, read)

    def _require_texts(self, texts: Sequence[str] | None) -> None:
        if texts is None:
            raise CompleterError(
                f"{self._endpoint.shown} speaks text, and the candidates have token ids only: "
                "give Candidates(ids, texts)."
            )

    def _ask(self, questions: Sequence[_Question]) -> list[Completion | None]:
        found: dict[int, Completion | None] = {}
        with tqdm(total=len(questions), desc="ask", unit="key", disable=None if self._progress else True) as bar:
            try:
                run(self._ask_all(questions, found, bar))
            except _ListenerError as failed:
                raise failed.error from None
        return [found[number] for number in range(len(questions))]

    async def _ask_all(self, questions: Sequence[_Question], found: dict[int, Completion | None], bar: Any) -> None:
        """Every question once, `concurrency` at a time. What is in flight when one fails still gets its answer."""
        state = _State(iter(range(len(questions))))

        async with Http(self._endpoint, self._api_key, self.meter) as http:
            count = min(self._endpoint.concurrency, len(questions))
            workers = [asyncio.create_task(self._work(http, questions, found, state, bar)) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if state.failure is not None:
            state.failure.answers = dict(found)
            raise state.failure

    async def _work(
        self, http: Http, questions: Sequence[_Question], found: dict[int, Completion | None], state: _State, bar: Any
    ) -> None:
        for number in state.left:
            question = questions[number]
            try:
                raw = await http.ask(question.path, question.body, question.tokens)
            except EndpointError as error:
                state.failure = state.failure or error
                return
            completion = None if raw is None else question.read(raw)
            if completion is not None:
                self._tell(number, completion)
            found[number] = completion
            bar.update()
            state.unanswered = state.unanswered + 1 if completion is None else 0
            if state.unanswered >= _MOST_UNANSWERED:
                fault = f"after {self._endpoint.retries} retries, the last because {http.last_fault}"
                state.failure = state.failure or EndpointError(
                    f"{self._endpoint.shown} stopped answering: {state.unanswered} keys in a row got no answer "
                    f"{fault if raw is None else 'but an empty one'}. Go on when it answers."
                )
            if state.failure is not None:
                return

    def _tell(self, number: int, completion: Completion) -> None:
        try:
            if self.on_answer is not None:
                self.on_answer(number, completion)
        except BaseException as error:  # Ctrl-C too: an event loop that it tears down leaves tasks behind
            raise _ListenerError(error) from error


class _ListenerError(Exception):
    """on_answer raised: the asking ends at once, and its caller gets what was raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


@dataclass(slots=True)
class _State:
    """What the workers of one call share."""

    left: Iterator[int]
    failure: EndpointError | None = None
    unanswered: int = 0


def run(work: Any) -> Any:
    """Run a coroutine to its end, from code that is not asynchronous; Ctrl-C cancels it and is raised."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    work.close()
    raise InvalidArgumentError("an event loop runs in this thread: ask from another, with asyncio.to_thread.")


def _unless_empty(made: Completion) -> Completion | None:
    """None for a completion that tells nothing: neither ids nor text, reasoning or the score of any candidate."""
    listed = any(score > -math.inf for score in made.scores or ())
    return made if listed or made.token_ids or made.text or made.reasoning else None


def _echoed(way: Way, asked: str | Sequence[int]) -> str:
    """The prompt, where this way sends it back before the answer."""
    return asked if way.echoes and isinstance(asked, str) else ""
