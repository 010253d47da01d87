"""The client of a node: open, read, list, and ask for jobs. No threads, no runtime; safe over fork, pickles.

Owns the connection of a process to the node of its home, and starts that node where none runs. Never caches,
never decides: what is read comes from the core, what is asked for goes to the control API.
"""

from penstock.client.client import Client, connect
from penstock.client.job import Job

__all__ = ["AsyncClient", "Client", "Conflict", "Job", "SetFile", "SetInfo", "SetWriter", "connect", "connect_async"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from penstock.client.aio import AsyncClient, connect_async
    from penstock.client.conflicts import Conflict
    from penstock.client.sets import SetFile, SetInfo, SetWriter


def __getattr__(name: str) -> object:
    # An event loop is a heavy import that most programs do not want.
    if name in ("AsyncClient", "connect_async"):
        from penstock.client import aio

        return getattr(aio, name)
    if name == "Conflict":
        from penstock.client import conflicts

        return conflicts.Conflict
    if name in ("SetFile", "SetInfo", "SetWriter"):
        from penstock.client import sets

        return getattr(sets, name)
    raise AttributeError(f"module 'penstock.client' has no attribute {name!r}")
