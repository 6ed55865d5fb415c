"""The owner's secret: kept in its own 0600 file, never overwritten, never told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oml_fast.errors import FingerprintFormatError, InvalidArgumentError
from oml_fast.secret import commitment, draw, new_secret, read_secret, uniforms, write_secret

SECRET = bytes(range(100, 132))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    write_secret(path, SECRET)
    return path


def refused(path: Path) -> str:
    with pytest.raises(FingerprintFormatError) as caught:
        read_secret(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert not any(SECRET.hex()[i : i + 8] in message for i in range(0, 57, 4))
    return message


def test_new_secrets_differ_and_are_32_bytes() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(secret) for secret in secrets} == {32}


def test_what_is_written_is_read_by_its_owner_alone(file: Path) -> None:
    assert read_secret(file) == SECRET
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_existing_file_is_never_overwritten(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(InvalidArgumentError) as caught:
        write_secret(file, bytes(32))
    assert file.read_bytes() == before
    assert "--secret" in str(caught.value)
    assert SECRET.hex() not in str(caught.value)


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArgumentError):
        write_secret(tmp_path / "link", SECRET)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666, 0o777, 0o610, 0o601])
def test_a_secret_that_others_can_reach_is_refused(file: Path, mode: int) -> None:
    os.chmod(file, mode)
    assert f"chmod 600 {file}" in refused(file)


def test_a_missing_secret_says_restore(tmp_path: Path) -> None:
    assert "restore it from its backup" in refused(tmp_path / "none")


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    refused(tmp_path)


def test_a_secret_cut_short_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes().rstrip()
    for place in range(len(whole)):
        file.write_bytes(whole[:place])
        refused(file)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff" * 40, SECRET, SECRET.hex().encode(), b"oml-fast-secret-v2:" + SECRET.hex().encode(),
        b"oml-fast-secret-v1:" + SECRET.hex().encode() + b"00", b"oml-fast-secret-v1:" + b"zz" * 32,
        b"oml-fast-secret-v1:oml-fast-secret-v1:" + SECRET.hex().encode(), b'{"format": 1}',
        b"oml-fast-secret-v1:" + SECRET.hex(" ").encode(),
    ],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_a_damaged_secret_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refused(file)


def test_the_commitment_tells_secrets_apart_and_is_no_secret() -> None:
    assert commitment(SECRET) == commitment(SECRET) != commitment(bytes(32))
    assert len(commitment(SECRET)) == 64
    assert SECRET.hex() not in commitment(SECRET)


@settings(deadline=None)
@given(width=st.integers(1, 40), data=st.data())
def test_a_draw_is_distinct_in_range_and_longer_draws_go_on(width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, width))
    drawn = draw(SECRET, [b"a"], width, count)
    assert len(set(drawn)) == count
    assert all(0 <= index < width for index in drawn)
    assert draw(SECRET, [b"a"], width, width)[:count] == drawn


@pytest.mark.parametrize(("width", "count"), [(3, 4), (3, 0), (0, 0), (3, -1)])
def test_an_impossible_draw_is_refused(width: int, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{count} of {width}"):
        draw(SECRET, [b"a"], width, count)


def test_parts_cannot_be_taken_for_others() -> None:
    lists = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"], [b"abc", b"0"]]
    assert len({draw(SECRET, parts, 1000, 5) for parts in lists}) == len(lists)


def test_uniforms_are_uniform_and_repeat() -> None:
    values = uniforms(SECRET, [b"words"], 20_000)
    assert values == uniforms(SECRET, [b"words"], 20_000)
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 20_000 - 0.5) < 4 * (1 / 12 / 20_000) ** 0.5
    assert uniforms(SECRET, [b"words"], 3) == values[:3] != uniforms(SECRET, [b"other"], 3)
