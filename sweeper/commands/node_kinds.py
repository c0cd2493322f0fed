"""One command for every kind of node that a cluster has: the study's blocks, side by side.

It must not know what a command does: each block is a command of its own, with a study of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from sweeper.app import App
from sweeper.errors import EXIT_INTERRUPTED, DeviceUnusable

EACH = "each"


def run_each(args: argparse.Namespace, severity: Sequence[int]) -> int:
    """Run the command once for every kind of node, all at the same time; the worst exit code counts.

    Times of different kinds are never compared, so every kind has the whole plan, its own winner and
    its own report. What each says is printed line by line after the kind's name. Signals are for the
    blocks, and nobody leaves before they have ended: see `Blocks.signalled`.

    Raises:
        DeviceUnusable: not on a cluster, or no node can run a trial.
    """
    with App(args) as app:
        study = app.study_of_all_kinds()
        if args.executor != "ray":
            raise DeviceUnusable("--node-kind each is for --executor ray")
        kinds = app.node_kinds(study)
        app.say(f"{len(kinds)} kind(s) of nodes: " + ", ".join(map(repr, kinds)))
        blocks = Blocks(app)
        documents: dict[str, Any] = {}
        with blocks.signalled():
            for kind in kinds:
                blocks.start(kind, args.words)
            codes = [_code(block, kind, documents) for kind, block in blocks.running.items()]
            blocks.hear_them_out()
        for kind, document in documents.items():
            app.say(f"{kind}: {_winner(document)}")
        code = min(
            codes,
            key=lambda c: severity.index(c) if c in severity else -1,
            default=EXIT_INTERRUPTED,  # asked to stop before the first one was started
        )
        app.out({"kinds": documents, "exit": code})
        return code


class Blocks:
    """The commands of all kinds by their kind, in the order in which they were started."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._readers: list[threading.Thread] = []
        self._heard: list[int] = []

    def start(self, kind: str, words: Sequence[str]) -> None:
        """The same command for one kind, unless we were asked to stop before."""
        if self._heard:
            return
        block = _start(words, kind)
        self.running[kind] = block
        for number in self._heard:  # it came while the block was being started
            block.send_signal(number)
        reader = threading.Thread(target=self._pass_on, args=(kind, block.stderr))
        reader.start()
        self._readers.append(reader)

    @contextlib.contextmanager
    def signalled(self) -> Iterator[None]:
        """Each INT, TERM or HUP to us is one to each block, which takes it as any command does.

        Once only: blocks have sessions of their own, which a terminal's Ctrl-C does not reach.
        """
        ours = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            ours.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._signal) for number in ours}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def hear_them_out(self) -> None:
        """The rest of what they say; whoever still has their stderr may keep it."""
        for reader in self._readers:
            reader.join(10)

    def _signal(self, number: int, frame: object) -> None:  # noqa: ARG002
        self._heard.append(number)
        for block in self.running.values():
            block.send_signal(number)

    def _pass_on(self, kind: str, lines: Any) -> None:
        for line in lines:
            with contextlib.suppress(OSError):  # our reader is gone; the block must not wait for it
                self._app.say(f"{kind}: {line.decode(errors='replace').rstrip()}")


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
        start_new_session=True,
    )


def _code(block: subprocess.Popen[bytes], kind: str, documents: dict[str, Any]) -> int:
    """Wait for a block, keep its document; the exit code, where a death by a signal is interrupted."""
    assert block.stdout is not None
    documents[kind] = _parse(block.stdout.read())
    code = block.wait()
    return code if code >= 0 else EXIT_INTERRUPTED


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
