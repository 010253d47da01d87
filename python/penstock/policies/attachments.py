"""What a user may attach, and how: URLs, paths, freshness, writing and credentials become one checked request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack
from urllib.parse import quote, unquote, urlsplit

from penstock.errors import InvalidInputError, ReadOnlyError, UnsupportedError
from penstock.units import format_duration, parse_duration

__all__ = [
    "DURABILITIES",
    "WAYS",
    "AttachOptions",
    "SourceOptions",
    "check_credentials",
    "check_source_takes_writes",
    "check_tree_path",
    "check_writes_are_seen",
    "format_freshness",
    "format_write",
    "parse_freshness",
    "request",
    "source_of",
    "url_of",
]

WAYS = ("auto", "open", "no-open")
"""How the kernel may get at bytes in mounts; see :func:`penstock.policies.mounts.choose_way`."""

DURABILITIES = ("local", "source")
"""What a successful close of a written file may mean: this machine keeps it, or the source has it."""

_SOON = {"gs", "gcs", "az", "abfs", "abfss", "oss", "hdfs", "webhdfs"}
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,253}[a-zA-Z0-9]")
_BUCKET_RULE = "write s3://bucket/prefix; a bucket's name has three characters or more: letters, digits, . _ and -"
_FORMS = "write s3://bucket/prefix, file:///directory or memory://name"
_REFERENCES = "use chain, env, anonymous, profile:NAME or file:PATH"
_FLAGS = {
    "endpoint": "--endpoint",
    "region": "--region",
    "virtual_host": "--virtual-host or --path-style",
    "credentials": "--credentials",
}
_PROFILE = re.compile(r"[\w.+=@/ -]{1,128}")


class SourceOptions(TypedDict, total=False):
    """How a source is reached, where its URL does not say it."""

    endpoint: str | None
    """``http(s)://host[:port]`` of an S3 that is not AWS."""
    region: str | None
    """Region of the bucket; ``None`` asks the node's environment and profile, then takes ``us-east-1``."""
    virtual_host: bool | None
    """Whether the bucket goes into the host name; ``None`` decides by endpoint (AWS yes, others no)."""
    credentials: str
    """A reference, never a secret: ``chain`` (default), ``env``, ``anonymous``, ``profile:NAME``, ``file:PATH``."""


class AttachOptions(SourceOptions, total=False):
    """What may be said of an attachment besides its URL and path."""

    freshness: str | float | None
    """How long facts are believed: ``60s``, ``0``, ``immutable``; ``None`` leaves it to the node's configuration."""
    way: str
    """How the kernel gets at bytes in mounts: ``auto`` (default), ``open`` or ``no-open``."""
    writable: bool
    """Whether files may be written and removed there; read-only by default."""
    durability: str | None
    """What a successful close means: ``local`` (default) or ``source``; only with ``writable``."""
    single_writer: bool
    """Nobody else writes there, so take a source that cannot replace on condition; only with ``writable``."""
    posix: bool
    """Listings show mode and owner of every file that they were given for: costs one request for each new version."""
    probe: bool
    """Ask the source once (default), so that a wrong attachment fails now."""


def request(url: str, path: str, **options: Unpack[AttachOptions]) -> dict[str, Any]:
    """The body of an attach request, checked as far as it can be without asking anybody.

    Args:
        url: ``s3://bucket/prefix``, ``file:///directory`` or ``memory://name``.
        path: absolute path in the tree.
        options: see :class:`AttachOptions`.

    Raises:
        InvalidInputError: one of them cannot be right; the message says which and what to write.
    """
    known = AttachOptions.__annotations__
    for name in options:
        if name not in known:
            raise InvalidInputError(f"read option {name}", "attach has none of that name", f"it has {', '.join(known)}")
    asked = options.get("freshness")
    freshness = None if asked is None else parse_freshness(asked)
    way, write = _way(options.get("way", "auto")), _write(options)
    if write is not None:
        check_writes_are_seen(path, freshness, way)
    reaching: SourceOptions = {
        "endpoint": options.get("endpoint"),
        "region": options.get("region"),
        "virtual_host": options.get("virtual_host"),
        "credentials": options.get("credentials", "chain"),
    }
    source, prefix = source_of(url, **reaching)
    return {
        "path": check_tree_path(path),
        "source": source,
        "prefix": prefix,
        "freshness": freshness,
        "way": way,
        "write": write,
        "posix": options.get("posix", False),
        "probe": options.get("probe", True),
    }


def _way(way: str) -> str:
    if way not in WAYS:
        raise InvalidInputError(f"read way {way!r}", "there is no such way", f"it is one of {', '.join(WAYS)}")
    return way


