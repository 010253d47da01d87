"""What may be attached, decided without asking anybody."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInputError, PenstockError, ReadOnlyError, UnsupportedError
from penstock.policies import attachments


def test_an_s3_url_becomes_bucket_and_prefix() -> None:
    source, prefix = attachments.source_of("s3://bucket/a/b", endpoint="http://127.0.0.1:9000/", region="eu-1")
    assert source == {
        "kind": "s3",
        "bucket": "bucket",
        "endpoint": "http://127.0.0.1:9000",
        "region": "eu-1",
        "virtual_host": None,
        "credentials": "chain",
    }
    assert prefix == "a/b/"


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("s3://bkt", ""),
        ("s3://bkt/", ""),
        ("s3://bkt/a/", "a/"),
        ("s3://bkt/a?b#c", "a?b#c/"),
        ("s3://bkt/%41", "%41/"),
    ],
)
def test_the_prefix_is_empty_or_ends_in_a_slash_and_its_key_is_taken_literally(url: str, prefix: str) -> None:
    assert attachments.source_of(url)[1] == prefix


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("file:///data/set", {"kind": "file", "directory": "/data/set"}),
        ("file:///data/with%20space/", {"kind": "file", "directory": "/data/with space"}),
        ("file:///", {"kind": "file", "directory": "/"}),
        ("memory://scratch", {"kind": "memory", "name": "scratch"}),
    ],
)
def test_directories_and_memory_are_sources_too(url: str, source: dict[str, Any]) -> None:
    assert attachments.source_of(url)[0] == source


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "file:///data/with%20space", "memory://m/x", "s3://bucket"])
def test_a_source_is_shown_as_the_url_that_names_it(url: str) -> None:
    assert attachments.url_of(*attachments.source_of(url)) == url


@pytest.mark.parametrize(
    ("url", "needle"),
    [
        ("s3://AKIA123:topsecret@bucket/x", "credentials in a URL"),
        ("https://bucket/x?X-Amz-Signature=topsecret", "signing parameters"),
        ("s3://bucket/x?token=topsecret", "signing parameters"),
    ],
)
def test_credentials_in_a_url_are_refused_and_never_repeated(url: str, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle) as caught:
        attachments.source_of(url)
    assert "topsecret" not in str(caught.value)


def test_credentials_in_an_endpoint_are_refused_and_never_repeated() -> None:
    with pytest.raises(InvalidInputError, match="credentials in a URL") as caught:
        attachments.source_of("s3://bucket", endpoint="http://me:topsecret@host")
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "needle"),
    [
        ("gs://bucket", "no source for gs://"),
        ("bucket", "no scheme"),
        ("/data", "file:///data"),
        ("ftp://host/x", "unknown scheme"),
        ("s3://", "names no bucket"),
        ("s3://b", "cannot be a bucket; .* three characters or more"),
        ("file://relative/x", "not absolute"),
        ("file:///a/../b", r"\.\."),
        ("memory://", "no name"),
    ],
)
def test_a_url_that_cannot_be_right_says_what_to_write(url: str, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle):
        attachments.source_of(url)


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "ftp://host", "http://", "http://host/path", "http://host:99999", "http://host?a=b"]
)
def test_an_endpoint_is_a_scheme_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(InvalidInputError, match="--endpoint"):
        attachments.source_of("s3://bucket", endpoint=endpoint)


def test_options_of_s3_are_refused_for_other_sources() -> None:
    with pytest.raises(InvalidInputError, match="take no --region"):
        attachments.source_of("file:///data", region="eu-1")


@pytest.mark.parametrize("reference", ["chain", "env", "anonymous", "profile:team-a", "file:/etc/keys"])
def test_a_credential_reference_is_kept_as_it_is(reference: str) -> None:
    assert attachments.check_credentials(reference) == reference


@pytest.mark.parametrize("reference", ["AKIAEXAMPLE:topsecret", "topsecret", "file:keys", "profile:", "env:X"])
def test_what_is_no_reference_is_refused_and_never_repeated(reference: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        attachments.check_credentials(reference)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "freshness"),
    [("60s", {"seconds": 60.0}), ("0", {"seconds": 0.0}), (5, {"seconds": 5.0}), ("immutable", "immutable")],
)
def test_freshness_is_a_duration_or_immutable(text: str | float, freshness: Any) -> None:
    assert attachments.parse_freshness(text) == freshness


def test_a_freshness_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="or immutable"):
        attachments.parse_freshness("sometimes")


@pytest.mark.parametrize(("path", "normal"), [("/", "/"), ("//a///b/", "/a/b"), ("/a", "/a")])
def test_a_path_is_brought_to_its_normal_form(path: str, normal: str) -> None:
    assert attachments.check_tree_path(path) == normal


@pytest.mark.parametrize("path", ["", "a", "/a/../b", "/./a", "/a\0", "s3://bucket/x", "/\udcff"])
def test_a_path_outside_the_tree_is_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        attachments.check_tree_path(path)


@given(st.text())
def test_any_text_is_a_normal_path_or_refused(text: str) -> None:
    try:
        normal = attachments.check_tree_path(text)
    except InvalidInputError:
        return
    assert attachments.check_tree_path(normal) == normal
    assert normal.startswith("/")
    assert not {".", ".."} & set(normal.split("/"))


def test_a_request_leaves_freshness_to_the_node_where_nothing_is_said() -> None:
    body = attachments.request("memory://m", "/data/")
    assert body == {
        "path": "/data",
        "source": {"kind": "memory", "name": "m"},
        "prefix": "",
        "freshness": None,
        "way": "auto",
        "write": None,
        "posix": False,
        "probe": True,
    }


@pytest.mark.parametrize(
    ("options", "write", "text"),
    [
        ({}, None, "read-only"),
        ({"writable": True}, {"durability": "local", "single_writer": False}, "local"),
        ({"writable": True, "durability": "source"}, {"durability": "source", "single_writer": False}, "source"),
        (
            {"writable": True, "single_writer": True, "freshness": 0},
            {"durability": "local", "single_writer": True},
            "local, single writer",
        ),
    ],
)
def test_an_attachment_is_read_only_unless_told(options: Any, write: Any, text: str) -> None:
    asked = attachments.request("memory://m", "/runs", **options)
    assert asked["write"] == write
    assert attachments.format_write(write) == text


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"durability": "source"}, "--durability.*add --writable"),
        ({"single_writer": True}, "--single-writer.*add --writable"),
        ({"writable": True, "durability": "replicated"}, "needs several nodes"),
        ({"writable": True, "durability": "sometimes"}, "it is local or source"),
        ({"writable": True, "freshness": "immutable"}, "could not be seen to change"),
        ({"writable": True, "way": "no-open"}, "would not see a file change"),
    ],
)
def test_writing_that_cannot_be_meant_is_refused_with_what_to_write(options: Any, needle: str) -> None:
    with pytest.raises(InvalidInputError, match=needle):
        attachments.request("memory://m", "/runs", **options)


ABLE = {"read_only": False, "conditional_replace": True}


@pytest.mark.parametrize(
    ("capabilities", "single_writer", "refusal"),
    [
        (ABLE, False, None),
        (ABLE, True, None),
        (ABLE | {"conditional_replace": False}, True, None),
        (ABLE | {"conditional_replace": False}, False, UnsupportedError),
        (ABLE | {"read_only": True}, False, ReadOnlyError),
        (ABLE | {"read_only": True}, True, ReadOnlyError),
        ({}, False, UnsupportedError),
    ],
)
def test_a_source_that_could_lose_what_others_wrote_needs_a_single_writer(
    capabilities: dict[str, bool], single_writer: bool, refusal: type[PenstockError] | None
) -> None:
    write = {"durability": "local", "single_writer": single_writer}
    if refusal is None:
        attachments.check_source_takes_writes("/runs", write, capabilities)
        return
    with pytest.raises(refusal, match=r"attach /runs writable: .*; "):
        attachments.check_source_takes_writes("/runs", write, capabilities)


def test_an_option_that_is_not_there_is_refused_without_its_value() -> None:
    with pytest.raises(InvalidInputError, match=r"frshness.*it has .*freshness") as refused:
        attachments.request("memory://x", "/x", frshness="secret")  # type: ignore[call-arg]
    assert "secret" not in str(refused.value)
