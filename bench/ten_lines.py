"""The trainer of `overhead.py`: ten lines of the protocol in 0.3 s, standard library only.

It must not know who starts it; it says when training began and ended in the file BENCH_MARKS.
"""

from __future__ import annotations

import json
import os
import time

LINES = 10
TRAIN_S = 0.3


def mark(kind: str) -> None:
    """One line: what, the monotonic instant (one clock for all processes), our CPU seconds."""
    path = os.environ.get("BENCH_MARKS")
    if path:
        line = json.dumps({"mark": kind, "at": time.monotonic(), "cpu_s": time.process_time()})
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def main() -> None:
    """Ten evaluations, the last one below any target of the benchmark."""
    sink = os.open(
        os.environ.get("SWEEP_EVENTS", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )

    def emit(event: str, step: int, **fields: object) -> None:
        clock = {"startup": 0.01, "train": step * TRAIN_S / LINES}
        head = {"v": 1, "seq": step, "event": event, "step": step, "tokens": step, "clock": clock}
        os.write(sink, json.dumps(head | fields).encode() + b"\n")

    emit("run_started", 0, config={}, hardware={"device": "cpu"}, data_hash="none")
    mark("began")
    for step in range(1, LINES + 1):
        time.sleep(TRAIN_S / LINES)
        emit("evaluated", step, metrics={"val_loss": 4.0 - 0.25 * step}, slice="probe")
    mark("ended")
    emit("run_finished", LINES, reason="target")


if __name__ == "__main__":
    main()
