"""Objects without an ETag: a store cannot replace or remove only the one that was looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import penstock
from penstock.errors import UnsupportedError

if TYPE_CHECKING:
    from fault.store import Store
    from integration.conftest import Machine

NEW = b"a later content"


def test_nothing_is_written_over_an_object_without_an_etag_unless_nobody_else_writes_there(
    machine: Machine, store: Store
) -> None:
    store.put("old.bin", b"content", bare=True)
    store.put("other.bin", b"content", bare=True)
    machine("up")
    with penstock.connect(machine.home.name) as client:
        attach(client, store)
        for change in (
            lambda: write(client, "/data/old.bin"),
            lambda: client.remove("/data/old.bin"),
            lambda: client.rename("/data/old.bin", "/data/new.bin"),
        ):
            with pytest.raises(UnsupportedError, match="the object has no ETag") as refused:
                change()
            assert "--single-writer" in str(refused.value)
        write(client, "/data/free.bin")
        client.persist("/data")
        client.detach("/data")
        attach(client, store, single_writer=True)
        write(client, "/data/old.bin")
        client.remove("/data/other.bin")
        client.persist("/data")
        assert client.conflicts("/data") == []
    assert {key: content for key, (content, _) in store.objects.items()} == {"old.bin": NEW, "free.bin": NEW}


def test_what_somebody_else_wrote_over_an_object_without_an_etag_stays_a_conflict(
    machine: Machine, store: Store
) -> None:
    store.put("old.bin", b"content", bare=True)
    machine("up")
    with penstock.connect(machine.home.name) as client:
        attach(client, store, single_writer=True)
        assert client.stat("/data/old.bin").size == len(b"content")
        store.put("old.bin", b"somebody else wrote it", bare=True)
        write(client, "/data/old.bin")
        machine.until(lambda: len(client.conflicts("/data")) == 1)
    assert store.objects["old.bin"][0] == b"somebody else wrote it"


def attach(client: penstock.Client, store: Store, *, single_writer: bool = False) -> None:
    options = {"endpoint": store.endpoint, "credentials": "anonymous"}
    client.attach("s3://bucket", "/data", **options, writable=True, single_writer=single_writer)


def write(client: penstock.Client, path: str) -> None:
    with client.open(path, "wb") as file:
        file.write(NEW)
