"""Writes the reference pages from the code itself before Sphinx reads them: configuration, errors, metrics, commands.

One fact, one place: a key, a kind or a command that exists is in the reference, with the words of its definition.
"""

from __future__ import annotations

import errno
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compared
import measured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

METRIC = re.compile(r"^\s*/// (?P<help>.*)\n\s*(?P<name>\w+);$", re.MULTILINE)
CONTRACT_TEST = re.compile(r"^ *(?:async )?(?:fn|def) (?:test_)?contract_(\d)_(\w+)\(", re.MULTILINE)
# How typer marks what is required; the reference writes it as people do.
REQUIRED = re.compile(r"\{(\w+)(?:\.\.\.)?\}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Hooks the generator in front of the build."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "_generated"))
    return {"version": "1", "parallel_read_safe": True}


def write_pages(directory: Path) -> None:
    """Writes every generated page; an unchanged page keeps its time, so that a second build is quick."""
    directory.mkdir(exist_ok=True)
    pages = {
        "configuration.md": configuration_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
        "commands.md": commands_page(),
        "contract.md": contract_page(),
        "results.md": measured.table(),
        "peers.md": compared.page(),
    }
    for name, text in pages.items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def configuration_page() -> str:
    """Every key of the configuration, section by section."""
    from penstock.config import Settings, key_documentation

    lines: list[str] = []
    section = ""
    for key, kind, default, documentation in key_documentation():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            about = inspect.getdoc(Settings.model_fields[section].annotation) or ""
            lines += [
                "",
                f"## {section}",
                "",
                about,
                "",
                "| Key | Takes | Default | What it does |",
                "|---|---|---|---|",
            ]
        lines.append(f"| `{key}` | {cell(kind)} | {cell(default_text(kind, default))} | {cell(documentation)} |")
    return "\n".join(lines) + "\n"


def default_text(kind: str, default: Any) -> str:
    """A default as a user would write it; what is worked out at run time is told by the documentation."""
    from penstock.units import format_duration, format_size

    if default is None:
        return "`off`" if "off" in kind else "see right"
    if kind == "duration":
        return f"`{format_duration(default).replace(' ', '')}`" if default else "`0`"
    if kind == "size":
        return f"`{format_size(default).replace('.0 ', '').replace(' ', '')}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return "none" if default == () else f"`{default}`"


def cell(text: str) -> str:
    """Text that fits one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def errors_page() -> str:
    """Every kind of error under an anchor of its code."""
    from penstock.errors import ERROR_TYPES

    return "\n".join(error_lines(ERROR_TYPES))


def error_lines(types: dict[str, type[Any]]) -> Iterator[str]:
    """The entries of the error reference."""
    for code, kind in types.items():
        yield from (f"({code})=", f"## {code}", "", inspect.getdoc(kind) or "", "")
        yield f"`penstock.errors.{kind.__name__}`, errno `{errno.errorcode[kind.errno]}`."
        yield ""


def metrics_page() -> str:
    """Every metric of a node, from the list in Rust."""
    text = (ROOT / "crates/types/src/metrics.rs").read_text()
    text = text[text.rindex("metrics! {") :]
    counters, _, gauges = text.partition("gauges {")
    lines = ["| Metric | Type | What it counts |", "|---|---|---|"]
    lines += [
        f"| `penstock_{row['name']}_total` | counter | {cell(row['help'])} |" for row in METRIC.finditer(counters)
    ]
    lines += [f"| `penstock_{row['name']}` | gauge | {cell(row['help'])} |" for row in METRIC.finditer(gauges)]
    return "\n".join(lines) + "\n"


def contract_page() -> str:
    """The tests that are named after the sentences of the contract."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted([*ROOT.glob("crates/**/*.rs"), *ROOT.glob("tests/**/*.py")]):
        for number, name in CONTRACT_TEST.findall(path.read_text()):
            found.setdefault(number, []).append((name.replace("_", " "), str(path.relative_to(ROOT))))
    lines = []
    for number, tests in sorted(found.items()):
        lines += ["", f"Sentence {number}:", "", *(f"- {name} (`{place}`)" for name, place in sorted(tests))]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Every command with its arguments, options and examples, as `--help` tells them."""
    import typer

    from penstock.cli.app import app

    lines: list[str] = []
    root = typer.main.get_command(app)
    for path, command in sorted(walk_commands("penstock", root)):
        usage = REQUIRED.sub(
            r"\1", " ".join(command.collect_usage_pieces(command.make_context(path, [], resilient_parsing=True)))
        )
        lines += ["", f"## {path}", "", "```text", f"{path} {usage}", "```", ""]
        lines += [help_text(command), ""]
        options = [option for option in command.params if getattr(option, "help", None) and not option.hidden]
        lines += [f"- `{spelling(option)}`: {cell(option.help)}" for option in options]
    return "\n".join(lines) + "\n"


def walk_commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of the tree of commands with their full names."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        if not below.hidden:
            yield from walk_commands(f"{path} {name}", below)


def spelling(option: Any) -> str:
    """How an option or argument is written."""
    if option.param_type_name == "argument":
        return (option.metavar or option.name or "").upper()
    return ", ".join([*option.opts, *option.secondary_opts])


def help_text(command: Any) -> str:
    """The help of a command, and its examples as a block."""
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    _, _, examples = (command.epilog or "").partition("Examples:\n")
    return text + (f"\n\n```text\n{inspect.cleandoc(examples)}\n```" if examples else "")
