"""Keeps job documents, one private file each, replaced whole."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from penstock.errors import DiskError, PenstockError
from penstock.home import write_atomically
from penstock.jobs.document import Job

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["JobStore"]

_log = logging.getLogger(__name__)


class JobStore:
    """The jobs of one home.

    Ids are numbers, given in order and never again. A document that cannot be read is set aside, never deleted.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sequence = directory / "sequence"

    def new_id(self) -> str:
        """The next number; it survives a crash before the job is saved."""
        try:
            last = int(self._sequence.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            last = max((int(path.stem) for path in self._documents()), default=0)
        self._write(self._sequence, str(last + 1), durable=True)
        return str(last + 1)

    def save(self, job: Job, *, durable: bool = False) -> None:
        """Replaces the document of a job.

        Args:
            job: what to keep.
            durable: also survive a crash of the machine; checkpoints need not, changes of state do.
        Raises:
            DiskError: the disk is full or failing; the last document is untouched.
        """
        self._write(self._path(job.id), job.encode(), durable=durable)

    def load(self) -> list[Job]:
        """Every readable job, oldest first."""
        jobs = []
        for path in self._documents():
            try:
                jobs.append(Job.decode(path.read_text(encoding="utf-8")))
            except (PenstockError, UnicodeDecodeError) as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                _log.warning("a job was set aside: %s", error, extra={"code": "corrupt", "file": str(aside)})
        return sorted(jobs, key=lambda job: int(job.id))

    def remove(self, job_id: str) -> None:
        """Forgets a job; nothing happens where there is none."""
        self._path(job_id).unlink(missing_ok=True)

    def _documents(self) -> list[Path]:
        return [path for path in self._directory.glob("*.json") if path.stem.isdecimal()]

    def _path(self, job_id: str) -> Path:
        return self._directory / f"{int(job_id)}.json"

    def _write(self, path: Path, text: str, *, durable: bool) -> None:
        try:
            write_atomically(path, text, durable=durable)
        except OSError as error:
            raise DiskError(f"save {path}", error.strerror or str(error), "free space, or fix the disk") from None
