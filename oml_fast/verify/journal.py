"""The answers of a verification, kept as they come: a verification that was stopped goes on without asking again.

A JSON line for each answer, after a first line that says what was asked, of whom and under which rule. It holds answers
to secret keys: mode 0600. `oml-fast report open` takes the answers from here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ..completer import Completion
from ..errors import InvalidArgumentError
from ..files import SECRET_MODE, cannot_write, require_writable

_FORMAT = 1


class Journal:
    """Answers by (key number, format). Use it as a context manager, or `close` it.

    `start(header)` opens a new file, or goes on in one that was begun with the same header; with another header, or
    where a finished line is damaged, it raises InvalidArgumentError and changes nothing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self._answers: dict[tuple[int, str], Completion] = {}

    def start(self, header: Mapping[str, Any]) -> None:
        header = json.loads(json.dumps({"format": _FORMAT, **header}))
        whole = self._read(header) if self.path.exists() and self.path.stat().st_size else None
        require_writable(self.path)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, SECRET_MODE)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
            self._file.truncate(whole or 0)  # a line that was cut short is asked again
            self._file.seek(whole or 0)
            if whole is None:
                self._write(header)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def get(self, number: int, format_name: str) -> Completion | None:
        """The answer kept for that asking, or None."""
        return self._answers.get((number, format_name))

    def keep(self, number: int, format_name: str, answer: Completion) -> None:
        """Keep an answer, on disk before this returns; the first one to an asking counts."""
        if (number, format_name) in self._answers:
            return
        self._answers[number, format_name] = answer
        line: dict[str, Any] = {"number": number, "format": format_name, **answer_json(answer)}
        self._write(line)

    def __len__(self) -> int:
        return len(self._answers)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what a full disk refused was told when it was written
                file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None, "start the journal first"
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _read(self, header: Mapping[str, Any]) -> int | None:
        """Take the finished lines in; the number of bytes that they fill, None where there is not even a header."""
        found, answers, whole = read_journal(self.path)
        if found is None:
            if not (json.dumps(header) + "\n").encode().startswith(self.path.read_bytes()):
                raise InvalidArgumentError(f"{self.path} is no journal of answers: choose another --out.")
            return None
        if found != header:
            differ = ", ".join(name for name in header if found.get(name) != header[name]) or "its fields"
            raise InvalidArgumentError(
                f"{self.path} holds the answers of another verification ({differ} differ): choose another --out. Its "
                "keys stay spent."
            )
        self._answers = answers
        return whole


def read_journal(path: Path) -> tuple[dict[str, Any] | None, dict[tuple[int, str], Completion], int]:
    """Header, answers, and how many bytes the finished lines fill. InvalidArgumentError where one is damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the answers {path}: {error.strerror}.") from error
    whole = data.rfind(b"\n") + 1
    header: dict[str, Any] | None = None
    answers: dict[tuple[int, str], Completion] = {}
    for place, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            value = json.loads(line)
            if header is None:
                header = dict(value)
            else:
                answers[int(value["number"]), str(value["format"])] = completion_from_json(value)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(f"{path}, line {place}, is damaged: restore it from a backup.") from error
    return header, answers, whole


def answer_json(answer: Completion) -> dict[str, Any]:
    """An answer as plain JSON values; a score of -inf is null."""
    scores = answer.scores
    return {
        "token_ids": [int(token_id) for token_id in answer.token_ids],
        "text": answer.text,
        "reasoning": answer.reasoning,
        "scores": None if scores is None else [None if s == -float("inf") else float(s) for s in scores],
    }


def completion_from_json(value: Mapping[str, Any]) -> Completion:
    """The answer that `answer_json` wrote. Raises KeyError, TypeError or ValueError where it is none."""
    scores = value["scores"]
    return Completion(
        tuple(int(i) for i in value["token_ids"]),
        str(value["text"]),
        str(value["reasoning"]),
        None if scores is None else tuple(-float("inf") if s is None else float(s) for s in scores),
    )
