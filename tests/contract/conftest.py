"""A lake for every test of the contract: a node, a store that does what it is told to, a client."""

from __future__ import annotations

from fault.conftest import machine, store

__all__ = ["machine", "store"]
