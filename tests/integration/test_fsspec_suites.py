"""fsspec's own tests of file systems over a writable attachment: copies in every direction, patterns, new files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from integration.conftest import Machine
from penstock.integrations.fsspec import PenstockFileSystem


def joined(*parts: str) -> str:
    return "/".join(parts)


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One node for all of them: nothing is left after each."""
    fsspec.register_implementation("penstock", PenstockFileSystem, clobber=True)
    machine = Machine(tmp_path_factory.mktemp("suites"))
    try:
        machine("attach", "memory://scratch", "/lake", "--writable")
        yield PenstockFileSystem(home=str(machine.home.name), start=False, skip_instance_cache=True)
    finally:
        machine.close()


class TestFsspec(
    AbstractFixtures, AbstractCopyTests, AbstractGetTests, AbstractOpenTests, AbstractPipeTests, AbstractPutTests
):
    @pytest.fixture
    def fs(self, filesystem: Any) -> Iterator[Any]:
        yield filesystem
        if left := filesystem.find("/lake"):
            filesystem.rm(left)

    @pytest.fixture
    def fs_path(self) -> str:
        return "/lake"

    @pytest.fixture
    def fs_join(self) -> Any:
        return joined

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False
