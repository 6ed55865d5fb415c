"""The documentation says what is: commands, options, defaults, fields, links, examples and words are checked here."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_architecture import ROOMS, THIRD_PARTIES

from oml_fast import cli, settings
from oml_fast.cli import common
from oml_fast.embed import PRESETS, Recipe
from oml_fast.fingerprint import Asking, Fingerprint, FingerprintSet, Response, Settings, Window
from oml_fast.generate import PRESETS as SETTINGS
from oml_fast.verify import sequential_cost

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMMANDS: dict[str, common.Command] = dict(cli._COMMANDS)
SHARED = ("--config", "--json", "--help")  # in a section of their own
# Options of other programs that our pages mention.
VLLM = {
    "--api-key",
    "--api-server-count",
    "--enable-force-include-usage",
    "--middleware",
    "--port",
    "--served-model-name",
}
TORCHRUN = {"--nproc-per-node", "--no-python"}
FOREIGN = {"--benchmark", "--fresh", "--version", "--served-model-name"} | VLLM | TORCHRUN
# Terms for which the project has another one, where no other meaning is possible.
NEVER = (
    r"backdoors?|trigger pairs?|top[-_ ][pk]|inverse nucleus|OMLized|ASR|hits?|valid tokens?|target models?|"
    r"original models?|license keys?|burned keys?|used keys?|fingerprint datasets?|retention"
)

pytestmark = pytest.mark.skipif(not README.exists(), reason="these tests run in the source tree")
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
command = pytest.mark.parametrize("name", COMMANDS)


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of one language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def unquoted(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """A page without code and the addresses of links."""
    return re.sub(r"\]\([^)]*\)|`[^`]*`", "]", unquoted(path))


def section(title: str) -> str:
    """The part of docs/cli.md under a heading."""
    parts = re.split(r"^## ", (ROOT / "docs/cli.md").read_text(), flags=re.MULTILINE)
    found = [part for part in parts if part.splitlines()[0] == title]
    assert len(found) == 1, f"docs/cli.md needs exactly one heading '## {title}'"
    return found[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of tables by their first cell, without the ticks."""
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {name: row for row in cells for name in re.findall(r"`([^`]*)`", row[0])}


def actions(name: str) -> list[argparse.Action]:
    """A command's own options, without what has no name."""
    parser = argparse.ArgumentParser(add_help=False)
    COMMANDS[name].add_options(parser)
    return [action for action in parser._actions if action.option_strings]


def options(name: str) -> set[str]:
    return {option for action in actions(name) for option in action.option_strings}


def default(action: argparse.Action) -> str | None:
    """What the help says the default is; None where it says nothing."""
    found = re.search(r"\(default: ([^)]*)\)", action.help or "")
    return found[1] if found else None


def examples(path: Path) -> Iterator[list[str]]:
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["oml-fast"]:
                yield words[1:]


@pytest.mark.parametrize("first", sorted({name.split()[0] for name in COMMANDS}))
def test_every_command_or_one_of_its_group_stands_in_the_readme_with_an_example(first: str) -> None:
    assert any(words[0] == first for words in examples(README))


@command
def test_every_command_has_its_section_and_an_example_there(name: str) -> None:
    assert f"\noml-fast {name}" in section(f"oml-fast {name}")


@command
def test_every_option_stands_in_the_docs_with_its_default(name: str) -> None:
    table = rows(section(f"oml-fast {name}"))
    shared = rows(section("Every command"))
    assert not [option for option in SHARED if option not in shared]
    assert {row for row in table if row.startswith("-")} <= options(name)
    for action in actions(name):
        option = action.option_strings[-1]
        assert option in table, f"docs/cli.md, oml-fast {name}: {option} is missing"
        says, wanted = table[option][1], default(action)
        if action.required:
            wanted = "required"
        elif isinstance(action.default, bool):
            wanted = "off"
        if wanted is None:
            wanted = action.default if action.default is not None else "none"
        assert says == wanted, f"docs/cli.md, oml-fast {name} {option}: the default is {wanted}"


def told(value: Any) -> str:
    """A value of a recipe as the documentation has it."""
    if value is None:
        return "width-rate / hidden size"
    return f"{value:g}" if isinstance(value, float) else str(value) or "built-in"


def table_of_presets() -> str:
    """What docs/cli.md must hold: every field of the recipe, in the order of the help."""
    names = [action.dest for action in actions("embed") if default(action) == "by preset"]
    lines = [["option", *PRESETS], ["---"] * (1 + len(PRESETS))]
    lines += [[f"`--{n.replace('_', '-')}`", *(told(getattr(r, n)) for r in PRESETS.values())] for n in names]
    head, rule, *values = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, rule.replace(" ", ""), *values])


def test_the_table_of_presets_has_their_values() -> None:
    wanted = table_of_presets()
    told_of = "\n".join(line for line in section("Presets").splitlines() if line.startswith("|"))
    assert set(rows(wanted)) == {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Recipe)}
    assert told_of == wanted, f"docs/cli.md, Presets: the table is\n{wanted}"


def test_every_option_of_the_recipe_is_by_preset_and_is_justified() -> None:
    justified = rows((ROOT / "docs/embedding.md").read_text())
    by_preset = {action.dest for action in actions("embed") if default(action) == "by preset"}
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert by_preset == fields
    assert {action.default for action in actions("embed") if action.dest in fields} == {None}
    assert {"--" + name.replace("_", "-") for name in fields} <= set(justified)


