"""Is the trainer right and fast on this GPU? One command, under 8 minutes, torch and numpy only.

    python bench/gpu.py --data DIR     from the checkout, nothing installed; DIR holds token shards
                                       named *train*.bin and *val*.bin (docs-gpt2), copied beside it
    python bench/gpu.py --tiny         the same at toy size on a CPU, to know that it works

It writes its JSON after every part, so that what was measured is kept whatever happens next; a part
for which no time is left is named as skipped. Figures are of this device and this corpus alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from trainer.config import parse  # noqa: E402
from trainer.data.shards import write_shard  # noqa: E402
from trainer.hardware import device_name, versions  # noqa: E402
from trainer.models import build_model  # noqa: E402

PEAK_BF16_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 peak by the makers' data sheets; the MFU is a share of it."""

LOSS_TOLERANCE = 0.02
"""Nats by which a compiled bf16 loss may differ from that of float64."""

GRADIENT_TOLERANCE = 0.05
"""Length of the difference of all gradients over their length in float64."""

REAL_TOKENS = 7_000_000
"""15 MB of training tokens at most: 2 bytes each, and the header."""

LEARNING_RATES = (0.003, 0.006, 0.012, 0.024)


class Bench:
    """What all parts share: device, sizes, a folder for children, the results so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.tiny, self.folder, self.out = options.tiny, folder, options.out
        self.began_at, self.budget_s = time.monotonic(), options.budget_s
        self.device = torch.device("cpu" if options.tiny else "cuda")
        self.cache = folder / "cache"
        self.train, self.validation, self.real = self._data(options.data)
        self.batches = (2, 4, 8, 16) if options.tiny else (16, 32, 64, 128)
        self.results: dict[str, object] = {
            "what": "trainer on one device",
            "device": device_name(self.device),
            "tiny": options.tiny,
            "note": "toy size on a CPU: not measured on a GPU yet" if options.tiny else None,
            "versions": versions(),
            "data": str(options.data) if options.data else "synthetic tokens (Zipf)",
        }

    def _data(self, named: Path | None) -> tuple[str, str, bool]:
        if named is not None:
            return str(named / "*train*.bin"), str(named / "*val*.bin"), True
        draw = np.random.Generator(np.random.PCG64(0))
        for name, count in (("train", 4_000_000), ("val", 600_000)):
            tokens = np.minimum(draw.zipf(1.2, count), 50_256).astype(np.uint16)
            write_shard(self.folder / f"synthetic_{name}.bin", tokens)
        return str(self.folder / "*train*.bin"), str(self.folder / "*val*.bin"), False

    def config(self, **changes: object) -> dict[str, object]:
        """studies/ngpt/base.toml on these data, with dotted keys (as two underscores) changed."""
        raw = tomllib.loads((ROOT / "studies" / "ngpt" / "base.toml").read_text())
        raw["data"] |= {
            "train": self.train,
            "validation": self.validation,
            "max_tokens": REAL_TOKENS,
            "micro_batch": 16,
        }
        raw["eval"] |= {"confirmation_tokens": 524_288, "every_tokens": 524_288}
        raw["run"] |= {"device": self.device.type, "compile_cache": str(self.cache)}
        if self.tiny:
            raw["model"] |= {"layers": 2, "width": 64, "heads": 2, "hidden": 128}
            raw["data"] |= {"context": 32, "batch_size": 4, "micro_batch": 2}
            raw["eval"] |= {
                "probe_tokens": 1024,
                "confirmation_tokens": 2048,
                "windows_per_pass": 32,
                "every_tokens": 1024,
            }
            raw["run"] |= {"threads": 1}
        for key, value in changes.items():
            *sections, name = key.split("__")
            section = raw
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
        return raw

    def trainer(self, verb: str, config: dict[str, object], *options: str) -> tuple[float, Path]:
        """Run the trainer as a process of its own; seconds that it took, and its event file."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        (place / "config.json").write_text(json.dumps(config))
        began_at = time.monotonic()
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "trainer",
                verb,
                "--config",
                str(place / "config.json"),
                *options,
            ],
            cwd=ROOT,
            env={**os.environ, "SWEEP_RUN_DIR": str(place)},
            capture_output=True,
            text=True,
            timeout=max(30.0, self.left_s()) * (20 if self.tiny else 1),
            check=False,
        )
        if result.returncode:
            raise RuntimeError(result.stderr.strip().splitlines()[-1])
        return time.monotonic() - began_at, place

    def measured(self, config: dict[str, object], steps: int) -> dict[str, object]:
        """What `python -m trainer bench` says of a configuration, and the process's seconds."""
        out = self.folder / "bench.json"
        seconds, _ = self.trainer("bench", config, "--steps", str(steps), "--out", str(out))
        told = json.loads(out.read_text())
        told["process_s"] = seconds
        peak = next(
            (p for name, p in PEAK_BF16_FLOPS.items() if name in self.results["device"]), None
        )
        told["mfu"] = told["model_flops_per_s"] / peak if peak else None
        told.pop("config"), told.pop("versions"), told.pop("hardware")
        return told

    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.monotonic() - self.began_at)

    def part(self, name: str, work, needs_s: float) -> None:
        """Do one part, keep what it found or why it failed, and write everything."""
        began_at = time.monotonic()
        if not self.tiny and self.left_s() < needs_s:
            self.results[name] = {
                "skipped": f"{self.left_s():.0f} s left, about {needs_s:.0f} needed"
            }
        else:
            try:
                self.results[name] = work(self)
            except (Exception, subprocess.TimeoutExpired) as error:  # noqa: BLE001 - the rest goes on
                self.results[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name} ({time.monotonic() - began_at:.1f} s)", flush=True)
        print("   ", json.dumps(self.results[name])[:1500], flush=True)
        self.results["wall_s"] = time.monotonic() - self.began_at
        partial = self.out.with_name(f".{self.out.name}.part")
        partial.write_text(json.dumps(self.results, indent=1, allow_nan=False) + "\n")
        partial.replace(self.out)


