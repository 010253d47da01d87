"""The client of a node: open, read, list, and ask for jobs. No threads, no runtime; safe over fork, pickles.

Owns the connection of a process to the node of its home, and starts that node where none runs. Never caches,
never decides: what is read comes from the core, what is asked for goes to the control API.
"""

from penstock.client.client import Client, connect
from penstock.client.job import Job

__all__ = ["Client", "Job", "connect"]