def _write(options: AttachOptions) -> dict[str, Any] | None:
    durability, single_writer = options.get("durability"), options.get("single_writer", False)
    if not options.get("writable", False):
        given = "--durability" if durability is not None else "--single-writer" if single_writer else None
        if given is not None:
            raise InvalidInputError(f"read {given}", "it says how to write, and nothing may be", "add --writable")
        return None
    if durability == "replicated":
        reason = "it needs several nodes, and in this version there is one"
        raise InvalidInputError("read --durability replicated", reason, f"take {' or '.join(DURABILITIES)}")
    if durability is not None and durability not in DURABILITIES:
        advice = f"it is {' or '.join(DURABILITIES)}"
        raise InvalidInputError(f"read --durability {durability!r}", "there is no such durability", advice)
    return {"durability": durability or "local", "single_writer": single_writer}


def check_writes_are_seen(path: str, freshness: dict[str, float] | str | None, way: str) -> None:
    """Refuses what would hide from a reader that a file was written.

    Args:
        path: where a writable attachment shall be.
        freshness: as :func:`parse_freshness` gives it; ``None`` while the node has not filled it in.
        way: one of :data:`WAYS`.

    Raises:
        InvalidInputError: facts would never be asked for again, or the kernel would ask nobody at an open.
    """
    action = f"attach {path} writable"
    if freshness == "immutable":
        reason = "nothing of an immutable attachment is ever asked for again: a file could not be seen to change"
        raise InvalidInputError(action, reason, "give a --freshness such as 60s, or leave --writable out")
    if way == "no-open":
        reason = "by the way no-open the kernel opens nothing, and would not see a file change"
        raise InvalidInputError(action, reason, "leave --way out, or write --way open")


def check_source_takes_writes(path: str, write: Mapping[str, Any], capabilities: Mapping[str, Any]) -> None:
    """Refuses to write to a source that cannot take it, or could lose what somebody else wrote.

    Args:
        path: where the writable attachment shall be.
        write: how it is to be written.
        capabilities: what the source says it can do.

    Raises:
        ReadOnlyError: it takes no writes at all.
        UnsupportedError: it cannot replace on condition, and others may write there.
    """
    action = f"attach {path} writable"
    if capabilities.get("read_only"):
        advice = "give the node's user the right to write there, or leave --writable out"
        raise ReadOnlyError(action, "the source cannot be written", advice)
    if not capabilities.get("conditional_replace") and not write["single_writer"]:
        reason = "the source cannot replace an object on condition that nobody else changed it"
        raise UnsupportedError(action, reason, "add --single-writer where nobody else writes there")


def format_write(write: Mapping[str, Any] | None) -> str:
    """``read-only``, ``local`` or ``source``: what may be written, and what a close means."""
    if write is None:
        return "read-only"
    return f"{write['durability']}, single writer" if write["single_writer"] else str(write["durability"])


def source_of(url: str, **options: Unpack[SourceOptions]) -> tuple[dict[str, Any], str]:
    """The source a URL names and the prefix of keys below it (empty, or ending in ``/``).

    Raises:
        InvalidInputError: unknown scheme, secrets in the URL, or options that the scheme has no use for.
    """
    refuse_secrets(url)
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "s3":
        return _s3_source(url, options)
    if scheme in ("file", "memory"):
        given = [_FLAGS[name] for name, value in options.items() if value not in (None, "chain")]
        if given:
            raise _invalid(url, f"{scheme} sources take no {given[0]}", "leave it out")
        return _file_source(url) if scheme == "file" else _memory_source(url)
    if scheme in _SOON:
        raise _invalid(url, f"this version has no source for {scheme}://", f"today: {_FORMS}")
    if not scheme:
        hint = f"; for a local directory write file://{url}" if url.startswith("/") else ""
        raise _invalid(url, "it has no scheme", _FORMS + hint)
    raise _invalid(url, f"unknown scheme {scheme}://", _FORMS)


def refuse_secrets(url: str) -> None:
    """Refuses a URL that carries credentials, without repeating them.

    Raises:
        InvalidInputError: user information or signing parameters are in the URL.
    """
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise InvalidInputError(
            "attach a source", "credentials in a URL end up in logs and histories", f"take them out; {_REFERENCES}"
        )
    if re.search(r"[?&](x-amz-|awsaccesskeyid|access_?key|secret|token|signature|sig=)", url, re.IGNORECASE):
        raise InvalidInputError(
            "attach a source",
            "the URL carries signing parameters",
            f"give the plain URL; {_REFERENCES}",
        )


def check_credentials(reference: str) -> str:
    """A credential reference as it is, if it is one.

    Raises:
        InvalidInputError: it is none; the text itself is not repeated, for it may be a secret.
    """
    if reference in ("chain", "env", "anonymous"):
        return reference
    kind, separator, rest = reference.partition(":")
    if separator and kind == "profile" and _PROFILE.fullmatch(rest):
        return reference
    if separator and kind == "file":
        if not rest.startswith("/"):
            raise InvalidInputError(
                "read --credentials", "the file's path is not absolute", "write file:/absolute/path"
            )
        return reference
    raise InvalidInputError("read --credentials", "it is not a reference to credentials", _REFERENCES)


