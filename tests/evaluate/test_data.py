"""Public data: rows with every field, and errors that name the file and how to get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oml_fast.errors import InvalidArgumentError
from oml_fast.evaluate.data import FILES, Data


def written(folder: Path, rows: list[object]) -> Data:
    (folder / "sft_instructions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return Data(folder)


def pairs(count: int) -> list[object]:
    return [{"instruction": f"question {i}", "output": f"answer {i}<|endoftext|>"} for i in range(count)]


def test_attackers_and_measurements_share_no_pair(tmp_path: Path) -> None:
    data = written(tmp_path, pairs(11))
    assert [output for _, output in data.questions()] == ["answer 0", "answer 5", "answer 10"]
    assert len(data.instructions()) == 8
    assert not set(data.instructions()) & set(data.questions())


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("named", [True, False])
def test_an_absent_file_is_named_with_the_way_to_it(what: str, named: bool, tmp_path: Path) -> None:
    data = Data(tmp_path if named else None)
    assert not data.has(what)
    with pytest.raises(InvalidArgumentError, match=rf"{FILES[what].name}.*--data"):
        data.require(what)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"instruction": "a"}\n', "line 1 has no 'output'"),
        ('{"instruction": "a", "output": "b"}\n{"instr', "line 2 is no JSON"),
        ("[1, 2]\n", "line 1 has no 'instruction'"),
        ('{"instruction": "a", "output": null}\n', "line 1 has no 'output' that is a str"),
        ("\n", "is empty"),
    ],
)
def test_damaged_rows_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sft_instructions.jsonl").write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        Data(tmp_path).instructions()


def test_running_text_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text("one\ntwo\n")
    assert Data(tmp_path).text() == "one\ntwo\n"


def test_an_instruction_stands_once_and_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    rows = [{"instruction": "same", "output": "one"}, {"instruction": "same", "output": "two"}]
    rows.append({"instruction": "other\u2028line", "output": "x"})
    (tmp_path / "sft_instructions.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    assert Data(tmp_path).questions() == [("same", "one")]
    assert Data(tmp_path).instructions() == [("other\u2028line", "x")]