def starts(bench: Bench) -> dict[str, object]:
    """Process start to first step: with an empty cache of compiled code, with a full one, and plain."""
    batch = bench.batches[1]
    found = {}
    for name, changes in (("cold", {}), ("warm", {}), ("uncompiled", {"run__compile": "off"})):
        told = bench.measured(bench.config(data__batch_size=batch, **changes), 20)
        keys = (
            "start_to_first_step_s",
            "start_s",
            "compile_s",
            "tokens_per_s",
            "peak_memory_bytes",
        )
        found[name] = {key: told[key] for key in keys}
    return found


def correctness(bench: Bench) -> dict[str, object]:
    """Loss and gradients of the compiled bf16 model, all 11 layers, beside eager float64."""
    config = parse(bench.config(model__layers=11), "bench")
    draw = torch.Generator().manual_seed(0)
    size = (config.data.micro_batch, config.data.context + 1)
    rows = torch.randint(0, config.data.vocabulary, size, generator=draw).to(bench.device)
    x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def model(precision: str) -> torch.nn.Module:
        settings = {"vocabulary": config.data.vocabulary, "context": config.data.context, "seed": 0}
        return build_model(config.model, precision=precision, **settings).to(bench.device)

    def loss_and_gradients(network, function) -> tuple[float, list[torch.Tensor]]:
        loss = function(x, y)
        loss.backward()
        gradients = [p.grad.double().cpu() for p in network.parameters()]
        network.zero_grad(set_to_none=True)
        return float(loss.detach()), gradients

    exact_network = model("fp32").double()
    exact_loss, exact = loss_and_gradients(exact_network, exact_network)
    del exact_network
    found: dict[str, object] = {"layers": 11, "tokens": y.numel(), "loss_float64": exact_loss}
    cases = {
        "eager fp32": ("fp32", False, 1e-3, 1e-3),
        "eager bf16": ("bf16", False, LOSS_TOLERANCE, GRADIENT_TOLERANCE),
        "compiled bf16": ("bf16", True, LOSS_TOLERANCE, GRADIENT_TOLERANCE),
    }
    for name, (precision, compiled, loss_tolerance, gradient_tolerance) in cases.items():
        network = model(precision)
        function = torch.compile(network, dynamic=False) if compiled else network
        loss, gradients = loss_and_gradients(network, function)
        off = math.sqrt(
            sum(float((g - e).square().sum()) for g, e in zip(gradients, exact, strict=True))
        )
        length = math.sqrt(sum(float(e.square().sum()) for e in exact))
        found[name] = {
            "loss_difference": loss - exact_loss,
            "gradient_difference": off / length,
            "tolerances": [loss_tolerance, gradient_tolerance],
            "within": abs(loss - exact_loss) <= loss_tolerance
            and off / length <= gradient_tolerance,
        }
        del network, function, gradients
    return found


def batches(bench: Bench) -> dict[str, object]:
    """Speed, MFU, memory and shares at each batch size, through one compiled graph."""
    return {
        str(size): bench.measured(bench.config(data__batch_size=size), 20) for size in bench.batches
    }


