"""Packs the rows of bench/make_curves.py into the compact table that is committed.

Run: python bench/pack_curves.py curves.jsonl bench/data/curves.csv.gz
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path

BATCHES = (8, 16, 32)
COLUMNS = (
    "optimizer", "lr_i", "batch_i", "momentum", "decay", "warmup", "seed", "step_s",
    "tokens_per_step", "every", "losses",
)  # fmt: skip


def main(source: Path, table: Path) -> None:
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in sorted(rows, key=lambda r: [str(r[n]) for n in r if n not in ("losses", "step_s")]):
        row["batch_i"] = BATCHES.index(row.pop("batch"))
        row["losses"] = " ".join("" if x is None else f"{x:.4f}" for x in row["losses"])
        writer.writerow(row)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    print(f"{len(rows)} curves, {table.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
