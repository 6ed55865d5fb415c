"""The preflight: what an endpoint can do, learnt with plain sentences that anybody might send, before a key is spent.

Nothing is believed because a field was accepted: a constraint counts when an unlikely token comes back, token ids as
a prompt when the count of the prompt is theirs, log-probabilities when they are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import CompleterError
from . import answers, requests
from .answers import Answer, counted, printable
from .budget import Meter
from .capabilities import CONSTRAINTS, Capabilities, Way
from .completer import run
from .http import Http, RefusedError, TemporaryError
from .settings import Endpoint

Encode = Callable[[str], Sequence[int]]

# A question is answered, not repeated: two of them sent back in full are an echo. Both end so that a space follows.
QUESTIONS = ("How many legs do three spiders have together?", "Which month comes after the month of August?")
OPENINGS = ("The capital of France is the city of", "Water that is heated enough begins to", "Two and three make")
LETTER = "A"
OTHERS = ("Der Zug nach Köln fährt um 7:45 Uhr ab, und", "The recipe needs 250 g of flour, 3 eggs and")
UNLIKELY = (" purple", " window", " seven", " water", " green", " road", " table", " horse", " music")
_LENGTH = 8  # token ids of an answer in the preflight
_LOGPROBS = (100, 20, 5, 1)  # how many to ask for; what most servers allow at most
_RETRIES = 3
_NOT_HERE = (400, 404, 405, 422, 501)  # of a path
_REFUSALS = frozenset({400, 403, 404, 405, 413, 415, 422, 501})  # of a field


def preflight(
    endpoint: Endpoint, key: str | None = None, tokenizer_encode: Encode | None = None, meter: Meter | None = None
) -> Capabilities:
    """Ask about 20 throw-away prompts on /completions and, unless that takes token ids, as many on /chat/completions.

    Raises CompleterError that says what to check.

    key: the API key. tokenizer_encode: text -> token ids of the set's tokenizer, without special tokens; without it
    what needs known token ids is learnt only where the endpoint tells its own. meter: shared with the asking.
    """
    learnt: Capabilities = run(_preflight(endpoint, key, tokenizer_encode, meter or Meter(endpoint)))
    return learnt


async def _preflight(endpoint: Endpoint, key: str | None, encode: Encode | None, meter: Meter) -> Capabilities:
    before = meter.requests
    async with Http(endpoint, key, meter) as http:
        served = await _served(endpoint, http)
        model = _model(endpoint, served)
        paths = ("completions", "chat") if endpoint.kind == "auto" else (endpoint.kind,)
        probes = [_Probe(endpoint, http, model, served, path, encode) for path in paths]
        ways: list[Way] = []
        for probe in probes:
            if not any(way.takes_ids for way in ways):  # which asks every format as it was made
                ways += [way for way in (await probe.learn(),) if way is not None]
        if not ways:
            tried = " and ".join(f"{requests.PATHS[probe.path]} ({probe.status})" for probe in probes)
            raise CompleterError(
                f"{endpoint.shown} answers nothing at {tried}: check the URL (most end in /v1), its kind"
                f"{_list(served)}."
            )
        compared = [probe.same for probe in probes if probe.same is not None]
        answered_as = next((probe.answered_as for probe in probes if probe.answered_as), "")
    same = all(compared) if compared else None
    return Capabilities(endpoint.shown, model, served, answered_as, same, tuple(ways), meter.requests - before)


async def _served(endpoint: Endpoint, http: Http) -> tuple[str, ...]:
    """The models that the endpoint lists; none where it keeps no list."""
    try:
        listed = await http.get("/models")
    except RefusedError as error:
        if error.status not in _REFUSALS:
            raise
        return ()
    except TemporaryError as fault:
        if fault.reason.startswith("it answers"):
            return ()
        raise CompleterError(f"{endpoint.shown} cannot be reached: {fault.reason}. Check the URL.") from fault
    entries = listed.get("data") if isinstance(listed, dict) else None
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return tuple(name for name in names if isinstance(name, str))


def _model(endpoint: Endpoint, served: Sequence[str]) -> str:
    if endpoint.model:
        return endpoint.model
    if len(served) != 1:
        raise CompleterError(f"{endpoint.shown}: name the model{_list(served)}.")
    return served[0]


def _list(served: Sequence[str]) -> str:
    shown = ", ".join(map(printable, served[:20])) + (" and more" if len(served) > 20 else "")
    return f"; it serves {shown}" if served else " (the endpoint lists none)"


class _Probe:
    """Learns one path, a field at a time."""

    def __init__(
        self, endpoint: Endpoint, http: Http, model: str, served: Sequence[str], path: str, encode: Encode | None
    ) -> None:
        self._endpoint, self._http, self._model, self._served = endpoint, http, model, served
        self.path, self._encode, self._way = path, encode, Way(path)
        self.status = "no answer"
        self.same: bool | None = None
        self.answered_as = ""

    async def learn(self) -> Way | None:
        first = await self._first()
        if first is None:
            return None
        self.answered_as = first.model
        second = await self._say(QUESTIONS[1])
        again = await self._say(QUESTIONS[0])
        echoes = all(
            answer is not None and answer.text.strip().startswith(question)
            for question, answer in zip(QUESTIONS, (first, second), strict=True)
        )
        self._learnt(echoes=echoes, thinks_first=first.thought, streams_unasked=first.streamed)
        self._learnt(deterministic=None if again is None else _same(again, first))
        await self._ids()
        await self._template()
        if self.path == "completions":
            await self._prompt_ids()
        await self._trims()
        await self._streams()
        if not (self._way.echoes or self._way.thinks_first):  # then the first token is not the answer's
            await self._logprobs()
            await self._constraint()
        return self._way

    def _learnt(self, **facts: Any) -> None:
        self._way = replace(self._way, **facts)

    async def _first(self) -> Answer | None:
        """The first answer, with the spelling of the length and the temperature that this path accepts.

        It gets the room for thinking, if any was given: a template may open the block of thoughts unseen.
        """
        room = _LENGTH + (self._endpoint.reasoning_tokens if self.path == "chat" else 0)
        for limit_field, greedy in (
            ("max_tokens", True),
            ("max_completion_tokens", True),
            ("max_completion_tokens", False),
        ):
            self._learnt(limit_field=limit_field, greedy=greedy)
            try:
                raw = await self._post(QUESTIONS[0], {}, self._endpoint.retries, length=room)
            except RefusedError as error:
                if error.status not in _NOT_HERE:
                    raise
                self.status = str(error.status)
                if self._served and self._model not in self._served:
                    raise CompleterError(
                        f"{self._endpoint.shown} serves no model {self._model!r}{_list(self._served)}."
                    ) from error
                if error.status not in (400, 422):
                    return None
                continue
            if raw is None:
                raise CompleterError(
                    f"{self._endpoint.address('').partition('?')[0]}{requests.PATHS[self.path]} gives no answer: "
                    f"{self._http.last_fault}. Check the URL and the model, or ask again later."
                )
            return answers.read(raw)
        return None

    async def _ids(self) -> None:
        """How the endpoint can be made to return token ids."""
        for field in ("return_token_ids", "return_tokens_as_token_ids"):
            asked = replace(self._way, ids_field=field)
            answer = await self._say(QUESTIONS[0], way=asked)
            if answer is not None and answer.token_ids:
                self._way = asked
                return

    async def _template(self) -> None:
        """Token ids that are added to a text, and whether the set's tokenizer counts as the endpoint does."""
        letter = await self._say(LETTER)
        count = _prompt_tokens(letter)
        if count is not None:
            own = len(self._encode(LETTER)) if self._encode else 1
            self._learnt(template_tokens=max(0, count - own))
        if self._encode is None or count is None:
            return
        agree = []
        for text in (*QUESTIONS, *OTHERS):
            answer = await self._say(text)
            ids = tuple(self._encode(text))
            if answer is not None and answer.prompt_ids:
                agree.append(_holds(answer.prompt_ids, ids))
            elif (told := _prompt_tokens(answer)) is not None:
                agree.append(told - len(ids) == count - len(self._encode(LETTER)))
        self.same = all(agree) if agree else None

    async def _prompt_ids(self) -> None:
        """Whether token ids are taken as the prompt, and as they are: nothing added, nothing read as text."""
        ids = await self._known_ids()
        if not ids or self.same is False:
            return
        answer = await self._say(ids)
        counted = _prompt_tokens(answer)
        if answer is None or answer.text.strip().startswith(QUESTIONS[0]):
            return
        told = answer.prompt_ids
        self._learnt(takes_ids=told == ids if told else counted == len(ids))

    async def _known_ids(self) -> tuple[int, ...]:
        """Token ids of a question, from the set's tokenizer or from the endpoint."""
        if self._encode is not None:
            return tuple(self._encode(QUESTIONS[0]))
        answer = await self._say(QUESTIONS[0])
        return () if answer is None else answer.prompt_ids

    async def _trims(self) -> None:
        """Whether the space that follows an opening is cut off. A chat's answer begins with none anyway."""
        if self.path == "chat" or self._way.templated:
            return
        said = [answer.text for opening in OPENINGS if (answer := await self._say(opening)) is not None]
        said = [text.removeprefix(opening) for text, opening in zip(said, OPENINGS, strict=False)]
        if said and any(text.strip() for text in said):
            self._learnt(trims=not any(text[:1].isspace() for text in said))

    async def _streams(self) -> None:
        answer = await self._say(QUESTIONS[0], {"stream": True})
        self._learnt(streams=answer is not None and answer.streamed)

    async def _logprobs(self) -> None:
        chat = self.path == "chat"
        for count in _LOGPROBS:
            fields: dict[str, Any] = {"logprobs": True, "top_logprobs": count} if chat else {"logprobs": count}
            answer = await self._say(QUESTIONS[0], fields)
            if answer is not None and answer.first:
                self._learnt(logprobs=count if len(answer.first) >= count else len(answer.first))
                break
        else:
            return
        if self.same is False:
            return
        answer = await self._say(QUESTIONS[0], requests.scoring(replace(self._way, logprobs_by_id=True), ()))
        if answer is None or not all(name.startswith("token_id:") for name in answer.first or ("",)):
            return
        self._learnt(logprobs_by_id=True)
        ids = await self._some_ids()
        answer = await self._say(QUESTIONS[0], requests.scoring(replace(self._way, candidate_logprobs=True), ids))
        listed = answer.first if answer is not None else {}
        self._learnt(candidate_logprobs=bool(ids) and all(f"token_id:{each}" in listed for each in ids))

    async def _constraint(self) -> None:
        """The most exact field that forces an unlikely choice, seen to do so twice."""
        ids = await self._some_ids() if self.same is not False else ()
        for constraint in CONSTRAINTS:
            way = replace(self._way, constraint=constraint)
            by_text = way.chooses_texts
            if not by_text and not ids:
                continue
            if all([await self._forced(way, each, by_text) for each in ((0, 1) if by_text else ids[-2:])]):
                self._way = way
                return

    async def _forced(self, way: Way, which: int, by_text: bool) -> bool:
        """Whether only the token id `which` (or the unlikely word of that number) comes back when only it may."""
        fields = requests.choosing(way, (which,), (UNLIKELY[which],) if by_text else ())
        answer = await self._say(QUESTIONS[0], fields, way=way, length=requests.choice_length(way))
        if answer is None:
            return False
        if by_text:
            return answer.text.strip() == UNLIKELY[which].strip()
        if answer.token_ids:
            return answer.token_ids[0] == which
        words = (
            {self._encode(word)[0]: word for word in UNLIKELY if len(self._encode(word)) == 1} if self._encode else {}
        )
        return which in words and answer.text.strip() == words[which].strip()

    async def _some_ids(self) -> tuple[int, ...]:
        """A few token ids that do not begin an answer: of single words, or from the middle of a question."""
        if self._encode is not None:
            single = [ids[0] for word in UNLIKELY if len(ids := tuple(self._encode(word))) == 1]
            if len(single) > 1 or not self._way.ids_field:
                return tuple(dict.fromkeys(single))
        ids = await self._known_ids()
        return tuple(dict.fromkeys(ids[2:-2]))

    async def _say(
        self,
        prompt: str | Sequence[int],
        fields: Mapping[str, Any] | None = None,
        *,
        way: Way | None = None,
        length: int = _LENGTH,
    ) -> Answer | None:
        """An answer; None where the endpoint refuses the fields, or chokes on them."""
        try:
            raw = await self._post(prompt, fields or {}, min(_RETRIES, self._endpoint.retries), way, length)
        except RefusedError as error:
            if error.status not in _REFUSALS:
                raise
            return None
        return None if raw is None else answers.read(raw)

    async def _post(
        self,
        prompt: str | Sequence[int],
        fields: Mapping[str, Any],
        retries: int,
        way: Way | None = None,
        length: int = _LENGTH,
    ) -> dict[str, Any] | None:
        way = way or self._way
        body = requests.body(self._endpoint, self._model, way, prompt, length) | dict(fields)
        tokens = requests.worst_tokens(way, prompt), body[way.limit_field]
        raw = await self._http.ask(requests.PATHS[self.path], body, tokens, retries)
        several = raw is not None and len(raw["choices"]) > 1  # token ids taken for several prompts
        return None if several else raw


def _same(one: Answer, other: Answer) -> bool:
    return (one.text, one.reasoning, one.token_ids) == (other.text, other.reasoning, other.token_ids)


def _prompt_tokens(answer: Answer | None) -> int | None:
    """How many token ids the endpoint says that the prompt had."""
    if answer is None:
        return None
    return len(answer.prompt_ids) or counted(answer.usage.get("prompt_tokens"))


def _holds(ids: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids) - len(part) + 1))
