"""Penstock: read a data lake at local-disk speed.

>>> import penstock
>>> client = penstock.connect()
>>> client.attach("memory://scratch", "/scratch")
>>> [entry.name for entry in client.list("/")]
['scratch']

Importing this does next to nothing: names are looked up when they are first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from penstock import errors
    from penstock._native import VERSION as __version__  # noqa: N811
    from penstock.client import AsyncClient, Client, Job, connect, connect_async
    from penstock.errors import PenstockError

__all__ = [
    "AsyncClient",
    "Client",
    "Job",
    "PenstockError",
    "__version__",
    "connect",
    "connect_async",
    "errors",
]

_PLACES = {
    "AsyncClient": "penstock.client",
    "Client": "penstock.client",
    "Job": "penstock.client",
    "PenstockError": "penstock.errors",
    "connect": "penstock.client",
    "connect_async": "penstock.client",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("penstock.errors")
    if name == "__version__":
        return import_module("penstock._native").VERSION
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
