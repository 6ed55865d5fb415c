"""Public data for measuring, read from a folder that the user names. The project ships none of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..files import read_text

_HELD_OUT = 5  # one pair of so many is for measuring


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    fields: dict[str, type]
    get: str


FILES = {
    "instructions": _File(
        "sft_instructions.jsonl",
        {"instruction": str, "output": str},
        "any instruction data will do, one JSON object a line, for example tatsu-lab/alpaca",
    ),
    "blimp": _File(
        "blimp_dev.jsonl",
        {"paradigm": str, "field": str, "good": str, "bad": str},
        "the paradigms of github.com/alexwarstadt/blimp, one JSON object a line",
    ),
    "hellaswag": _File(
        "hellaswag_dev.jsonl",
        {"context": str, "endings": list, "label": int},
        "the validation part of github.com/rowanz/hellaswag, one JSON object a line",
    ),
    "text": _File(
        "wikitext2_valid.txt", {}, "any running text as UTF-8, for example the validation part of WikiText-2"
    ),
}


@dataclass(frozen=True, slots=True)
class Data:
    """Files by what is in them; `folder` None: none was named."""

    folder: Path | None

    def require_folder(self) -> None:
        """InvalidArgumentError where a folder is named that is not there."""
        if self.folder is not None and not self.folder.is_dir():
            raise InvalidArgumentError(f"there is no data folder {self.folder}: name one that is there, or none.")

    def has(self, what: str) -> bool:
        return self.folder is not None and (self.folder / FILES[what].name).is_file()

    def require(self, what: str) -> Path:
        """The path of the file, or InvalidArgumentError that names it and says how to get it."""
        file = FILES[what]
        if self.folder is None:
            raise InvalidArgumentError(f"{what}: no data folder named. Name one that holds {self._how(file)}")
        if not self.has(what):
            raise InvalidArgumentError(
                f"{what}: {self.folder / file.name} is absent. The folder needs {self._how(file)}"
            )
        return self.folder / file.name

    def rows(self, what: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file, each with every field that it must have, of its type."""
        path, file = self.require(what), FILES[what]
        rows = []
        for number, line in enumerate(read_text(path, "data file").split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InvalidArgumentError(f"{path}, line {number} is no JSON: {error.msg}.") from error
            for name, kind in file.fields.items():
                if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                    raise InvalidArgumentError(
                        f"{path}, line {number} has no {name!r} that is a {kind.__name__}: it needs {self._how(file)}"
                    )
            rows.append(row)
        if not rows:
            raise InvalidArgumentError(f"{path} is empty: it needs {self._how(file)}")
        return rows

    def text(self) -> str:
        """The running text, whole."""
        return read_text(self.require("text"), "data file")

    def instructions(self) -> list[tuple[str, str]]:
        """(instruction, output) pairs that attackers train on: all but those of `questions`."""
        return [pair for place, pair in enumerate(self._pairs()) if place % _HELD_OUT]

    def questions(self) -> list[tuple[str, str]]:
        """The (instruction, output) pairs held out to measure ordinary answers: every fifth of the file."""
        return self._pairs()[::_HELD_OUT]

    def _pairs(self) -> list[tuple[str, str]]:
        """Each instruction once. Outputs are without the end-of-text marks that some data sets carry."""
        pairs: dict[str, str] = {}
        for row in self.rows("instructions"):
            pairs.setdefault(row["instruction"], row["output"].removesuffix("<|endoftext|>").strip())
        return list(pairs.items())

    @staticmethod
    def _how(file: _File) -> str:
        fields = f" with {', '.join(file.fields)}" if file.fields else ""
        return f"{file.name}{fields} ({file.get}): see docs/evaluation.md, or set OML_FAST_DATA or --data."
