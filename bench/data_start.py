"""How long a trial's data takes before its first step: token files whose hash is known, and is not.

Run: python bench/data_start.py [--mb 800] [--rounds 5] [--out FILE]

The files are made here, of random tokens below GPT-2's vocabulary, and are in memory (the page cache)
throughout: what is timed is checking and hashing them, against finding the hash again. Both take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import machine

from trainer.config import Data
from trainer.data.corpora import load_corpus
from trainer.data.known import SETTLED_S
from trainer.data.shards import write_shard

SHARD_TOKENS = 50_000_000
VOCABULARY = 50_257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="sweep-bench-"))
    os.environ["TRAINER_CACHE"] = str(place / "cache")
    draw = np.random.default_rng(1)
    try:
        for number in range(max(1, options.mb * 500_000 // SHARD_TOKENS)):
            tokens = draw.integers(0, VOCABULARY, SHARD_TOKENS, dtype=np.uint16)
            write_shard(place / f"x_train_{number:03d}.bin", tokens)
        write_shard(place / "x_val.bin", tokens[:10_000_000])
        time.sleep(SETTLED_S + 0.1)
        data = Data(
            kind="shards", train=str(place / "x_train_*.bin"), validation=str(place / "x_val.bin")
        )
        seconds: dict[str, list[float]] = {"hashed": [], "known": []}
        for _ in range(options.rounds):
            shutil.rmtree(place / "cache", ignore_errors=True)
            for found in (
                seconds["hashed"],
                seconds["known"],
            ):  # the second finds what the first kept
                began_at = time.monotonic()
                load_corpus(data)
                found.append(time.monotonic() - began_at)
        megabytes = sum(path.stat().st_size for path in place.glob("*.bin")) / 1e6
    finally:
        shutil.rmtree(place)
    medians = {kind: round(statistics.median(found), 4) for kind, found in seconds.items()}
    result = {
        "what": "seconds until the training and validation files of a trial are checked and mapped",
        "machine": machine(),
        "command": f"python bench/data_start.py --mb {options.mb} --rounds {options.rounds}",
        "megabytes": round(megabytes),
        "median_s": medians,
        "ratio": round(medians["hashed"] / medians["known"], 1),
        "all_s": {kind: [round(s, 4) for s in found] for kind, found in seconds.items()},
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
