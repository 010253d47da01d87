"""What a CI run left behind, where it hangs and what its tests said. Standard library only: runs when set-up failed."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import signal
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MARK = "STARTED_BY_CI_RUN"

WATCH = ".ci/report.py watch"

LAST_WORDS_S = 10.0
"""How long a process that hangs may tell where it stands before it is killed."""

PYTEST_WORKER = "eval(sys.stdin.readline())"
"""In the command of a process that runs a part of the tests."""

SHOWN_LINES = 15
"""Of what a failed test said, the last so many lines: the assertion stands at the end."""

CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
CARGO_FAILED = re.compile(r"^test (.+) \.\.\. FAILED$", re.MULTILINE)
CARGO_SAID = re.compile(
    r"^---- ([^\n]+) stdout ----\n(.*?)(?=^---- [^\n]+ stdout ----$|^failures:$|^successes:$|\Z)",
    re.MULTILINE | re.DOTALL,
)
CARGO_IGNORED = re.compile(r"^test (\S+) \.\.\. ignored(?:, (.*))?$", re.MULTILINE)
# A Rust test cannot skip while it runs: it says `SKIPPED row NAME: reason`, past the harness's capture, and returns.
CARGO_SKIPPED = re.compile(r"\bSKIPPED (\w+ .+)$", re.MULTILINE)


@dataclass
class Counts:
    """What one or several test runners said."""

    passed: int = 0
    failed: int = 0
    skips: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    """What each failed test said."""


def leftover_processes(run: str) -> dict[int, str]:
    """Processes that inherited the mark of this run and are not ancestors of this one."""
    ancestors = {os.getpid()}
    parent = os.getppid()
    while parent > 1:
        ancestors.add(parent)
        parent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1])
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        process = int(directory.name)
        try:
            marked = f"{MARK}={run}".encode() in (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # gone meanwhile, or somebody else's
        # `tail` shows the output of the stage that asks, which is watched.
        if marked and process not in ancestors and not command.startswith("tail --pid=") and WATCH not in command:
            found[process] = command
    return found


def end(processes: Iterable[int], by: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, by)


def report_processes(run: str) -> int:
    """Say and end what is still running; a test that leaves a process behind is a defect."""
    left = leftover_processes(run)
    for process, command in left.items():
        print(f"left behind: {process} {command}")
    end(left, signal.SIGKILL)
    return 1 if left else 0


def where(process: int) -> str:
    """What the kernel says that a process and its threads wait for."""
    said = []
    for task in sorted(Path(f"/proc/{process}/task").glob("*")):
        with contextlib.suppress(OSError):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            said.append(f"{task.name} {state} {(task / 'wchan').read_text()}")
    return ", ".join(said)


def watch(limit_s: float, run: str) -> int:
    """Ended from outside, unless what this run started takes too long: says what it waits for and ends all of it."""
    time.sleep(limit_s)
    left = leftover_processes(run)
    for process, command in left.items():
        print(f"still running after {limit_s:.0f} s: {process} {command}: {where(process)}", flush=True)
    # What tests of Python run in says at its end where each of its threads stands.
    if workers := [process for process, command in left.items() if PYTEST_WORKER in command]:
        end(workers, signal.SIGABRT)
        time.sleep(LAST_WORDS_S)
    end(left, signal.SIGKILL)
    return 1


def cargo_counts(log: Path) -> Counts:
    """Read the log of `cargo test`, which has a line of results for every crate and its doc tests."""
    text = log.read_text(errors="replace") if log.exists() else ""
    counts = Counts()
    for passed, failed, _ in CARGO_RESULT.findall(text):
        counts.passed += int(passed)
        counts.failed += int(failed)
    counts.skips += [f"{name}: {reason or 'ignored'}" for name, reason in CARGO_IGNORED.findall(text)]
    counts.skips += CARGO_SKIPPED.findall(text)
    said = dict(CARGO_SAID.findall(text))
    counts.failures = {name: said.get(name, "") for name in CARGO_FAILED.findall(text)}
    return counts


def pytest_counts(report: Path) -> Counts:
    """Read pytest's JUnit report."""
    counts = Counts()
    if not report.exists():
        return counts
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skipped, failed = case.find("skipped"), [*case.iter("failure"), *case.iter("error")]
        if failed:
            counts.failed += 1
            counts.failures[name] = "\n".join(each.text or each.get("message") or "" for each in failed)
        elif skipped is not None:
            counts.skips.append(f"{name}: {skipped.get('message')}")
        else:
            counts.passed += 1
    return counts


def report_tests(logs: Path, permitted: list[str]) -> int:
    """Print skips, the count and what failed tests said; fail on those, on a skip that is not permitted and on a run
    without tests.
    """
    rust, python = cargo_counts(logs / "test-rust.log"), pytest_counts(logs / "pytest.xml")
    skips = rust.skips + python.skips
    refused = [skip for skip in skips if not any(fnmatch.fnmatchcase(skip, pattern) for pattern in permitted)]
    for skip in skips:
        print(f"{'NOT PERMITTED' if skip in refused else 'permitted'}: skipped {skip}")
    for name, counts in (("Rust", rust), ("Python", python)):
        if counts.passed == 0:
            print(f"no {name} test ran")
    passed, failed = rust.passed + python.passed, rust.failed + python.failed
    print(f"{passed} passed, {failed} failed, {len(skips)} skipped")
    for name, said in {**rust.failures, **python.failures}.items():
        print(f"\n===== FAILED {name}")
        print("\n".join(said.rstrip().splitlines()[-SHOWN_LINES:]))
    return 1 if failed or refused or not (rust.passed and python.passed) else 0


def main(arguments: list[str]) -> int:
    """`processes RUN`, `watch SECONDS RUN` or `tests LOGS PERMITTED...`."""
    if arguments[0] == "processes":
        return report_processes(arguments[1])
    if arguments[0] == "watch":
        return watch(float(arguments[1]), arguments[2])
    return report_tests(Path(arguments[1]), arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
