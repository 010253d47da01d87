"""The rules of the tree, held by reading it: who may import whom, and how large a file or a function may grow."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
CRATES = sorted(path.parent for path in ROOT.glob("crates/*/Cargo.toml"))

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# A crate may name these crates of ours in [dependencies], and no others. Siblings never see each other: what one
# needs of another comes through a trait in `types`.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "source": {"types"},
    "cache": {"types"},
    "catalog": {"types"},
    "image": {"types"},
    "stage": {"types"},
    "remote": {"types"},
    "fuse": {"types"},
    "testkit": {"types"},
    "engine": {"types", "source", "cache", "catalog", "image", "stage"},
    "node": {"types", "engine", "fuse"},
    "python": {"types", "node", "remote"},
}

# Dev-dependencies may add these: the test kit to all, the simulated remote to those that talk to a store.
ALLOWED_IN_TESTS: dict[str, set[str]] = {
    "source": {"testkit", "remote"},
    "stage": {"testkit", "cache"},
    "engine": {"testkit", "remote"},
    "node": {"testkit", "remote", "source", "cache", "catalog"},
    "remote": {"testkit", "source"},
}


# Whether what a target builds can be told to fail: see crates/types/src/faults.rs.
BUILDS = {"core-dev": True, "soak": True, "core-release": False, "wheel": False, "bench": False, "demo": False}


def manifest(crate: Path) -> dict[str, dict[str, object]]:
    return tomllib.loads((crate / "Cargo.toml").read_text())


def ours(table: dict[str, object]) -> set[str]:
    return {name.removeprefix("penstock-") for name in table if name.startswith("penstock-")}


def tables(crate: Path, name: str) -> Iterator[dict[str, object]]:
    document = manifest(crate)
    yield document.get(name, {})
    for target in document.get("target", {}).values():
        assert isinstance(target, dict)
        yield target.get(name, {})


def tracked(*patterns: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listing.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("crate", CRATES, ids=lambda path: path.name)
def test_a_crate_depends_only_on_the_crates_below_it(crate: Path) -> None:
    assert crate.name in ALLOWED, f"{crate.name} is a new crate: give it a place in ALLOWED and in DESIGN.md"
    for kind in ("dependencies", "build-dependencies"):
        for table in tables(crate, kind):
            assert ours(table) <= ALLOWED[crate.name]


@pytest.mark.parametrize("crate", CRATES, ids=lambda path: path.name)
def test_tests_of_a_crate_add_only_the_test_kit_and_what_they_talk_to(crate: Path) -> None:
    allowed = ALLOWED[crate.name] | ALLOWED_IN_TESTS.get(crate.name, {"testkit"})
    for table in tables(crate, "dev-dependencies"):
        assert ours(table) <= allowed


def test_only_the_python_crate_knows_pyo3() -> None:
    knowing = {
        crate.name
        for crate in CRATES
        for kind in ("dependencies", "dev-dependencies", "build-dependencies")
        for table in tables(crate, kind)
        if any(name.startswith("pyo3") for name in table)
    }
    assert knowing <= {"python"}


def test_every_crate_takes_the_versions_and_lints_of_the_workspace() -> None:
    for crate in CRATES:
        document = manifest(crate)
        assert document.get("lints") == {"workspace": True}, f"{crate.name} does not inherit the lints"
        for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
            for table in tables(crate, kind):
                pinned = [name for name, value in table.items() if not takes_workspace_version(value)]
                assert not pinned, f"{crate.name} gives {pinned} a version of its own"


def takes_workspace_version(value: object) -> bool:
    return isinstance(value, dict) and value.get("workspace") is True


def features_of_types(*flags: str) -> str:
    command = ["cargo", "tree", "-p", "penstock-python", "-e", "normal", "-f", "{p}|{f}", "--prefix", "none", *flags]
    listing = subprocess.run([*command, "--locked"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = {line.removesuffix(" (*)") for line in listing.splitlines() if line.startswith("penstock-types ")}
    [line] = lines
    return line.partition("|")[2]


def test_what_is_released_cannot_be_told_to_fail() -> None:
    assert (features_of_types(), features_of_types("--features", "faults")) == ("", "faults")
    recipes = {target: subprocess.check_output(["make", "-n", target], cwd=ROOT, text=True) for target in BUILDS}
    assert {target: "--features faults" in recipe for target, recipe in recipes.items()} == BUILDS


def test_every_folder_of_code_says_first_what_it_owns() -> None:
    silent = [path for path in tracked("crates/*/src/lib.rs") if not path.read_text().startswith("//! ")]
    packages = tracked("python/penstock/*__init__.py")
    silent += [path for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_native_imports_the_compiled_module() -> None:
    importing = {
        path.name for path in tracked("python/penstock/*.py") if "penstock._core" in set(imported_modules(path))
    }
    assert importing <= {"_native.py"}


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked("*.py", "*.pyi", "*.rs")
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


RUST_FUNCTION = re.compile(r"^( *)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe |extern \"C\" )*fn (\w+)")


def rust_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Length of every function with a body. rustfmt puts its closing brace at the indentation of its `fn`."""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        found = RUST_FUNCTION.match(line)
        if not found:
            continue
        closing = found[1] + "}"
        for end in range(number, len(lines)):
            ends_here = lines[end] == closing or (end == number and line.endswith("}"))
            if ends_here or lines[end].startswith(found[1] + "}"):
                yield f"{path.relative_to(ROOT)}:{number + 1} {found[2]}", end - number + 1
                break
            if lines[end].endswith(";") and len(lines[end]) - len(lines[end].lstrip()) == len(found[1]):
                break  # a declaration without a body


def test_no_function_is_longer_than_a_screen() -> None:
    functions = [entry for path in tracked("*.py") for entry in python_functions(path)]
    functions += [entry for path in tracked("*.rs") for entry in rust_functions(path)]
    long = {name: lines for name, lines in functions if lines > FUNCTION_LINES_MAX}
    assert not long


def test_every_requirement_of_the_package_is_locked() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = {
        line.split("==")[0].lower()
        for line in (ROOT / "requirements-dev.txt").read_text().splitlines()
        if re.match(r"^[a-z]", line)
    }
    wanted = document["project"]["dependencies"] + document["dependency-groups"]["tools"]
    names = {re.split(r"[\[<>=~! ]", requirement)[0].lower() for requirement in wanted}
    assert names <= locked, "run `make lock`"


def test_the_lock_names_no_package_index() -> None:
    text = (ROOT / "requirements-dev.txt").read_text() + (ROOT / "Cargo.lock").read_text()
    assert "--index-url" not in text
    assert "--find-links" not in text
    sources = set(re.findall(r'^source = "(.*)"$', text, re.MULTILINE))
    assert sources <= {"registry+https://github.com/rust-lang/crates.io-index"}
