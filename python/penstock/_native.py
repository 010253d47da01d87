"""The only importer of the compiled module: everybody else imports its names from here."""

from penstock._core import VERSION, Core, Entry, File, Lease, Node, Remote, View, error_kinds

__all__ = ["VERSION", "Core", "Entry", "File", "Lease", "Node", "Remote", "View", "error_kinds"]
