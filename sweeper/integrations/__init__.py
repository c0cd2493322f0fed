"""Callbacks for other people's training loops: each writes the protocol (docs/protocol.md) from within.

They must not know anything else of sweep, and import without the libraries that they are for.
"""
