"""What the database calls our tables, and the versions of them that this program knows.

It must not know their columns' types (schema.py does), and imports nothing: `status` is in a hurry.
"""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "sweep_facts"
VERSIONS: Final = ("0001", "0002")
"""Every schema version, oldest first; the last is what this program reads and writes."""
HEAD: Final = VERSIONS[-1]
VERSION_TABLE: Final = "schema_version"

PHASES: Final = ("startup", "data", "compile", "train", "eval", "checkpoint", "idle")