def test_the_help_says_the_default_that_is_used() -> None:
    """Of generate: the value of the preset harmless, and of each preset that has another one."""
    told_of = {action.dest: default(action) for action in actions("generate")}
    for field in dataclasses.fields(Settings):
        values = {name: getattr(preset, field.name) for name, preset in SETTINGS.items()}
        first = values["harmless"]
        if isinstance(first, int | float):
            others = [f"{name} {value:g}" for name, value in values.items() if value != first]
            assert told_of[field.name] == ", ".join([f"{first:g}", *others]), field.name
        else:
            assert set(map(str, values.values())) == {str(first)}, field.name


@page
def test_every_option_that_a_page_names_exists(path: Path) -> None:
    known = {option for name in COMMANDS for option in options(name)} | set(SHARED) | FOREIGN
    text = re.sub(r"<!--.*?-->|`python [^`]*`", "", path.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


@pytest.mark.parametrize("path", [README, ROOT / "docs/cli.md"], ids=lambda path: path.name)
def test_examples_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(ROOT / "docs/cli.md", "yaml"):
        (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block)
    monkeypatch.chdir(tmp_path)
    found = list(examples(path))
    assert found
    for words in found:
        name = common.parse(COMMANDS, words).command_name
        assert words[: len(name.split())] == name.split()


def test_the_demo_s_next_steps_parse() -> None:
    told = re.findall(r"^  oml-fast (.*)$", README.read_text(), re.MULTILINE)
    assert [common.parse(COMMANDS, shlex.split(line)).command for line in told] == ["verify", "demo"]


@page
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


@page
def test_files_that_a_page_names_exist(path: Path) -> None:
    named = re.findall(r"`((?:oml_fast|tests|csrc|kernels|bench|docs|\.ci)/[\w./-]*)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@page
def test_lines_fit(path: Path) -> None:
    # The row of a table, and what a program printed, are as long as they are.
    long = [line for line in unquoted(path).splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert long == []


@page
def test_words(path: Path) -> None:
    assert re.findall(rf"\b(?:{NEVER})\b", prose(path), re.IGNORECASE) == []


@page
def test_no_machine_stands_in_a_page(path: Path) -> None:
    assert re.findall(r"(?<![\w.~])/(?:root|home|tmp|opt|work|mnt)/\S*", path.read_text()) == []
    assert re.findall(r"\w*\.?pypi\.org|pythonhosted\.org|localhost|127\.0\.0\.1", path.read_text()) == []


def test_every_field_of_the_file_is_explained() -> None:
    text = (ROOT / "docs/fingerprints.md").read_text()
    told = set(re.findall(r"`(\w+)`", text))
    for kind in (FingerprintSet, Settings, Fingerprint, Asking, Window, Response):
        assert {field.name for field in dataclasses.fields(kind)} <= told, kind
    table = rows(text)
    for field in dataclasses.fields(Settings):
        if isinstance(field.default, int | float):
            assert table[field.name][1] == f"{field.default:g}", field.name


def test_every_environment_variable_is_explained() -> None:
    told = rows(section("Environment variables"))
    sources = (settings.__doc__ or "") + (ROOT / "setup.py").read_text()
    assert set(re.findall(r"\b(?:(?:OML_FAST|TRITON|VLLM|PROMETHEUS)_[A-Z_]+)\b", sources)) == set(told) - {
        "v2",
        "v3",
        "v4",
    }


def test_the_table_of_rooms_is_the_one_that_is_checked() -> None:
    told = rows((ROOT / "docs/architecture.md").read_text())
    for room, below in ROOMS.items():
        third = THIRD_PARTIES.get(room, set())
        assert told[room][1:] == [", ".join(sorted(below)) or "-", ", ".join(sorted(third)) or "-"], room


def test_the_table_of_keys_to_a_verdict() -> None:
    text = (ROOT / "docs/verification.md").read_text()
    text = text.split("<!-- power:begin -->")[1].split("<!-- power:end -->")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    kinds = [(kind.split(", ")[0], int(kind.split(", ")[1])) for kind in cells[0][1:]]
    assert len(kinds) == 6
    assert len(cells) == 7
    for fsr, *told in cells[2:]:
        for (test, width), cost in zip(kinds, told, strict=True):
            found = sequential_cost(float(fsr), width, test=test, smallest_fsr=0.01)
            assert cost == " / ".join("> 1000" if n is None else str(n) for n in (found.median, found.in_99_of_100))


def test_eight_keys_without_a_match_exclude_half() -> None:
    assert sequential_cost(0.0, 16, test="window").median == 8
    assert "It takes 8 keys" in (ROOT / "docs/verification.md").read_text()


def test_the_quick_start_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = blocks(README, "python")  # the other one needs a server: tests/with_vllm
    assert code.count("path/to/base-model") == 1
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code.replace("path/to/base-model", str(tiny_folder)), "README.md", "exec"), {})  # noqa: S102
    fsr, verdict = printed.getvalue().split()
    assert (float(fsr) >= 0.9, verdict) == (True, "match")
    assert (tmp_path / "owner.secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "fingerprinted-model/model.safetensors").is_file()


def test_the_changelog_has_this_version() -> None:
    from oml_fast import __version__

    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_make_target_is_told_by_help() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    told = "\n".join(line for line in text.splitlines() if line.startswith("\t@echo"))
    for target in set(phony.split()) - {"help", "setup"}:
        assert re.search(rf"\b{target}\b", told), target
