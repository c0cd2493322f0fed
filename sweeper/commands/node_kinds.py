"""One command for every kind of node that a cluster has: the study's blocks, side by side.

It must not know what a command does: each block is a command of its own, with a study of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from sweeper.app import App
from sweeper.errors import EXIT_DONE, DeviceUnusable

EACH = "each"


def run_each(args: argparse.Namespace, severity: Sequence[int]) -> int:
    """Run the command once for every kind of node, all at the same time; the worst exit code counts.

    Times of different kinds are never compared, so every kind has the whole plan, its own winner and
    its own report. What each says is printed line by line after the kind's name.

    Raises:
        DeviceUnusable: not on a cluster, or no node can run a trial.
    """
    with App(args) as app:
        study = app.study_of_all_kinds()
        if args.executor != "ray":
            raise DeviceUnusable("--node-kind each is for --executor ray")
        kinds = app.node_kinds(study)
        app.say(f"{len(kinds)} kind(s) of nodes: " + ", ".join(map(repr, kinds)))
        blocks = {kind: _start(args.words, kind) for kind in kinds}
        readers = [
            threading.Thread(target=_pass_on, args=(app, kind, block.stderr))
            for kind, block in blocks.items()
        ]
        documents: dict[str, Any] = {}
        try:
            for reader in readers:
                reader.start()
            for kind, block in blocks.items():
                assert block.stdout is not None
                documents[kind] = _parse(block.stdout.read())
                block.wait()
        except KeyboardInterrupt:  # they have heard it too; they end what they run, or let it go on
            for block in blocks.values():
                block.wait()
            raise
        finally:
            for reader in readers:
                reader.join(10)
        codes = [block.returncode for block in blocks.values()]
        for kind, document in documents.items():
            app.say(f"{kind}: {_winner(document)}")
        code = min(
            codes, key=lambda c: severity.index(c) if c in severity else -1, default=EXIT_DONE
        )
        app.out({"kinds": documents, "exit": code})
        return code


def _start(words: Sequence[str], kind: str) -> subprocess.Popen[bytes]:
    """The same command for one kind, its document on stdout and its words on stderr."""
    at = next(i for i, w in enumerate(words) if w.startswith("--node-kind"))
    span = 1 if "=" in words[at] else 2
    mine = [*words[:at], f"--node-kind={kind}", *words[at + span :]]
    if "--json" not in mine:
        mine.append("--json")
    return subprocess.Popen(
        [sys.executable, "-m", "sweeper.cli", *mine],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _pass_on(app: App, kind: str, lines: Any) -> None:
    for line in lines:
        app.say(f"{kind}: {line.decode(errors='replace').rstrip()}")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _winner(document: Any) -> str:
    best = document.get("best") if isinstance(document, dict) else None
    if not best:
        return "no answer"
    seconds = best.get("time_to_target_s")
    return f"{best['label']}" + (f", {seconds:.4g} s" if seconds is not None else "")
