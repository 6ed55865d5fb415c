"""Prompt templates of the owner's full check: what a host may put around a key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ..completer import Prompt
from ..errors import InvalidArgumentError
from ..files import read_text
from ..fingerprint import FingerprintSet
from .attack import Scene
from .attacks.prompts import Reader, Wrapping

AS_MADE = "as made"
_KEY = "{key}"
_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Template:
    """A name, and what is put around the key's text. The template "as made" asks the very ids of the set."""

    name: str
    wrapping: Wrapping

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.wrapping)}


BUILT_IN = (
    Template(AS_MADE, Wrapping()),
    Template("instruction", Wrapping(before="Answer the following: ")),
    Template("question", Wrapping(before="Question: ", after="\nAnswer:")),
    Template("suffix", Wrapping(after=" Keep it short.")),
    Template("system", Wrapping(system=_SYSTEM)),
    Template("chat", Wrapping(chat=True)),
    Template("chat with system", Wrapping(system=_SYSTEM, chat=True)),
)


def read_templates(path: str | Path) -> tuple[Template, ...]:
    """Templates of a UTF-8 file: a JSON object of names and texts, a JSON list of texts, or one text a line.

    Each text holds {key} once. Those of a list or of lines are named by their number. Raises InvalidArgumentError.
    """
    text = read_text(path, "the templates file")
    try:
        values = json.loads(text) if text.lstrip()[:1] in ("[", "{") and not text.lstrip().startswith(_KEY) else None
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"the templates file {path} is no valid JSON: mend it, or write lines.") from error
    if values is None:
        values = [line for line in text.splitlines() if line.strip()]
    named = values if isinstance(values, dict) else {f"file {n}": value for n, value in enumerate(values, 1)}
    if not named:
        raise InvalidArgumentError(f"the templates file {path} holds no template: write one a line, with {_KEY} in it.")
    templates = []
    for name, value in named.items():
        if not isinstance(value, str) or value.count(_KEY) != 1:
            raise InvalidArgumentError(f"the templates file {path}: template {name!r} must hold {_KEY} once.")
        before, after = value.split(_KEY)
        templates.append(Template(name, Wrapping(before=before, after=after)))
    return tuple(templates)


class Renderer:
    """Prompts of a set in every template, as one tokenizer writes them."""

    def __init__(self, tokenizer: Any, fingerprints: FingerprintSet) -> None:
        # All that a reader reads of a scene.
        scene = SimpleNamespace(model=SimpleNamespace(tokenizer=tokenizer), fingerprints=fingerprints)
        self._reader = Reader(cast(Scene, scene))

    def skipped(self, templates: Sequence[Template]) -> Mapping[str, str]:
        """Templates that this tokenizer cannot write, with the reason."""
        if self._reader.has_template:
            return {}
        return {t.name: "the tokenizer has no chat template" for t in templates if t.wrapping.chat}

    def prompts(self, template: Template, asked: Sequence[Prompt]) -> list[list[int]]:
        """The ids that the model reads for prompts of the set."""
        if template.name == AS_MADE:
            return [list(prompt) for prompt in asked]
        rewrite = template.wrapping.rewrite(self._reader)
        return [list(rewrite(prompt) or ()) for prompt in asked]
