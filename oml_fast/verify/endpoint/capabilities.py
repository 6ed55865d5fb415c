"""What a preflight learnt about an endpoint, and which path then asks a format as it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...errors import CompleterError
from .answers import printable

_TEMPLATE = 3  # more token ids than these beside the text itself (BOS, a space) are a template
CONSTRAINTS = ("allowed_token_ids", "logit_bias", "structured_outputs", "guided_choice")  # the most exact first


@dataclass(frozen=True, slots=True)
class Way:
    """What one path of an endpoint does; None where that could not be learnt.

    path: "completions" or "chat". limit_field: how it wants the length spelt. greedy: it accepts temperature 0.
    takes_ids: token ids as the prompt. ids_field: the field that makes it return token ids, or "". template_tokens:
    how many it adds to a prompt of text. logprobs: how many it lists for each token id. logprobs_by_id: names them by
    id. candidate_logprobs: gives those of the ids asked for. constraint: the field that forces a choice, or "".
    streams: it can, `streams_unasked`: it does although not asked.
    """

    path: str
    limit_field: str = "max_tokens"
    greedy: bool = True
    takes_ids: bool = False
    ids_field: str = ""
    echoes: bool = False
    trims: bool | None = None
    template_tokens: int | None = None
    thinks_first: bool = False
    logprobs: int = 0
    logprobs_by_id: bool = False
    candidate_logprobs: bool = False
    constraint: str = ""
    deterministic: bool | None = None
    streams: bool = False
    streams_unasked: bool = False

    @property
    def templated(self) -> bool:
        """Whether it puts a prompt of text into a chat template."""
        return self.path == "chat" or (self.template_tokens or 0) > _TEMPLATE

    @property
    def chooses_texts(self) -> bool:
        """Whether its constraint is on texts, which may take several token ids each."""
        return self.constraint in ("structured_outputs", "guided_choice")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an endpoint can do. No key was asked to learn it.

    answered_as: the model's name in its answers. same_tokenizer: whether its token ids are the set's; None where no
    tokenizer was given to compare with.
    """

    url: str
    model: str
    served_models: tuple[str, ...]
    answered_as: str
    same_tokenizer: bool | None
    ways: tuple[Way, ...]
    requests: int

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self) | {
            "served_models": list(self.served_models),
            "ways": [asdict(way) | {"templated": way.templated} for way in self.ways],
        }

    def way(self, path: str) -> Way | None:
        return next((way for way in self.ways if way.path == path), None)

    def formats(self) -> tuple[str, ...]:
        """The formats in which keys can be asked as they were made."""
        return tuple(name for name in ("raw", "chat") if self._found(name) is not None)

    def way_for(self, format_name: str) -> Way:
        """The path that asks this format as it was made: by token ids, else by text. Raises CompleterError."""
        found = self._found(format_name)
        if found is not None:
            return found
        here = " and ".join(f"/{_spelt(way.path)}" for way in self.ways)
        if format_name == "raw":
            reason = f"it takes no token ids, and {here} puts every prompt into a chat template"
            out = "give the endpoint's /completions without a template, or a set whose formats hold chat"
        else:
            reason = f"it takes no token ids, and {here} applies no chat template"
            out = "give an endpoint with /chat/completions (kind auto or chat), or a set whose formats hold raw"
        raise CompleterError(f"{self.url} cannot ask the format {format_name} as it was made: {reason}; {out}.")

    def _found(self, format_name: str) -> Way | None:
        completions, chat = self.way("completions"), self.way("chat")
        if completions and completions.takes_ids:
            return completions
        if format_name == "raw":
            return completions if completions and not completions.templated else None
        return chat or (completions if completions and completions.templated else None)

    def lines(self) -> list[str]:
        """For a person: one line on the endpoint, and one on each path."""
        by_ids = {
            True: "the set's tokenizer",
            False: "another tokenizer than the set's",
            None: "tokenizer not compared",
        }
        about = [f"{self.url}: model {printable(self.model)}, {by_ids[self.same_tokenizer]}"]
        for way in self.ways:
            facts = {
                "takes token ids": way.takes_ids,
                "returns token ids": way.ids_field,
                "echoes": way.echoes,
                "trims": way.trims,
                "applies a template": way.templated,
                "thinks first": way.thinks_first,
                f"lists {way.logprobs} log-probabilities": way.logprobs,
                "scores candidates": way.candidate_logprobs,
                f"forces a choice ({way.constraint})": way.constraint,
                "refuses temperature 0": not way.greedy,
                "answers differently each time": way.deterministic is False,
                "streams though not asked": way.streams_unasked,
            }
            said = ", ".join(fact for fact, holds in facts.items() if holds)
            about.append(f"/{_spelt(way.path)}: {said or 'completes text, and nothing more'}")
        return about


def _spelt(path: str) -> str:
    return "chat/completions" if path == "chat" else path