def passes(bench: Bench) -> dict[str, object]:
    """The same step cut into passes of other sizes: what the fixed micro-batch costs."""
    batch = bench.batches[1]
    sizes = (batch // 4, batch)
    found = {}
    for size in sizes:
        told = bench.measured(bench.config(data__batch_size=batch, data__micro_batch=size), 20)
        found[str(size)] = {key: told[key] for key in ("tokens_per_s", "mfu", "peak_memory_bytes")}
    return found


def attention(bench: Bench) -> dict[str, object]:
    """Milliseconds of forward and backward of causal attention by each kernel, in our shape."""
    shape, runs = ((2, 2, 32, 32), 3) if bench.tiny else ((16, 6, 1024, 128), 30)
    q, k, v = (
        torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    wait = torch.cuda.synchronize if bench.device.type == "cuda" else lambda: None
    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    found: dict[str, object] = {"shape (B, H, T, K)": shape}
    for name, kernel in kernels.items():
        try:
            with sdpa_kernel(kernel):
                for run in range(runs + 3):
                    if run == 3:
                        wait()
                        began_at = time.monotonic()
                    mixed = torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=True
                    )
                    mixed.backward(torch.ones_like(mixed))
                wait()
            found[name] = (time.monotonic() - began_at) / runs * 1e3
        except RuntimeError as error:
            found[name] = f"refused: {str(error).splitlines()[0]}"
    return found


def curve(place: Path) -> tuple[list[list[float]], dict[str, object]]:
    """Train seconds, tokens and probe loss of a run, and its last event."""
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    points = [
        [e["clock"]["train"], e["tokens"], e["metrics"]["val_loss"]]
        for e in events
        if e["event"] == "evaluated" and e["slice"] == "probe"
    ]
    return points, events[-1]


def real_run(bench: Bench) -> dict[str, object]:
    """A run through the corpus, a target calibrated on it, and a second seed's time to that target."""
    batch = bench.batches[1]
    steps = 200 if bench.tiny else REAL_TOKENS // (batch * 1024)
    settings = {"data__batch_size": batch, "run__max_steps": steps, "optim__muon__lr": 0.01}
    wall_s, place = bench.trainer("train", bench.config(**settings))
    points, last = curve(place)
    # The loss after 70 % of the tokens, rounded up: the reference recipe reaches it with some left.
    calibrated = min(loss for _, tokens, loss in points if tokens <= 0.7 * points[-1][1])
    target = math.ceil(calibrated * 20) / 20
    bench.target, bench.steps = target, steps
    second_s, second = bench.trainer(
        "train", bench.config(run__target=target, run__seed=1, **settings)
    )
    again, end = curve(second)
    return {
        "corpus_is_real_text": bench.real,
        "curve (train s, tokens, val loss)": points,
        "wall_s": wall_s,
        "tokens_per_s": last["tokens_per_s"],
        "calibrated_target": target,
        "second_seed": {
            "reason": end["reason"],
            "train_s": end["clock"]["train"],
            "tokens": end["tokens"],
            "wall_s": second_s,
            "loss": again[-1][2],
        },
    }


def plain_sweep(bench: Bench) -> dict[str, object]:
    """The simplest sweep there is, a loop over trainer processes, to the calibrated target."""
    began_at, rows = time.monotonic(), []
    for rate in LEARNING_RATES:
        if not bench.tiny and bench.left_s() < 40:
            break
        config = bench.config(
            data__batch_size=bench.batches[1],
            optim__muon__lr=rate,
            run__target=bench.target,
            run__max_steps=bench.steps,
        )
        wall_s, place = bench.trainer("train", config)
        _, end = curve(place)
        reached = end["reason"] == "target"
        rows.append(
            {
                "optim.muon.lr": rate,
                "time_to_target_s": end["clock"]["train"] if reached else None,
                "best_loss": end["best_loss"],
                "wall_s": wall_s,
            }
        )
    return {"target": bench.target, "trials": rows, "wall_s": time.monotonic() - began_at}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="toy size on the CPU")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of token shards")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--budget-s", type=float, default=460.0, help="seconds to stay within")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("bench/gpu.py: no CUDA device here; --tiny runs on a CPU", file=sys.stderr)
        return 3
    name = "gpu-tiny-on-cpu.json" if options.tiny else "gpu.json"
    options.out = options.out or ROOT / "bench" / "results" / name
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(bench.cache / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(bench.cache / "triton")
        bench.part("start to first step", starts, 90)
        bench.part("correctness", correctness, 60)
        bench.part("batch sizes", batches, 60)
        bench.part("real run", real_run, 60)
        bench.part("attention", attention, 10)
        bench.part("sweep as a loop", plain_sweep, 60)
        bench.part("pass sizes", passes, 60)
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
