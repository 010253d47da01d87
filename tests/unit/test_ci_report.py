"""The report at the end of a CI run must not let a skip or an empty run pass."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

CARGO_LOG = """\
running 3 tests
test reads::a_range_is_read ... ok
SKIPPED row versitygw: no .tools/bin/versitygw
test long::fuzzing ... ignored, takes an hour

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
"""

JUNIT = """\
<testsuites><testsuite name="pytest"><testcase classname="a" name="passes"/>
<testcase classname="a" name="skips"><skipped message="no network"/></testcase></testsuite></testsuites>
"""


FAILED_CARGO_LOG = """\
running 2 tests
test reads::a_range_is_read ... FAILED
test reads::shown ... ok

successes:

---- reads::shown stdout ----
not to be repeated

successes:
    reads::shown

failures:

---- reads::a_range_is_read stdout ----

thread 'reads::a_range_is_read' panicked at crates/x/src/lib.rs:7:9:
assertion failed: one == other

failures:
    reads::a_range_is_read

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
"""

FAILED_JUNIT = """\
<testsuites><testsuite name="pytest"><testcase classname="a" name="passes"/>
<testcase classname="a" name="fails[1]"><failure message="assert 1 == 2">{said}</failure></testcase>
<testcase classname="a" name="breaks"><error message="no home">in the fixture</error></testcase>
</testsuite></testsuites>
"""


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ci_report", ROOT / ".ci/report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ci_report"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "test-rust.log").write_text(CARGO_LOG)
    (tmp_path / "pytest.xml").write_text(JUNIT)
    return tmp_path


def test_a_run_with_permitted_skips_passes_and_counts_them(
    report: ModuleType, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    permitted = ["*versitygw*: *", "long::fuzzing: takes an hour", "a::skips: no network"]
    assert report.report_tests(logs, permitted) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 passed, 0 failed, 3 skipped"


def test_what_failed_tests_said_stands_at_the_end(
    report: ModuleType, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (logs / "test-rust.log").write_text(FAILED_CARGO_LOG)
    said = "\n".join([*(f"line {number}" for number in range(100)), "E  assert 1 == 2"])
    (logs / "pytest.xml").write_text(FAILED_JUNIT.format(said=said))
    assert report.report_tests(logs, []) == 1
    told = capsys.readouterr().out
    assert told.startswith("2 passed, 3 failed, 0 skipped\n")
    rust, fails, breaks = told.split("\n===== FAILED ")[1:]
    assert rust.startswith("reads::a_range_is_read\n")
    assert rust.endswith("assertion failed: one == other\n")
    assert fails.splitlines()[:2] == ["a::fails[1]", "line 86"]
    assert fails.endswith("E  assert 1 == 2\n")
    assert breaks == "a::breaks\nin the fixture\n"


@pytest.mark.parametrize("missing", ["versitygw", "fuzzing", "skips"])
def test_a_skip_that_nobody_permitted_fails_the_run(report: ModuleType, logs: Path, missing: str) -> None:
    permitted = [f"*{name}*" for name in ("versitygw", "fuzzing", "skips") if name != missing]
    assert report.report_tests(logs, permitted) == 1


def test_a_run_without_python_tests_fails(report: ModuleType, logs: Path) -> None:
    (logs / "pytest.xml").unlink()
    assert report.report_tests(logs, ["*"]) == 1


def test_a_process_that_is_left_behind_is_found_by_its_mark(report: ModuleType) -> None:
    mark = f"test-{os.getpid()}"
    with subprocess.Popen(["sleep", "60"], env={**os.environ, report.MARK: mark}) as process:
        try:
            # A process that is just being started has no environment yet.
            deadline = time.monotonic() + 60
            while not (found := report.leftover_processes(mark)) and time.monotonic() < deadline:
                pass
            assert list(found) == [process.pid]
        finally:
            process.kill()


def test_what_takes_too_long_is_told_and_ended(report: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    mark = f"test-{os.getpid()}"
    with subprocess.Popen(["sleep", "60"], env={**os.environ, report.MARK: mark}) as process:
        assert report.watch(1.0, mark) == 1
        assert process.wait() == -signal.SIGKILL
    told = capsys.readouterr().out
    assert told.startswith(f"still running after 1 s: {process.pid} sleep 60: {process.pid} S ")
