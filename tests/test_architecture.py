"""The plan of the house: imports go down, third parties stay in their rooms, nobody imports `kernels` by that name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "oml_fast"

# Room -> the rooms it may import. Imports inside functions and for type checkers count too.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "completer": set(),
    "kernels": set(),
    "files": {"errors"},
    "settings": {"errors"},
    "secret": {"errors", "files"},
    "signing": {"errors", "files"},
    "fingerprint": {"errors", "files", "secret"},
    "backends": {"_native", "settings", "errors"},
    "ops": {"kernels", "_native", "backends", "errors"},
    "models": {"completer", "files", "errors"},
    "measure": {"models", "errors"},
    "generate": {"ops", "backends", "fingerprint", "models", "secret", "files", "errors"},
    "interchange": {"fingerprint", "files", "errors"},
    "verify": {"fingerprint", "completer", "files", "errors"},
    "permission": {"signing", "files", "errors"},
    "registry": {"fingerprint", "verify", "permission", "files", "errors"},
    "commit": {"fingerprint", "secret", "signing", "files", "errors"},
    "embed": {"ops", "generate", "fingerprint", "models", "measure", "verify", "files", "errors"},
    "plan": {"embed", "measure", "models", "errors"},
    "evaluate": {
        "generate",
        "embed",
        "verify",
        "measure",
        "models",
        "fingerprint",
        "completer",
        "files",
        "settings",
        "errors",
    },
    "report": {"verify", "commit", "completer", "fingerprint", "secret", "signing", "files", "errors"},
    "serving": {"permission", "registry", "completer", "models", "signing", "files", "settings", "errors"},
    "oml_model": {"permission", "models", "serving", "signing", "errors"},
}
# Two files of one room.
ROOM_OF = {"fingerprint_json": "fingerprint"}
THIRD_PARTIES: dict[str, set[str]] = {
    "kernels": {"torch", "triton"},
    "settings": {"yaml"},
    "backends": {"torch"},
    "ops": {"torch", "numpy"},
    "models": {"torch", "transformers", "safetensors", "tqdm"},
    "measure": {"torch"},
    "generate": {"torch", "transformers", "tqdm"},
    "embed": {"jinja2", "safetensors", "torch", "tqdm"},
    "plan": {"torch"},
    "signing": {"cryptography"},
    "verify": {"aiohttp", "numpy", "scipy", "tqdm"},
    "permission": {"jwt"},
    "registry": {"alembic", "sqlalchemy"},
    "commit": {"cryptography", "rfc3161_client"},
    "interchange": {"yaml"},
    "report": {"cryptography", "jinja2", "markupsafe", "matplotlib"},
    "serving": {"prometheus_client", "vllm"},
    "oml_model": {"torch"},
    "evaluate": {
        "datasets",
        "gguf",
        "jinja2",
        "lm_eval",
        "matplotlib",
        "numpy",
        "peft",
        "ray",
        "scipy",
        "torch",
        "tqdm",
        "transformers",
    },
    "cli": {"transformers"},
}


def files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def room(path: Path) -> str:
    if (ROOT / "kernels") in path.parents:
        return "kernels"
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = "package" if parts == ("__init__",) else parts[0]
    return ROOM_OF.get(name, name)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """("ours", room) or ("third", top-level module) for every import in the file."""
    package = (
        ["oml_fast", *path.relative_to(PACKAGE).parent.parts] if PACKAGE in path.parents else ["oml_fast", "kernels"]
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            stem = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join(stem)] if node.module else [".".join([*stem, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "oml_fast":
                yield "third", parts[0]
            elif len(parts) > 1 and parts[1] != "__version__":
                yield "ours", ROOM_OF.get(parts[1], parts[1])


def test_every_file_is_in_a_known_room() -> None:
    assert {room(path) for path in files()} - {"package", "cli"} == set(ROOMS)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    if own in ("package", "cli"):  # the package's door and the CLI may import everything; nothing imports them
        return
    for kind, name in imports(path):
        if kind == "ours" and name != own:
            assert name in ROOMS[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_parties_stay_in_their_rooms(path: Path) -> None:
    allowed = THIRD_PARTIES.get(room(path), set()) | set(sys.stdlib_module_names)
    found = {name for kind, name in imports(path) if kind == "third"}
    assert found <= allowed, f"{room(path)} imports {found - allowed}"


def test_the_table_of_rooms_has_no_cycle() -> None:
    left = {name: set(below) - {"_native"} for name, below in ROOMS.items()}
    while left:
        free = {name for name, below in left.items() if not below & left.keys()}
        assert free, f"cycle among {sorted(left)}"
        left = {name: below for name, below in left.items() if name not in free}


def test_nothing_imports_the_cli() -> None:
    assert not [path for path in files() if room(path) != "cli" and ("ours", "cli") in set(imports(path))]


def test_nobody_imports_kernels_by_its_bare_name() -> None:
    everything = [*files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    for path in everything:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "kernels" for alias in node.names), path
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "kernels", path


HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "yaml",
    "sqlalchemy",
    "alembic",
    "aiohttp",
    "jinja2",
    "cryptography",
    "jwt",
)


@pytest.mark.parametrize("heavy", HEAVY)
@pytest.mark.parametrize("statement", ["import oml_fast", "import oml_fast.cli", "import oml_fast.fingerprint"])
def test_the_doors_are_light(statement: str, heavy: str) -> None:
    code = f"{statement}, sys; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "statement",
    [
        "from oml_fast import verify",
        "from oml_fast import Permission, issue, check",
        "from oml_fast import OMLModel; OMLModel.body('a prompt')",
        "import oml_fast.permission",
        "import oml_fast.report",
        "import oml_fast.secret",
    ],
)
def test_verification_needs_no_torch(statement: str) -> None:
    code = f"{statement}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["generate", "embed", "verify"])
def test_a_public_name_is_the_function_whatever_was_imported_before(name: str) -> None:
    code = f"import oml_fast.{name}; from oml_fast import {name}; assert callable({name}), {name}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_settings_reads_the_environment() -> None:
    for path in files():
        if room(path) in ("settings", "cli"):  # the CLI sets third parties' switches for its own process
            continue
        assert "os.environ" not in path.read_text(), path
