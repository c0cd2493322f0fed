"""Trains every configuration of a small GPT on one core, for the table of bench/search_efficiency.py.

Run: taskset -c 0 nice -n 19 python bench/make_curves.py [--out bench/data/curves.jsonl]

Each configuration learns the source of Python's standard library, byte by byte, until its loss is at
the tightest target or its seconds are used up. Seconds are of processor time on one thread: what else
runs on the machine hardly counts. A configuration's step time is its median, so a curve is loss over
steps alone. It goes on where an earlier call stopped; bench/pack_curves.py makes the committed table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.optim.orthogonalize import newton_schulz

LAYERS, WIDTH, HEADS, CONTEXT = 2, 48, 3, 32
EVERY_TOKENS = 4096
PROBE_WINDOWS = 128
DATA_BYTES = 4_000_000
LEVELS = {
    "optimizer": ("adamw", "muon"),
    "lr_i": tuple(range(6)),
    "batch": (8, 16, 32),
    "momentum": (0.8, 0.95),
    "decay": (0.0, 0.1),
    "warmup": (0, 20),
}
LR_BASE = {"adamw": 0.0005, "muon": 0.004}  # times 2 ** lr_i


class Block(nn.Module):
    """Pre-norm attention and a GELU MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_a, self.norm_m = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        b, t, c = x.shape
        parts = self.qkv(self.norm_a(x)).view(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, c))
        return x + self.down(functional.gelu(self.up(self.norm_m(x))))


class Gpt(nn.Module):
    """Bytes in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, bytes_: Tensor) -> Tensor:  # (B, T) -> (B, T, 256)
        x = self.token(bytes_) + self.place.weight[: bytes_.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Muon:
    """Muon on the blocks' matrices; the rest is AdamW's."""

    def __init__(self, matrices: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        self.lr, self._momentum, self._decay = lr, momentum, decay
        self._state = [(m, torch.zeros_like(m)) for m in matrices]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for matrix, average in self._state:
            average.lerp_(matrix.grad, 1 - self._momentum)
            update = newton_schulz(matrix.grad.lerp(average, self._momentum))
            update *= math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
            matrix.mul_(1 - self.lr * scale * self._decay).sub_(update, alpha=self.lr * scale)


def windows(data: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    index = starts[:, None] + torch.arange(CONTEXT + 1)
    found = data[index].long()
    return found[:, :-1], found[:, 1:]


def load_bytes() -> Tensor:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in folder.glob("*.py"))
    text = b"".join(p.read_bytes() for p in files)[:DATA_BYTES]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def train(setting: dict, seed: int, data: Tensor, *, target: float, most_s: float) -> dict:
    torch.manual_seed(seed)
    model = Gpt()
    lr = LR_BASE[setting["optimizer"]] * 2 ** setting["lr_i"]
    matrices = [p for b in model.blocks for p in b.parameters() if p.ndim == 2]
    muon = setting["optimizer"] == "muon"
    owned = {id(p) for p in matrices} if muon else set()
    rest = [p for p in model.parameters() if id(p) not in owned]
    adam_lr = lr / 4 if muon else lr
    adam = torch.optim.AdamW(
        rest, lr=adam_lr, betas=(setting["momentum"], 0.95), weight_decay=setting["decay"]
    )
    other = Muon(matrices, lr, setting["momentum"], setting["decay"]) if muon else None
    held_out, seen = data[: 400 * 1024], data[400 * 1024 :]
    spread = torch.linspace(0, len(held_out) - CONTEXT - 1, PROBE_WINDOWS).long()
    probe, wanted = windows(held_out, spread)
    order = torch.Generator().manual_seed(seed)
    batch = setting["batch"]
    every = EVERY_TOKENS // (batch * CONTEXT)
    times: list[float] = []
    curve: list[tuple[int, float]] = []
    step = 0
    while True:
        if step % every == 0:
            with torch.no_grad():
                loss = functional.cross_entropy(model(probe).flatten(0, 1), wanted.flatten()).item()
            finite = math.isfinite(loss) and loss < 30
            curve.append((step, round(loss, 4) if finite else None))
            if not finite or loss <= target or sum(times) > most_s:
                break
        began = time.process_time()
        scale = min(1.0, (step + 1) / setting["warmup"]) if setting["warmup"] else 1.0
        for group in adam.param_groups:
            group["lr"] = adam_lr * scale
        starts = torch.randint(len(seen) - CONTEXT - 1, (batch,), generator=order)
        inputs, outputs = windows(seen, starts)
        cost = functional.cross_entropy(model(inputs).flatten(0, 1), outputs.flatten())
        model.zero_grad(set_to_none=True)
        cost.backward()
        adam.step()
        if other is not None:
            other.step(scale)
        times.append(time.process_time() - began)
        step += 1
    step_s = statistics.median(times)
    return {
        **setting,
        "seed": seed,
        "step_s": round(step_s, 7),
        "tokens_per_step": batch * CONTEXT,
        "every": every,
        "losses": [loss for _, loss in curve],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/data/curves.jsonl"))
    parser.add_argument("--target", type=float, default=2.6, help="tightest target")
    parser.add_argument("--seconds", type=float, default=7.0, help="of one configuration")
    parser.add_argument("--first", type=int, default=None, help="only so many, for a look")
    parser.add_argument(
        "--lr", type=int, nargs="+", default=LEVELS["lr_i"], help="powers of 2 of the learning rate"
    )
    parser.add_argument("--replicates", type=int, default=12, help="points run with 3 more seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_bytes()
    known = options.out.read_text().splitlines() if options.out.exists() else []
    done = {tuple(json.loads(line)[n] for n in (*LEVELS, "seed")) for line in known}
    levels = LEVELS | {"lr_i": options.lr}
    settings = [dict(zip(levels, v, strict=True)) for v in itertools.product(*levels.values())]
    order = torch.randperm(len(settings), generator=torch.Generator().manual_seed(0)).tolist()
    jobs = [(settings[i], 1) for i in order][: options.first]
    # how much equal runs differ, measured: not only assumed
    jobs += [(settings[i], seed) for i in order[: options.replicates] for seed in (2, 3, 4)]
    train(settings[0], 1, data, target=0.0, most_s=0.3)  # warm the kernels
    with options.out.open("a", encoding="utf-8") as file:
        if not known:
            print(f"machine: {platform.machine()}, torch {torch.__version__}, one thread")
        for setting, seed in jobs:
            if (*setting.values(), seed) in done:
                continue
            began = time.monotonic()
            row = train(setting, seed, data, target=options.target, most_s=options.seconds)
            file.write(json.dumps(row) + "\n")
            file.flush()
            last = row["losses"][-1]
            spent = row["step_s"] * row["every"] * (len(row["losses"]) - 1)
            print(setting, seed, f"{spent:.2f} s", last, f"wall {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
