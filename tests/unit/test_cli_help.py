"""The command line itself: help, examples, what it imports, how it refuses misuse."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from penstock.cli.app import app

COMMANDS = {
    *(
        "up",
        "down",
        "status",
        "attach",
        "detach",
        "attachments",
        "mount",
        "umount",
        "mounts",
        "ls",
        "stat",
        "cat",
        "du",
        "cp",
        "rm",
        "mv",
        "mkdir",
        "touch",
        "persist",
        "preload",
        "evict",
    ),
    *("verify", "pin", "unpin", "doctor", "bench", "demo", "job ls", "job show", "job wait", "job cancel"),
    *("job retry", "cache ls", "cache why", "cache prune", "config show"),
    *(f"snapshot {each}" for each in ("create", "ls", "show", "diff", "rm", "mount")),
    *(f"ckpt {each}" for each in ("ls", "watch", "persist", "restore", "gc")),
    *(f"conflicts {each}" for each in ("ls", "show", "keep-mine", "keep-theirs")),
}
WITHOUT_DATA = {
    "up",
    "down",
    "detach",
    "umount",
    "cat",
    "cp",
    "pin",
    "unpin",
    "job cancel",
    "snapshot rm",
    "rm",
    "mv",
    "mkdir",
    "touch",
    "persist",
    "ckpt watch",
    "ckpt persist",
    "ckpt gc",
    "conflicts keep-mine",
    "conflicts keep-theirs",
}


def commands(group: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


ALL = dict(commands(typer.main.get_command(app)))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock.cli", *arguments], capture_output=True, text=True, timeout=60, env=environment
    )


def test_the_commands_are_those_of_the_manual() -> None:
    assert set(ALL) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_sentence_and_examples_that_begin_with_it(name: str) -> None:
    command = ALL[name]
    first = command.help.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 55
    lines = [line.strip() for line in command.epilog.splitlines()]
    assert lines[1] == "Examples:"
    assert len(lines) > 2
    assert all(f"penstock {name}" in line for line in lines[2:])


@pytest.mark.parametrize("name", ["", *sorted({name.split()[0] for name in COMMANDS if " " in name})])
def test_every_group_has_examples_that_begin_with_it(name: str) -> None:
    group = typer.main.get_command(app)
    lines = (group.commands[name] if name else group).epilog.split("\n\n")[0].splitlines()
    assert lines[1] == "Examples:"
    assert len(lines) > 2
    assert all(line.strip().startswith(f"penstock {name}".rstrip()) for line in lines[2:])


@pytest.mark.parametrize("name", sorted(COMMANDS - WITHOUT_DATA))
def test_every_command_that_prints_data_can_print_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in ALL[name].params)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['penstock', '--help']\n"
        "from penstock.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'rich', 'pydantic', 'fastapi', 'uvicorn', 'fsspec', 'penstock._core'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["dance"], "No such command"),
        (["ls", "relative"], "paths of the tree begin with /"),
        (["attach"], "Missing argument"),
        (["attach", "gs://bucket", "/data"], "no source for gs://"),
        (["attach", "s3://key:topsecret@bucket", "/data"], "credentials in a URL"),
        (["attach", "s3://bucket", "/data", "--credentials", "AKIA:topsecret"], "not a reference"),
        (["attach", "s3://bucket", "/data", "--freshness", "sometimes"], "or immutable"),
        (["attach", "s3://bucket", "data"], "paths of the tree begin with /"),
        (["attach", "s3://bucket", "/data", "--durability", "source"], "add --writable"),
        (["attach", "s3://bucket", "/data", "--writable", "--durability", "replicated"], "needs several nodes"),
        (["attach", "s3://bucket", "/data", "--writable", "--freshness", "immutable"], "seen to change"),
        (["rm", "data/a"], "paths of the tree begin with /"),
        (["persist", "/data", "--timeout", "soon"], "not a duration"),
        (["mount", "/mnt/lake", "--path", "data"], "paths of the tree begin with /"),
        (["mount", "/mnt/lake", "--owner", "me"], "write two numbers"),
        (["mount", "/mnt/lake", "--file-mode", "rw"], "in octal"),
        (["mount", "/"], "the machine's root directory"),
        (["config", "show", "--set", "cache.sise=1"], "did you mean cache.size?"),
        (["cache", "prune", "--to", "much"], "not a size"),
        (["preload", "/data", "--max-rate", "fast"], "not a size"),
        (["preload", "/data", "--max-rate", "0"], "leave it out"),
    ],
)
def test_misuse_ends_with_2_one_line_and_no_trace(arguments: list[str], needle: str, tmp_path: Any) -> None:
    done = run(*arguments, PENSTOCK_HOME=str(tmp_path / "h"), PATH="")
    assert done.returncode == 2
    assert needle in done.stderr
    assert "Traceback" not in done.stderr
    assert "topsecret" not in done.stderr + done.stdout


def test_a_bad_configuration_is_misuse(tmp_path: Any) -> None:
    (tmp_path / "config.toml").write_text("[cache]\nsise = 1\n")
    done = run("config", "show", PENSTOCK_HOME=str(tmp_path), PATH="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "did you mean cache.size? [invalid-input]" in done.stderr


def test_status_without_a_node_fails_with_what_to_do(tmp_path: Any) -> None:
    done = run("status", PENSTOCK_HOME=str(tmp_path / "h"), PATH="")
    assert done.returncode == 1
    assert "no node runs on this home; `penstock up` starts one [unavailable]" in done.stderr


def test_down_without_a_node_has_nothing_to_do(tmp_path: Any) -> None:
    done = run("down", PENSTOCK_HOME=str(tmp_path / "h"), PATH="")
    assert (done.returncode, done.stdout) == (0, "no node runs\n")


def test_config_show_names_origins_and_prints_json(tmp_path: Any) -> None:
    import json

    done = run("config", "show", "--json", PENSTOCK_HOME=str(tmp_path), PENSTOCK_CACHE__SIZE="7GiB", PATH="")
    values = {each["key"]: each for each in json.loads(done.stdout)}
    assert values["cache.size"] == {
        "key": "cache.size",
        "value": 7 << 30,
        "origin": "environment: PENSTOCK_CACHE__SIZE",
    }
    shown = run("config", "show", "--origin", PENSTOCK_HOME=str(tmp_path), PENSTOCK_CACHE__SIZE="7GiB", PATH="")
    assert "7.0 GiB" in shown.stdout
    assert "environment: PENSTOCK_CACHE__SIZE" in shown.stdout


def test_a_reader_that_goes_away_ends_the_command_silently(tmp_path: Any) -> None:
    command = f"{sys.executable} -m penstock.cli config show --json | head -c 1"
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PENSTOCK_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.stderr == ""
