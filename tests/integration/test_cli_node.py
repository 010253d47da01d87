"""``up``, ``down``, ``status``: one node a home, gone when told or when nobody needs it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import alive
from penstock.client.launch import start_node

SERVER = (sys.executable, "-m", "penstock.server")


def test_a_node_starts_tells_of_itself_and_stops(machine: Any) -> None:
    assert "node started (pid" in machine("up").stdout
    status = machine.json("status")
    assert status["pid"] == machine.pid()
    assert status["home"] == str(machine.home.name)
    assert "nothing yet" in machine("status").stdout
    assert machine("up").stdout == f"node runs already (pid {status['pid']})\n"
    assert machine("down").stdout == f"node stopped (pid {status['pid']})\n"
    assert not alive(status["pid"]), "who unmounts the disk of the home now can do that"
    assert not machine.home.node_file.exists()
    assert not machine.home.control_socket.exists()
    assert not machine.home.data_socket.exists()
    machine("status", check=1)


def test_settings_for_a_node_that_runs_are_refused(machine: Any) -> None:
    machine("up")
    assert "`penstock down` first" in machine("up", "--set", "log.level=debug", check=1).stderr
    assert "did you mean cache.size?" in machine("up", "--set", "cache.sze=1GiB", check=2).stderr


def test_status_says_that_a_floor_keeps_everything_out_of_the_cache(machine: Any) -> None:
    assert "takes nothing, reads go uncached: " in machine("up", "--set", "cache.free_space_floor=0.9999").stderr
    said = machine("status").stdout
    assert "NOT CACHING: " in said
    assert "cache.free_space_floor" in said
    machine("down")
    machine("up", "--set", "cache.free_space_floor=0")
    assert "NOT CACHING" not in machine("status").stdout


def test_a_relative_home_is_the_same_for_the_node_and_for_those_who_start_it(machine: Any) -> None:
    name = os.path.relpath(machine.home.name, machine.directory)
    started = machine("up", PENSTOCK_HOME=name).stdout
    assert f"home {machine.home.name}" in started
    machine("down")
    script = "import penstock, sys; print(penstock.connect(sys.argv[1]).status()['home'])"
    done = subprocess.run(
        [sys.executable, "-c", script, name], capture_output=True, text=True, cwd=machine.directory, timeout=60
    )
    assert done.stdout.strip() == str(machine.home.name), done.stderr


def test_sockets_are_private(machine: Any) -> None:
    machine("up")
    for path in (machine.home.control_socket, machine.home.data_socket, machine.home.node_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(machine.home.run.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_another_user_is_hung_up_on(machine: Any) -> None:
    machine("up")
    machine.home.control_socket.chmod(0o666)
    for directory in (machine.home.run, *machine.home.run.parents):
        directory.chmod(directory.stat().st_mode | 0o001)
    script = (
        "import os, socket, sys\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "try:\n s.sendall(b'GET /v1/status HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n print(len(s.recv(100)))\n"
        "except (BrokenPipeError, ConnectionResetError): print(0)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script, str(machine.home.control_socket)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "0\n", done.stderr


def test_a_second_node_on_one_home_is_refused_with_the_pid(machine: Any) -> None:
    machine("up")
    second = machine("up", "--foreground", check=1)
    assert "another node runs on this home" in second.stderr
    assert f"pid={machine.pid()}" in second.stderr
    assert machine.json("status")["pid"] == machine.pid()


def test_many_at_once_start_exactly_one_node(machine: Any) -> None:
    starts = [machine.spawn(sys.executable, "-m", "penstock.cli", "up") for _ in range(6)]
    outputs = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0] * 6, outputs
    pids = {output.split("pid ")[1].split(",")[0].split(")")[0] for output, _ in outputs}
    assert pids == {str(machine.pid())}


def test_what_a_dead_node_left_is_cleared_by_the_next(machine: Any) -> None:
    machine("up")
    machine.kill()
    assert machine.home.control_socket.exists()
    machine("status", check=1)
    assert "node started" in machine("up").stdout
    assert machine.json("status")["problems"] == []


def test_sigterm_drains_and_leaves_nothing_in_the_way(machine: Any) -> None:
    machine("up")
    pid = machine.pid()
    os.kill(pid, signal.SIGTERM)
    machine.until(lambda: not machine.home.node_file.exists())
    log = [json.loads(line) for line in machine.home.log_file.read_text().splitlines()]
    machine.until(lambda: "node stopped" in machine.home.log_file.read_text())
    assert any(line["message"] == "node started" and line["pid"] == pid for line in log if "pid" in line)
    machine("up")


def test_an_idle_node_leaves_by_itself_and_the_next_command_starts_another(machine: Any) -> None:
    started = machine("up", PENSTOCK_NODE__IDLE_TIMEOUT="1s").stdout
    machine.until(lambda: not machine.home.node_file.exists())
    assert "nobody needs the node" in machine.home.log_file.read_text()
    machine("attachments")
    assert f"(pid {machine.pid()}" not in started


def test_a_foreground_node_logs_to_standard_error_and_stays(machine: Any) -> None:
    node = machine.spawn(*SERVER, "--foreground", "--set", "node.idle_timeout=200ms")
    machine.until(machine.home.node_file.exists)
    assert machine.control().status()["idle_timeout_s"] is None
    node.send_signal(signal.SIGINT)
    _, errors = node.communicate(timeout=30)
    assert node.returncode == 0
    assert all(json.loads(line)["level"] for line in errors.splitlines())


def test_a_home_that_cannot_be_written_is_refused_with_the_reason(machine: Any) -> None:
    refused = machine("up", check=1, PENSTOCK_HOME="/proc/penstock")
    assert "set PENSTOCK_HOME to a directory that you can write" in refused.stderr


def test_a_metrics_port_that_is_taken_is_refused_with_the_reason(machine: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = machine("up", "--set", f"node.metrics_port={port}", check=None)
    assert refused.returncode in (1, 2)
    assert str(port) in refused.stderr
    assert not machine.home.node_file.exists()


def test_a_bad_setting_is_misuse_and_starts_nothing(machine: Any) -> None:
    refused = machine("up", "--set", "cache.sise=1GiB", check=2)
    assert "did you mean cache.size?" in refused.stderr
    machine.home.config.parent.mkdir(parents=True, exist_ok=True)
    machine.home.config.write_text("[cache]\nsize = 'huge'\n")
    assert "cache.size" in machine("up", check=2).stderr
    assert not machine.home.node_file.exists()


def test_a_project_file_of_the_working_directory_counts(machine: Any) -> None:
    (machine.directory / "penstock.toml").write_text("[node]\nidle_timeout = '7min'\n")
    machine.environment.pop("PENSTOCK_NODE__IDLE_TIMEOUT")
    machine("up")
    assert machine.json("status")["idle_timeout_s"] == 420


def test_a_home_with_a_very_long_path_works(machine: Any) -> None:
    long = machine.directory / ("h" * 100) / "home"
    machine.environment["PENSTOCK_HOME"] = str(long)
    machine.home = type(machine).__init__.__globals__["locate"](long, {})
    machine("up")
    assert machine.json("status")["home"] == str(long)
    machine("down")
    assert not machine.home.run.exists()


def test_a_start_survives_the_process_that_asked_for_it(machine: Any) -> None:
    start = machine.spawn(sys.executable, "-m", "penstock.cli", "up")
    start.communicate(timeout=60)
    assert os.getsid(machine.pid()) == machine.pid()
    assert machine.json("status")["pid"] == machine.pid()


def test_a_broken_start_tells_why_in_one_line(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.home.prepare()
    (machine.home.state / "cache.redb").mkdir()
    refused = machine("up", check=1)
    assert refused.stderr.count("\n") == 1
    assert "[" in refused.stderr


def test_starting_twice_from_python_is_harmless(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)
    start_node(machine.home)
    pid = machine.pid()
    start_node(machine.home)
    assert machine.pid() == pid


def test_ctrl_c_while_a_node_starts_leaves_none_behind(machine: Any) -> None:
    machine.home.prepare()
    os.mkfifo(machine.home.config)  # holds the start until somebody writes, which nobody does
    start = machine.spawn(sys.executable, "-m", "penstock.cli", "up")

    def processes() -> list[Path]:
        return [process for process in Path("/proc").glob("[0-9]*") if is_server(process)]

    def is_server(process: Path) -> bool:
        name = b"PENSTOCK_HOME=" + os.fsencode(machine.home.name)
        try:
            # Another user's, or gone meanwhile, is none of ours.
            return b"penstock.server" in (process / "cmdline").read_bytes().split(b"\0") and name in (
                process / "environ"
            ).read_bytes().split(b"\0")
        except OSError:
            return False

    machine.until(lambda: len(processes()) == 2)
    start.send_signal(signal.SIGINT)
    start.communicate(timeout=30)
    assert start.returncode == 130
    assert processes() == []
