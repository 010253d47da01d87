"""A node that cannot start says why, with exit code 1, and leaves the home as it was."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.home import locate

PENSTOCK = "penstock"
CONNECT = """
import sys
from penstock.client.launch import start_node
from penstock.errors import PenstockError
from penstock.home import locate
try:
    start_node(locate(sys.argv[1]), sys.argv[2:])
except PenstockError as error:
    sys.exit(str(error))
"""
Trouble = Callable[[Any], contextlib.AbstractContextManager[tuple[dict[str, str], list[str], str, str]]]
"""Makes trouble on a machine: environment and settings of the start, and the words of cause and fix."""


@contextlib.contextmanager
def a_file_where_the_home_should_be(machine: Any) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    file = machine.directory / "file"
    file.write_text("not a directory")
    yield {"PENSTOCK_HOME": str(file)}, [], "a file stands where a directory is needed", "PENSTOCK_HOME"
    assert file.read_text() == "not a directory"


@contextlib.contextmanager
def a_home_below_a_file(machine: Any) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    file = machine.directory / "file"
    file.write_text("not a directory")
    yield {"PENSTOCK_HOME": str(file / "home")}, [], "a file stands where a directory is needed", "PENSTOCK_HOME"


@contextlib.contextmanager
def a_home_that_the_kernel_owns(machine: Any) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    yield (
        {"PENSTOCK_HOME": "/proc/penstock"},
        [],
        "cannot be made",
        "set PENSTOCK_HOME to a directory that you can write",
    )


@contextlib.contextmanager
def a_metrics_port_that_is_taken(machine: Any) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        yield {}, [f"node.metrics_port={port}"], str(port), "node.metrics_port"


@contextlib.contextmanager
def a_cache_that_another_home_uses(machine: Any) -> Iterator[tuple[dict[str, str], list[str], str, str]]:
    shared = machine.directory / "shared"
    machine("up", "--set", f"cache.directory={shared}")
    other = machine.directory / "other"
    yield {"PENSTOCK_HOME": str(other)}, [f"cache.directory={shared}"], str(shared), "cache"
    assert machine.json("status")["pid"] == machine.pid(), "the one that was there goes on"


TROUBLES: list[Trouble] = [
    a_file_where_the_home_should_be,
    a_home_below_a_file,
    a_home_that_the_kernel_owns,
    a_metrics_port_that_is_taken,
    a_cache_that_another_home_uses,
]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("way", ["up", "up --foreground", "connect"])
def test_a_node_that_cannot_start_is_refused_with_the_reason(machine: Any, trouble: Trouble, way: str) -> None:
    with trouble(machine) as (environment, settings, cause, fix):
        flags = [part for each in settings for part in ("--set", each)]
        home = environment.get("PENSTOCK_HOME", str(machine.home.name))
        command = (
            [sys.executable, "-c", CONNECT, home, *settings] if way == "connect" else [PENSTOCK, *way.split(), *flags]
        )
        process = machine.spawn(*command, **environment)
        _, said = process.communicate(timeout=60)
        # A home that is a file is an input that cannot be right.
        assert process.returncode == (2 if "a file stands" in cause and way != "connect" else 1), said
        assert cause in said
        assert fix in said
        assert way == "up --foreground" or len(said.splitlines()) == 1
        if "PENSTOCK_HOME" not in environment:
            assert not machine.home.node_file.exists()
            assert not machine.home.data_socket.exists()


def test_a_second_node_on_a_home_is_refused_and_the_first_goes_on(machine: Any) -> None:
    machine("up")
    pid = machine.pid()
    refused = machine("up", "--foreground", check=1)
    assert refused.stderr.startswith("error: ")
    assert f"pid={pid}" in refused.stderr
    assert "penstock down" in refused.stderr
    assert machine.json("status")["pid"] == pid


def with_read_only(directory: Path) -> list[str]:
    """How the command line is begun where it finds a directory mounted read-only."""
    if os.getuid() != 0:
        pytest.skip("needs a mount that root gives away")
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(directory), sys.executable, "-m", "penstock.cli"]


def test_a_home_that_became_read_only_is_refused_and_works_again_when_it_is_writable(machine: Any) -> None:
    """Rights do not bind root, a read-only mount does; the mount lives in a name space of its own."""
    machine.home.prepare()
    command = with_read_only(machine.home.name)
    done = subprocess.run([*command, "up"], capture_output=True, text=True, env=machine.environment, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "mounted read-only" in done.stderr
    assert "PENSTOCK_HOME" in done.stderr
    machine("up")
    assert machine.json("status")["pid"] == machine.pid()


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("mode", [0o700, 0o755])
@pytest.mark.parametrize("command", ["up", "up --foreground", "status", "ls /"])
def test_a_home_of_another_user_is_refused_with_the_reason(machine: Any, command: str, mode: int) -> None:
    home = machine.directory / "theirs"
    home.mkdir(mode=mode)
    home.chmod(mode)
    os.chown(home, 65534, 65534)
    # Root, but without what lets it pass by rights.
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown"]
    done = subprocess.run(
        [*bound, PENSTOCK, *command.split()],
        capture_output=True,
        text=True,
        env={**machine.environment, "PENSTOCK_HOME": str(home)},
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert list(home.iterdir()) == []
    nobody_is_there = mode == 0o755 and command == "status"
    assert ("no node runs" if nobody_is_there else "another user") in done.stderr
    assert nobody_is_there or "PENSTOCK_HOME" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs a mount that root gives away")
@pytest.mark.parametrize("way", ["up", "up --foreground", "connect"])
def test_a_home_on_a_full_disk_is_refused_with_the_reason(machine: Any, way: str) -> None:
    """Whoever starts it is told, though the disk takes not even the line that says so."""
    machine.home.name.mkdir(parents=True, exist_ok=True)
    fill = 'dd if=/dev/zero of="$0/full" bs=4k 2> /dev/null; mkdir "$0/logs"; : > "$0/logs/node.err"; exec "$@"'
    script = f'mount -t tmpfs -o size=1m,mode=700 none "$0" && {{ {fill}; }}'
    command = [PENSTOCK, *way.split()] if way != "connect" else [sys.executable, "-c", CONNECT, str(machine.home.name)]
    process = machine.spawn("unshare", "--mount", "sh", "-c", script, str(machine.home.name), *command)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "No space left on device" in said
    assert "free space there, or set PENSTOCK_HOME to another directory" in said
    assert "Traceback" not in said


def test_a_cache_that_became_read_only_stops_no_start_and_status_says_so(machine: Any) -> None:
    """Both ways: the default cache, in the home, and one elsewhere that has to do while the default is out of reach."""
    machine.home.prepare()
    command = with_read_only(machine.home.cache)
    done = subprocess.run([*command, "up"], capture_output=True, text=True, env=machine.environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{machine.home.cache} takes nothing" in done.stderr
    assert "NOT CACHING: " in machine("status").stdout
    machine("down")
    elsewhere = f"cache.directory={machine.directory / 'elsewhere'}"
    arguments = [*command, "up", "--set", elsewhere]
    done = subprocess.run(arguments, capture_output=True, text=True, env=machine.environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "NOT CACHING" not in machine("status").stdout


def test_a_socket_path_that_would_be_too_long_is_told_or_avoided(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    long = machine.directory / ("h" * 120) / "home"
    machine.environment["PENSTOCK_HOME"] = str(long)
    machine.home = locate(long, {})
    machine("up")
    status = machine.json("status")
    assert status["home"] == str(long)
    assert len(os.fsencode(machine.home.control_socket)) <= 107
    assert Path(machine.home.run).stat().st_mode & 0o077 == 0
    assert json.loads(machine.home.node_file.read_text())["pid"] == status["pid"]
    assert status["control_socket"] == str(machine.home.control_socket)
    assert f"(sockets in {machine.home.run})" in machine("status").stdout
    machine("down")
    assert not machine.home.run.exists()
    assert machine("down").stdout == "no node runs\n"
    assert not machine.home.run.exists()
