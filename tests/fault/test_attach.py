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

LIMIT_S = 100.0
"""Whatever is asked has ended by then; that it is the attach's own deadline of 10 s is told by what it says."""

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAPENSTOCKTEST0000", "AWS_SECRET_ACCESS_KEY": "never-shown-to-anybody"}


def wrong_time(handler: Handler, question: Question, right: Answer) -> None:
    """Refuses the signature's time and tells its own, an hour back."""
    body = error(403, "RequestTimeTooSkewed").body
    handler.send_response_only(403)
    handler.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def refusing_once(handler: Handler, question: Question, right: Answer) -> None:
    """Asks for patience, and is then asked in vain."""
    if handler.server.store.asked["list"] > 1:
        answers.silent(handler, question, right)
    else:
        handler.send(error(503, "SlowDown"))


SLOW_DOWN = "the store asks for fewer requests: 503 SlowDown: told by the test"
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
    "clock": (wrong_time, "permission-denied", "clock is 60 minutes", "set the machine's clock (NTP)"),
    "region by signature": (
        answers.always(error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")),
        *("permission-denied", "is in region eu-west-3, not in us-east-1", "--region eu-west-3"),
    ),
    "region by redirect": (
        answers.always(error(301, "PermanentRedirect", **{"x-amz-bucket-region": "ap-south-1"})),
        *("permission-denied", "is in region ap-south-1", "--region ap-south-1"),
    ),
    "denied": (
        answers.always(error(403, "AccessDenied")),
        *("permission-denied", "the store denies it to us", "grant these credentials access"),
    ),
    "a bucket's name that is none": (
        answers.always(error(400, "InvalidBucketName")),
        *("not-found", "takes wrong for no bucket's name", "check the bucket's name"),
    ),
    "a question that is refused": (
        answers.always(error(400, "InvalidRequest")),
        *("unsupported", "the store refuses the request: InvalidRequest: told by the test", ""),
    ),
    "a web page": (answers.html_page, "corrupt", "", "check that the endpoint"),
    "a web server that refuses": (
        answers.always(Answer(403, answers.PAGE, {"Content-Type": "text/html"})),
        *("unavailable", "not as an S3 store does", "check the endpoint"),
    ),
    "a store that always fails": (answers.server_error, "unavailable", "the store failed", "try later"),
    "a store that always refuses": (
        answers.always(error(503, "SlowDown")),
        *("timeout", f"no listing came within 10 s; before that: {SLOW_DOWN}", "the source answers"),
    ),
    "a store that refuses and then falls silent": (
        refusing_once,
        *("timeout", f"no listing came within 10 s; before that: {SLOW_DOWN}", "the source answers"),
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
        *("timeout", "no listing came within 10 s; before that: ", "check the endpoint"),
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
        # So many tries that a store which fails is not asked until the deadline.
        made("up", "--set", "source.max_attempts=4")
        yield made
    finally:
        made.close()


def attempt(node: Machine, case: str) -> Any:
    """What becomes of one attachment."""
    fault = REFUSALS.get(case)
    with wrong_store(fault[0]) if fault else ENDPOINTS[case][0]() as endpoint:
        body = request("s3://wrong/prefix", f"/wrong/{CASES.index(case)}", endpoint=endpoint, credentials="env")
        try:
            return node.control().attach(body)
        except PenstockError as failure:
            return failure


@pytest.fixture(scope="module")
def outcomes(node: Machine) -> dict[str, Any]:
    with ThreadPoolExecutor(len(CASES)) as pool:
        return dict(zip(CASES, pool.map(lambda case: attempt(node, case), CASES, timeout=LIMIT_S), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_in_time_with_the_fix(outcomes: dict[str, Any], case: str) -> None:
    kind, cause, fix = (REFUSALS.get(case) or ENDPOINTS[case])[1:]
    told = outcomes[case]
    assert isinstance(told, PenstockError), told
    assert told.code == kind, told
    assert cause in told.reason
    assert fix in (told.advice or "")
    assert "s3://wrong/prefix" in told.action
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in f"{told}{told!r}"


def test_nothing_of_what_was_refused_is_half_attached(node: Machine, outcomes: dict[str, Any]) -> None:
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
    for case, word in (("region by redirect", "--region ap-south-1"), ("a question that is refused", "refuses")):
        store.answer_all(REFUSALS[case][0])
        # The command line was right: what failed is a 1.
        assert word in node(*attach, check=1).stderr
    store.recover()
    assert json.loads(node(*attach, "--json").stdout)["healthy"]
    assert node("cat", "/data/a").stdout == "hello"
    node("detach", "/data")
