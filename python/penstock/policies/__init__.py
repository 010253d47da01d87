"""Decisions as pure functions: facts in, decision out. Never does I/O, never reads a clock or the environment."""
