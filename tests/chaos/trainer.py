"""The trivial trainer with a diary outside of its run folder, and a bad manner drawn from a seed.

It must not know who reads the diary. What it says of itself there (when it started, trained, finished,
on which slot) is the one witness of a chaotic sweep that neither runner nor loop can touch.

Needs CHAOS_DIARY (a file), CHAOS_SEED, and SWEEP_ATTEMPT, which says which attempt this is. Written
to be started with `python -S`: standard library only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from pathlib import Path

# (weight, words for the trivial trainer)
MANNERS = (
    (70, ""),
    (5, "--grandchild"),
    (5, "--daemon"),
    (3, "--hold-stdout"),
    (2, "--grandchild --daemon --ignore-term --never"),
    (3, "--crash-at 3 --exit-code 7 --stderr oh"),
    (2, "--crash-at 2 --signal 11 --daemon"),
    (2, "--hang-at 4"),
    (1, "--hang-after-finish"),
    (2, "--nan-at 2"),
    (2, "--corrupt-at 2"),
    (1, "--garbage"),
    (2, "--never"),
)


def manner(seed: str, attempt: str) -> str:
    """The bad manner of one attempt (`study/trial/number`), the same in every run of a seed."""
    draw = random.Random(f"{seed}/{attempt.partition('/')[2]}")
    return draw.choices([words for _, words in MANNERS], [weight for weight, _ in MANNERS])[0]


def load_trivial():
    path = Path(__file__).parents[1] / "fakes" / "trivial_trainer.py"
    spec = importlib.util.spec_from_file_location("trivial_trainer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Diary:
    """One line a word, each written at once, so that many trainers can share the file."""

    def __init__(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self.file = os.open(os.environ["CHAOS_DIARY"], flags, 0o600)
        self.token = os.environ["SWEEP_ATTEMPT"]

    def write(self, what: str) -> None:
        line = {"token": self.token, "what": what, "at": time.monotonic(), "wall": time.time()}
        line["pid"] = os.getpid()
        os.write(self.file, json.dumps(line).encode() + b"\n")


def main() -> None:
    diary = Diary()
    diary.write("start")
    attempt = diary.token.rpartition("/")[0]
    if os.environ.get("CHAOS_MANNERS", "yes") == "yes":
        words = manner(os.environ["CHAOS_SEED"], attempt)
        os.environ["TRIVIAL"] = f"{os.environ.get('TRIVIAL', '')} {words}"
    trivial = load_trivial()

    class Diarist(trivial.Trainer):
        def emit(self, event: str, **fields: object) -> None:
            super().emit(event, **fields)
            if event in ("evaluated", "run_finished"):
                diary.write(f"finish {fields['reason']}" if event == "run_finished" else "beat")

    Diarist().run()


if __name__ == "__main__":
    main()
