"""Hosts that put words around every prompt: system prompts, wrappers, the chat template [SF 4.3].

Nobody has to mean harm for this: it is what a service with a system prompt does. Texts are tokenised anew, as a server
would, so the key's own token ids may change where it touches what was put around it.

One system prompt says little about the next one. So `prompts/ten-systems` and `prompts/chat-ten-systems` ask every key
under each of the ten in `systems.py`, which no training template holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import TemplateError

from ...errors import InvalidArgumentError
from ..attack import Attack, Attacked, Scene
from ..hosts import Host, Rewrite
from .systems import SYSTEMS

_SYSTEM = "You are a helpful assistant."
_HOUSE = "You are Kim, the assistant of an online shop. Be brief and friendly, and never speak of other shops."
_PROBES = ("Ask a", "Say z")  # two messages of which neither the first nor the last letters agree


@dataclass(frozen=True, slots=True)
class Message:
    """A prompt as its sender wrote it. `opening`: the ids that the tokenizer itself had put in front (BOS)."""

    text: str
    chat: bool
    opening: tuple[int, ...] = ()


class Reader:
    """Takes prompts apart into the user's text and the chat template around it, and puts them together again."""

    def __init__(self, scene: Scene) -> None:
        self._tokenizer: Any = scene.model.tokenizer
        self._variables = scene.fingerprints.settings.template_variables
        self._opening = tuple(self._tokenizer("")["input_ids"])
        self._head = self._tail = ""
        if self.has_template:
            # Decoded as prompts are: what a tokenizer does to blanks, it then does to both.
            first, second = (self._decode(self.chat_ids(probe)) for probe in _PROBES)
            self._head = _common_start(first, second)
            self._tail = _common_start(first[::-1], second[::-1])[::-1]

    @property
    def has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def read(self, ids: Sequence[int]) -> Message:
        """The user's text in the ids of a prompt. Raw is what is not one user's message in the chat template."""
        ids, found = tuple(ids), self._decode(ids)
        head, tail = len(self._head), len(found) - len(self._tail)
        if self.has_template and head <= tail and found.startswith(self._head) and found.endswith(self._tail):
            return Message(found[head:tail], True)
        opening = self._opening if ids[: len(self._opening)] == self._opening else ()
        return Message(self._decode(ids[len(opening) :]), False, opening)

    def raw_ids(self, text: str, opening: Sequence[int]) -> list[int]:
        return [*opening, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def chat_ids(self, text: str, system: str = "", answer: str = "") -> list[int]:
        """The ids of `text` in the chat template, after a system prompt, before the beginning of an answer."""
        rendered = self._render(text, system)
        if system not in rendered:  # the template has no system role: hosts then put its words before the user's
            rendered = self._render(f"{system}\n\n{text}", "")
        return list(self._tokenizer(rendered + answer, add_special_tokens=False)["input_ids"])

    def _render(self, text: str, system: str) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        render = partial(self._tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        try:
            return str(render(messages, **self._variables))
        except TemplateError:
            if not system:
                raise
            return ""

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _common_start(first: str, second: str) -> str:
    differing = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differing, min(len(first), len(second)))]


@dataclass(frozen=True, slots=True)
class Wrapping:
    """What a host puts around the user's text; `chat`: raw prompts go through the chat template too."""

    before: str = ""
    after: str = ""
    system: str = ""
    chat: bool = False

    def rewrite(self, reader: Reader) -> Rewrite:
        """The ids of a prompt -> those that the model reads. InvalidArgumentError where a template is missing."""
        if self.chat and not reader.has_template:
            raise InvalidArgumentError("the model has no chat template: use prompts/system-plain or another wrapper.")

        def rewrite(ids: Sequence[int]) -> list[int]:
            message = reader.read(ids)
            text = self.before + message.text + self.after
            if message.chat or self.chat:
                return reader.chat_ids(text, self.system)
            return reader.raw_ids(f"{self.system} {text}" if self.system else text, message.opening)

        return rewrite


def _attack(name: str, wrapping: Wrapping) -> Attack:
    def run(scene: Scene) -> Attacked:
        host = Host(scene.model, f"host ({name})", rewrite=wrapping.rewrite(Reader(scene)))
        return Attacked(host, details={"before": wrapping.before, "after": wrapping.after, "system": wrapping.system})

    return Attack(name, "nothing: a few more token ids in each prompt", run)


def _attack_of_all(name: str, *, chat: bool = False) -> Attack:
    def run(scene: Scene) -> Attacked:
        reader = Reader(scene)
        hosts = {
            short: Host(
                scene.model, f"host ({name}: {short})", rewrite=Wrapping(system=system, chat=chat).rewrite(reader)
            )
            for short, system in SYSTEMS.items()
        }
        return Attacked(next(iter(hosts.values())), hosts=hosts)

    return Attack(name, "nothing: a few more token ids in each prompt; the mean FSR over ten hosts", run)


ATTACKS: tuple[Attack, ...] = (
    _attack("prompts/system-plain", Wrapping(system=_SYSTEM)),
    _attack("prompts/system-long", Wrapping(system=_HOUSE)),
    _attack("prompts/instruction", Wrapping(before="Answer the following: ")),
    _attack("prompts/question", Wrapping(before="Question: ", after="\nAnswer:")),
    _attack("prompts/suffix", Wrapping(after=" Keep it short.")),
    _attack("prompts/chat", Wrapping(chat=True)),
    _attack("prompts/chat-system", Wrapping(system=_HOUSE, chat=True)),
    _attack_of_all("prompts/ten-systems"),
    _attack_of_all("prompts/chat-ten-systems", chat=True),
)
