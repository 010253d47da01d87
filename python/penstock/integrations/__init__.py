"""Penstock as other libraries see it: one module a library, each an optional import. Translates, never decides."""
