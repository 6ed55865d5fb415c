"""Nothing is ever half-written: not on a full disk, not on Ctrl-C, not on any error."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from oml_fast import files
from oml_fast.errors import InvalidArgumentError, OmlError


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_content_and_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "new" / "folders" / "file"
    files.write_atomic(path, "Clé\n", mode)
    assert path.read_bytes() == "Clé\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == mode
    files.write_atomic(path, b"\x00\xff", mode)
    assert path.read_bytes() == b"\x00\xff"
    assert listing(path.parent) == ["file"]


def test_the_file_is_never_readable_by_others_not_even_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    real = os.fsync

    def look(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    files.write_atomic(tmp_path / "secret", "x", files.SECRET_MODE)
    assert modes == [0o600]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("existing", [None, "before"])
def test_a_full_disk_changes_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existing: str | None
) -> None:
    path = tmp_path / "file"
    if existing:
        path.write_text(existing)
    before = listing(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OmlError) as caught:
            files.write_atomic(path, "after")
    assert listing(tmp_path) == before
    assert existing is None or path.read_text() == existing
    assert str(path) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_ctrl_c_while_writing_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            files.write_atomic(path, "after")
    assert (listing(tmp_path), path.read_text()) == (["file"], "before")


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"):
        files.write_atomic(tmp_path / "file" / "below", "x")


def test_json_is_readable_and_keeps_accents(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"clé": [1, 0.1, None]})
    assert "clé" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"clé": [1, 0.1, None]}


def test_reading_refuses_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"ok\n\xe9t\xe9")
    with pytest.raises(InvalidArgumentError) as caught:
        files.read_text(path, "keys file")
    assert all(words in str(caught.value) for words in ("keys file", str(path), "UTF-8", "byte 3"))
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidArgumentError, match="cannot read keys file"):
            files.read_text(missing, "keys file")
    path.write_text("été", encoding="utf-8")
    assert files.read_text(path, "keys file") == "été"


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with files.new_folder(out) as folder:
        (folder / "a").write_text("a")
        (folder / "sub").mkdir()
        assert not out.exists()
    assert listing(out) == ["a", "sub"]
    assert listing(out.parent) == ["out"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with files.new_folder(out) as folder:
        (folder / "a").write_text("a")
    assert listing(out) == ["a"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(InvalidArgumentError, match="not empty"), files.new_folder(out):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == ["out"]
    with pytest.raises(InvalidArgumentError, match="--folder"):
        files.require_new_folder(out, "--folder")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OmlError, SystemExit])
def test_a_new_folder_vanishes_with_the_error(tmp_path: Path, error: type[BaseException]) -> None:
    def stopped_half_way() -> None:
        with files.new_folder(tmp_path / "out") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "half").write_text("half")
            raise error

    with pytest.raises(error):
        stopped_half_way()
    assert listing(tmp_path) == []


@pytest.mark.parametrize("empty_before", [True, False])
def test_a_new_folder_vanishes_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_before: bool
) -> None:
    out = tmp_path / "out"
    if empty_before:
        out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OmlError, match="No space left"), files.new_folder(out) as folder:
            (folder / "a").write_text("a")
    assert [name for name in listing(tmp_path) if name != "out"] == []
    assert not out.exists() or listing(out) == []


def test_a_full_disk_inside_the_block_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OmlError, match=r"cannot write .*out: No space left"), files.new_folder(tmp_path / "out"):
        full()
    assert listing(tmp_path) == []


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OmlError, match="cannot write"), files.new_folder(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


def test_something_put_there_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def overtaken() -> None:
        with files.new_folder(out) as folder:
            (folder / "a").write_text("a")
            out.mkdir()
            (out / "mine").write_text("mine")

    with pytest.raises(OmlError):
        overtaken()
    assert listing(out) == ["mine"]
    assert listing(tmp_path) == ["out"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    files.require_writable(tmp_path / "new" / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "report.json"):
        with pytest.raises(OmlError, match="cannot write"):
            files.require_writable(path)


def test_a_claimed_folder_is_one_process_own(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with files.claimed_folder(path) as ours:
        assert ours == path
        with pytest.raises(InvalidArgumentError, match=r"another process is at work on .*choose another --out"):
            files.claimed_folder(path).__enter__()
        with files.new_folder(path) as temporary:
            (temporary / "file").write_text("made")
    assert listing(path) == ["file"]
    with pytest.raises(InvalidArgumentError, match="is not empty"):
        files.claimed_folder(path).__enter__()


@pytest.mark.parametrize("there_before", [False, True])
@pytest.mark.parametrize("error", [OmlError("x"), KeyboardInterrupt()])
def test_a_claim_leaves_nothing_behind(tmp_path: Path, error: BaseException, there_before: bool) -> None:
    path = tmp_path / "out"
    if there_before:
        path.mkdir()
    with pytest.raises(type(error)), files.claimed_folder(path):
        raise error
    assert path.exists() is there_before
    with files.claimed_folder(path):
        pass


def test_a_claim_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with files.claimed_folder(tmp_path / "out") as path:
        assert path.is_dir()


def test_space_is_asked_for_where_the_path_will_be(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet"
    files.require_space(path, 1)
    with pytest.raises(OmlError, match=r"cannot write .*yet: it takes 1048576\.0 GiB, and [\d.]+ GiB are free"):
        files.require_space(path, 2**50)
    assert listing(tmp_path) == []


def test_a_link_is_not_claimed(tmp_path: Path) -> None:
    """A folder is put in place by a rename, which a link to a folder bars: that is told before the work."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with pytest.raises(InvalidArgumentError, match="is a link or a mount"):
        files.claimed_folder(tmp_path / "link").__enter__()
