"""The project's torch trainer with two marks added: its first training step, and its training's end.

It must not change what is trained; instants are the machine's monotonic clock, in the file BENCH_MARKS.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

OWN = ("data", "compile", "eval", "checkpoint")
"""Phases before the first step that are the trial's own work, however it was started."""


def mark(kind: str, **more: float) -> None:
    line = json.dumps({"mark": kind, "at": time.monotonic(), **more})
    with open(os.environ["BENCH_MARKS"], "a", encoding="utf-8") as file:
        file.write(line + "\n")


def add_marks() -> None:
    """Wrap the loop: "began" when the first step of `run` begins, "ended" when `run` is over."""
    from trainer.loop import TrainingLoop

    if getattr(TrainingLoop, "is_marked", False):
        return
    step, run = TrainingLoop._step, TrainingLoop.run

    def marked_step(self: TrainingLoop) -> None:
        if self.progress.step == 0:
            spent = self.clock.read()
            mark("began", own_s=sum(spent[phase] for phase in OWN))
        step(self)

    def marked_run(self: TrainingLoop) -> Any:
        try:
            return run(self)
        finally:
            mark("ended")

    TrainingLoop._step, TrainingLoop.run = marked_step, marked_run
    TrainingLoop.is_marked = True


def preload() -> None:
    """What a warm parent imports: the trainer's own preload where it has one."""
    import trainer.__main__

    prepare = getattr(trainer.__main__, "preload", None) or getattr(trainer, "preload", None)
    if callable(prepare):
        prepare()
    else:
        import trainer.train
    add_marks()


def in_process(config: dict[str, Any], events: Path) -> None:
    """One run in this process and thread (for Ray's workers): what the command line does, no signals."""
    from trainer.config import parse
    from trainer.events import EventWriter
    from trainer.stopping import Progress
    from trainer.timing import PhaseClock
    from trainer.train import train

    add_marks()
    clock = PhaseClock()
    with events.open("ab", buffering=0) as file:
        train(
            parse(config, "bench"),
            events=EventWriter(file.write, clock.read),
            clock=clock,
            progress=Progress(),
            stop_requested=lambda: False,
            say=lambda text: None,
        )


if __name__ == "__main__":
    gc.disable()  # as `python -m trainer` does
    from trainer.__main__ import main

    add_marks()
    code = main()
    gc.freeze()
    sys.exit(code)
