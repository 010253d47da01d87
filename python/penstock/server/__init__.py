"""The node process: ``python -m penstock.server`` hosts the Rust core and serves the control API of one home.

Owns the lock, the control socket, attachment documents, pins and jobs of a home. Never touches a byte of content
and is never in the path of a read: that is between clients and the core, over ``data.sock``.
"""
