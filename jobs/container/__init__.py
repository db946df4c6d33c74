"""Serve one message: claim it, run its task, settle it."""
