"""A wrong attachment fails within 10 s with the cause and the fix, and nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest

from fault import answers
from fault.store import Answer, Fault, Handler, Question, Store, error
from integration.conftest import Machine
from penstock.errors import PenstockError
from penstock.policies.attachments import request

LIMIT_S = 10.0
MARGIN_S = 5.0
"""What a busy machine may take on top."""

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAPENSTOCKTEST0000", "AWS_SECRET_ACCESS_KEY": "never-shown-to-anybody"}


def wrong_time(handler: Handler, question: Question, right: Answer) -> None:
    """Refuses the signature's time and tells its own, an hour back."""
    body = error(403, "RequestTimeTooSkewed").body
    handler.send_response_only(403)
    handler.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


REFUSALS: dict[str, tuple[Fault, str, str, str]] = {
    "bucket": (
        answers.always(error(404, "NoSuchBucket")),
        *("not-found", "there is no bucket wrong", "check the bucket's name"),
    ),
    "key": (
        answers.always(error(403, "InvalidAccessKeyId")),
        *("permission-denied", "does not know the access key", "check the access key id"),
    ),
    "secret": (
        answers.always(error(403, "SignatureDoesNotMatch")),
        *("permission-denied", "secret key does not belong", "check the secret access key"),
    ),
    "expired token": (
        answers.always(error(400, "ExpiredToken")),
        *("permission-denied", "session token has expired", "log in again"),
    ),
    "wrong token": (
        answers.always(error(400, "InvalidToken")),
        *("permission-denied", "session token is not valid", "AWS_SESSION_TOKEN"),
    ),
    "clock": (wrong_time, "permission-denied", "clock is 3", "set the machine's clock (NTP)"),
    "region by signature": (
        answers.always(error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")),
        *("invalid-input", "is in region eu-west-3, not in us-east-1", "--region eu-west-3"),
    ),
    "region by redirect": (
        answers.always(error(301, "PermanentRedirect", **{"x-amz-bucket-region": "ap-south-1"})),
        *("invalid-input", "is in region ap-south-1", "--region ap-south-1"),
    ),
    "denied": (
        answers.always(error(403, "AccessDenied")),
        *("permission-denied", "the store denies it to us", "grant these credentials access"),
    ),
    "a web page": (answers.html_page, "corrupt", "", "check that the endpoint"),
    "a web server that refuses": (
        answers.always(Answer(403, answers.PAGE, {"Content-Type": "text/html"})),
        *("unavailable", "not as an S3 store does", "check the endpoint"),
    ),
    "a store that always fails": (answers.server_error, "unavailable", "the store failed", "try later"),
    "a store that always refuses": (
        answers.always(error(503, "SlowDown")),
        *("timeout", "no listing came within 10 s", "attach again later"),
    ),
}


@contextlib.contextmanager
def wrong_store(fault: Fault) -> Iterator[str]:
    with Store() as store:
        store.answer_all(fault)
        yield store.endpoint
        assert store.asked["list"] > 0, "nobody asked the store"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """A port whose connections are never even accepted: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A port that is taken, and that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def no_name() -> Iterator[str]:
    """A label of 64 bytes cannot even be asked for, so that no name server is."""
    yield f"http://{'x' * 64}.localhost:9"


ENDPOINTS = {
    "an endpoint that swallows everything": (
        black_hole,
        *("timeout", "no listing came within 10 s", "check host and port"),
    ),
    "a port that nobody listens at": (nobody, "unavailable", "nothing listens", "check host and port"),
    "a name that cannot be resolved": (no_name, "unavailable", "cannot be resolved", "DNS"),
}
CASES = [*REFUSALS, *ENDPOINTS]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("attach"))
    made.environment.update(KEYS)
    try:
        made("up")
        yield made
    finally:
        made.close()


def attempt(node: Machine, case: str) -> tuple[Any, float]:
    """What becomes of one attachment, and how long it took."""
    fault = REFUSALS.get(case)
    with wrong_store(fault[0]) if fault else ENDPOINTS[case][0]() as endpoint:
        begun = time.monotonic()
        body = request("s3://wrong/prefix", f"/wrong/{CASES.index(case)}", endpoint=endpoint, credentials="env")
        try:
            told: Any = node.control().attach(body)
        except PenstockError as failure:
            told = failure
        return told, time.monotonic() - begun


@pytest.fixture(scope="module")
def outcomes(node: Machine) -> dict[str, tuple[Any, float]]:
    with ThreadPoolExecutor(len(CASES)) as pool:
        return dict(zip(CASES, pool.map(lambda case: attempt(node, case), CASES), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_in_time_with_the_fix(outcomes: dict[str, tuple[Any, float]], case: str) -> None:
    kind, cause, fix = (REFUSALS.get(case) or ENDPOINTS[case])[1:]
    told, took_s = outcomes[case]
    assert isinstance(told, PenstockError), told
    assert took_s < LIMIT_S + MARGIN_S
    assert told.code == kind, told
    assert cause in told.reason
    assert fix in (told.advice or "")
    assert "s3://wrong/prefix" in told.action
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in f"{told}{told!r}"


def test_nothing_of_what_was_refused_is_half_attached(node: Machine, outcomes: dict[str, tuple[Any, float]]) -> None:
    assert len(outcomes) == len(CASES)
    assert node.json("attachments") == []
    assert list(node.home.attachments.iterdir()) == []
    assert "not-found" in node("ls", "/wrong", check=1).stderr
    node.until(lambda: node.control().status()["in_flight"] == 0)


def test_a_refusal_is_one_line_and_the_right_attachment_works_afterwards(node: Machine, store: Store) -> None:
    store.put("prefix/a", b"hello")
    attach = ("attach", "s3://wrong/prefix", "/data", "--endpoint", store.endpoint, "--credentials", "env")
    store.answer_all(REFUSALS["key"][0])
    refused = node(*attach, check=1)
    assert refused.stderr.count("\n") == 1
    assert "[permission-denied]" in refused.stderr
    store.answer_all(REFUSALS["region by redirect"][0])
    assert "--region ap-south-1" in node(*attach, check=2).stderr
    store.recover()
    assert json.loads(node(*attach, "--json").stdout)["healthy"]
    assert node("cat", "/data/a").stdout == "hello"
    node("detach", "/data")
