"""A line through noisy points by stochastic gradient descent; five lines of it are for sweep."""

import argparse
import json
import os
import random
import time

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.01)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

chance = random.Random(arguments.seed)
inputs = [chance.uniform(-1, 1) for _ in range(2000)]
points = [(x, 3 * x - 1 + chance.gauss(0, 0.1)) for x in inputs]
training, validation = points[:1600], points[1600:]
slope = intercept = 0.0
began = time.monotonic()  # the first line for sweep; four more are at the end
for step in range(1, 2001):
    batch = chance.sample(training, arguments.batch)
    errors = [(slope * x + intercept - y, x) for x, y in batch]
    slope -= arguments.lr * sum(e * x for e, x in errors) / arguments.batch
    intercept -= arguments.lr * sum(e for e, _ in errors) / arguments.batch
    if step % 20 == 0:
        loss = sum((slope * x + intercept - y) ** 2 for x, y in validation) / len(validation)
        clock = {"train": time.monotonic() - began}
        line = {"v": 1, "seq": step, "event": "evaluated", "step": step, "clock": clock}
        with open(os.environ.get("SWEEP_EVENTS", os.devnull), "a") as events:
            events.write(json.dumps(line | {"metrics": {"val_loss": loss}}) + "\n")