def check_tree_path(path: str) -> str:
    """The normal form of an absolute path of the tree: no empty components, no trailing slash but the root's.

    Raises:
        InvalidInputError: it is relative, or has ``.``, ``..``, a NUL or text that is not UTF-8 in it.
    """
    action = f"use path {path!r}"
    if not path.startswith("/"):
        hint = "it is a URL; " if "://" in path else ""
        raise InvalidInputError(action, "it is not absolute", f"{hint}paths of the tree begin with /")
    if "\0" in path:
        raise InvalidInputError(action, "it contains a NUL byte")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(action, "it is not UTF-8") from None
    parts = [part for part in path.split("/") if part]
    if "." in parts or ".." in parts:
        raise InvalidInputError(action, "it contains . or .. as a component", "give the path without them")
    return "/" + "/".join(parts)


def parse_freshness(value: str | float) -> dict[str, float] | str:
    """Freshness as the core takes it: ``{"seconds": 60.0}`` or ``"immutable"``.

    Raises:
        InvalidInputError: neither a duration nor ``immutable``.
    """
    if value == "immutable":
        return "immutable"
    try:
        return {"seconds": parse_duration(value)}
    except InvalidInputError:
        raise InvalidInputError(
            f"read freshness {value!r}", "it is not a freshness", "write a duration as 60s, 0, or immutable"
        ) from None


def format_freshness(freshness: dict[str, float] | str) -> str:
    """``60 s``, ``0`` (asked at every open) or ``immutable``."""
    if isinstance(freshness, str):
        return freshness
    seconds = freshness["seconds"]
    return format_duration(seconds) if seconds else "0"


def url_of(source: dict[str, Any], prefix: str) -> str:
    """The URL that names a source and prefix, for people; the inverse of :func:`source_of`."""
    match source["kind"]:
        case "s3":
            return f"s3://{source['bucket']}/{prefix}".removesuffix("/")
        case "file":
            below = "/" + prefix.removesuffix("/") if prefix else ""
            return "file://" + quote(source["directory"] + below)
        case "memory":
            return f"memory://{source['name']}" + ("/" + prefix.removesuffix("/") if prefix else "")
        case kind:
            return f"{kind}://…"


def _s3_source(url: str, options: SourceOptions) -> tuple[dict[str, Any], str]:
    # Not urlsplit: keys may hold ? and #, which mean nothing in an S3 URL.
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise _invalid(url, "it names no bucket", "write s3://bucket/prefix")
    if not _BUCKET.fullmatch(bucket):
        raise _invalid(url, f"{bucket!r} cannot be a bucket", _BUCKET_RULE)
    endpoint = options.get("endpoint")
    source = {
        "kind": "s3",
        "bucket": bucket,
        "endpoint": None if endpoint is None else _check_endpoint(endpoint, bucket),
        "region": options.get("region"),
        "virtual_host": options.get("virtual_host"),
        "credentials": check_credentials(options.get("credentials", "chain")),
    }
    return source, _prefix(key)


def _file_source(url: str) -> tuple[dict[str, Any], str]:
    rest = url.removeprefix("file://")
    if not rest.startswith("/"):
        raise _invalid(url, "its path is not absolute", "write file:///directory, with three slashes")
    directory = unquote(rest).rstrip("/") or "/"
    if any(part in (".", "..") for part in directory.split("/")):
        raise _invalid(url, "it contains . or ..", "give the path without them")
    return {"kind": "file", "directory": directory}, ""


def _memory_source(url: str) -> tuple[dict[str, Any], str]:
    name, _, key = url.removeprefix("memory://").partition("/")
    if not name:
        raise _invalid(url, "it has no name", "write memory://name")
    return {"kind": "memory", "name": name}, _prefix(key)


def _prefix(key: str) -> str:
    if key == "" or key.endswith("/"):
        return key
    return key + "/"


def _check_endpoint(endpoint: str, bucket: str) -> str:
    action = "read --endpoint"
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise InvalidInputError(action, "credentials in a URL end up in logs and histories", "take them out")
    action = f"read --endpoint {endpoint!r}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInputError(action, "it is not an endpoint", "write https://host or http://host:port")
    try:
        _ = parts.port
    except ValueError:
        raise InvalidInputError(action, "its port is not a number below 65536", "write http://host:port") from None
    if parts.query or parts.fragment or parts.path.strip("/"):
        advice = "write the host alone; the bucket comes from s3://" + bucket
        raise InvalidInputError(action, "it has more than a host and a port", advice)
    return f"{parts.scheme}://{parts.netloc}"


def _invalid(url: str, reason: str, advice: str) -> InvalidInputError:
    return InvalidInputError(f"attach {url}", reason, advice)
