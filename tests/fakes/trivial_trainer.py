"""A stand-in trainer: speaks the protocol, learns a known function, misbehaves on demand.

It must not know who reads it; standard library only, so that hundreds can be started in a test.

The loss is a deterministic function of the configuration and of the train seconds t:

    loss(t) = 1 + 3 exp(-t / tau)
    tau = tau_s (1 + 2 log10(lr / 0.01)^2) (1 + log2(batch / 64)^2 / 4)

so the best configuration is lr = 0.01, batch = 64, it reaches 2.0 after tau_s * ln 3 seconds, and
`seconds_to(target, lr, batch)` says how long any other one takes. A step takes step_s * batch / 64
seconds. Keys are read from a TOML or JSON file by their last part (`optim.lr` is `lr`): lr, batch,
tau_s, step_s, and seed, target, max_steps. With --virtual-clock nothing sleeps and the clock is
exact.

Options come from the command line and from the variable TRIVIAL (the same words), for example
TRIVIAL="--crash-at 3 --exit-code 7".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import zlib
from pathlib import Path

SLEEPER = "import time; time.sleep(600)"
DEAF_SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def time_constant(lr: float, batch: float, tau_s: float) -> float:
    return tau_s * (1 + 2 * math.log10(lr / 0.01) ** 2) * (1 + math.log2(batch / 64) ** 2 / 4)


def loss_at(train_s: float, tau: float) -> float:
    return 1 + 3 * math.exp(-train_s / tau)


def seconds_to(target: float, lr: float = 0.01, batch: float = 64, tau_s: float = 1.0) -> float:
    """Train seconds until the loss is exactly `target`: what a sweep should find."""
    return time_constant(lr, batch, tau_s) * math.log(3 / (target - 1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--config", type=Path, help="a TOML or JSON file, see above")
    add("--virtual-clock", action="store_true", help="no sleeping, an exact clock")
    add("--tau-s", type=float, default=1.0, help="tau_s, where no configuration gives it")
    add("--eval-every", type=int, default=5)
    add("--step-every", type=int, default=1, help="emit a step event every so many steps; 0: none")
    add("--noise", type=float, default=0.0, help="log-normal noise of tau, drawn from the seed")
    add("--startup", type=float, default=0.0, help="sleep this long before the first event")
    add("--wait-for", type=Path, help="no first event before this file is there")
    add("--compile", type=float, default=0.0, help="sleep this long in the compile phase")
    add("--reach-at", type=int, help="loss falls linearly so that the target is met at this step")
    add("--near-miss-at", type=int, help="met at this step, but not on the larger slice")
    add("--never", action="store_true", help="the loss stays at 4")
    add("--go-on", action="store_true", help="do not stop at the target")
    add("--claim-target-at", type=int, help="say `target` at this step, whatever the loss is")
    add("--run-for", type=float, help="finish after so many seconds, reason steps")
    add("--hang-at", type=int)
    add("--hang-after-finish", action="store_true")
    add("--ignore-term", action="store_true")
    add("--grandchild", action="store_true", help="a child in our group that ignores TERM")
    add("--daemon", action="store_true", help="a double-forked daemon in a session of its own")
    add("--bare-daemon", action="store_true", help="the same with an empty environment")
    add("--hold-stdout", action="store_true", help="a child that keeps our stdout open after us")
    add("--spawn-only", action="store_true", help="spawn the children above, then exit 0 at once")
    add("--crash-at", type=int)
    add("--exit-code", type=int, default=1)
    add("--signal", type=int, help="die of this signal at --crash-at instead of exiting")
    add("--fail-class", help="write run_failed with this class at --crash-at")
    add("--stderr", help="write this to stderr at --crash-at")
    add("--garbage", action="store_true", help="print binary garbage as events, nothing else")
    add("--corrupt-at", type=int, help="write a torn event line at this step, and go on")
    add("--torn", action="store_true", help="the last line is half an event")
    add("--nan-at", type=int, help="loss is null from here on (NaN literal with --foreign)")
    add("--foreign", action="store_true", help="write bare NaN, as foreign writers do")
    add("--no-finish", action="store_true", help="exit 0 without run_finished")
    add("--no-clock", action="store_true")
    add("--no-metric", action="store_true", help="evaluate something else")
    add("--eat-memory", type=int, help="allocate so many MiB under a limit half as large")
    add("--flood", type=int, default=0, help="so many extra step events before the first step")
    add("--long-line", type=int, default=0, help="so many MiB in one line, on events and stdout")
    add("--unknown", action="store_true", help="emit an event and a field that nobody knows")
    add("--print-patterns", action="store_true", help="no events: nanoGPT-like lines on stdout")
    add("--drain", action="store_true", help="on TERM: checkpoint_saved, run_finished, exit 0")
    add("--save", action="store_true", help="leave a checkpoint at the end")
    add("--resume", type=Path, help="go on from a checkpoint")
    return parser.parse_args([*shlex.split(os.environ.get("TRIVIAL", "")), *sys.argv[1:]])


def read_config(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    text = path.read_text(encoding="utf-8")
    document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    flat: dict[str, object] = {}

    def walk(table: dict[str, object]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                walk(value)
            else:
                flat[key.rsplit(".", 1)[-1]] = value

    walk(document)
    return flat


class Trainer:
    def __init__(self) -> None:
        self.born_at = time.monotonic()
        self.options = arguments()
        given = read_config(self.options.config)
        environment = os.environ.get

        def number(key: str, default: float | None) -> float | None:
            value = given.get(key)
            return default if value is None else float(value)  # type: ignore[arg-type]

        self.config = given
        self.seed = int(number("seed", float(environment("SWEEP_SEED") or 0)) or 0)
        target = environment("SWEEP_TARGET")
        self.target = number("target", float(target) if target else None)
        most = float(environment("SWEEP_MAX_STEPS") or 100)
        self.max_steps = int(number("max_steps", most) or most)
        batch = number("batch", 64.0) or 64.0
        self.step_s = (number("step_s", 0.01) or 0.01) * batch / 64
        self.tau = time_constant(
            number("lr", 0.01) or 0.01, batch, number("tau_s", self.options.tau_s) or 1.0
        )
        draw = zlib.crc32(f"{self.seed}/{sorted(given.items())}".encode()) / 2**32
        self.tau *= math.exp(self.options.noise * (2 * draw - 1) * math.sqrt(3))
        self.batch = int(batch)
        self.seq = self.step = 0
        self.clock = dict.fromkeys(("startup", "compile", "train", "eval", "checkpoint"), 0.0)
        path = environment("SWEEP_EVENTS")
        self.events = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path else 1

    def write(self, data: bytes, descriptor: int | None = None) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self.events if descriptor is None else descriptor, left) :]

    def line(self, event: str, **fields: object) -> bytes:
        body = {"v": 1, "seq": self.seq, "event": event, "step": self.step}
        body["tokens"] = self.step * self.batch * 128
        if not self.options.no_clock:
            body["clock"] = {k: round(v, 6) for k, v in self.clock.items()}
        self.seq += 1
        return json.dumps(body | fields).encode() + b"\n"

    def emit(self, event: str, **fields: object) -> None:
        if not self.options.print_patterns:
            self.write(self.line(event, **fields))

    def spawn(self) -> None:
        """Children of every bad manner; each says its pid in a file of the run folder."""
        options, null = self.options, subprocess.DEVNULL
        folder = Path(os.environ.get("SWEEP_RUN_DIR", "."))

        def child(name: str, code: str, **kwargs: object) -> None:
            process = subprocess.Popen([sys.executable, "-S", "-c", code], **kwargs)  # type: ignore[call-overload]
            (folder / f"{name}.pid").write_text(str(process.pid))

        if options.grandchild:
            child("grandchild", DEAF_SLEEPER, stdout=null, stderr=null)
        if options.hold_stdout:
            child("holder", SLEEPER)
        if options.daemon or options.bare_daemon:
            code = DEAF_SLEEPER
            env = {} if options.bare_daemon else None
            read, write = os.pipe()
            if os.fork() == 0:
                os.setsid()
                daemon = subprocess.Popen(
                    [sys.executable, "-S", "-c", code], env=env, start_new_session=True
                )
                os.write(write, str(daemon.pid).encode())
                os._exit(0)
            os.wait()
            (folder / "daemon.pid").write_text(os.read(read, 20).decode())

    def misbehave_early(self) -> None:
        options = self.options
        if options.ignore_term:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if options.drain:
            signal.signal(signal.SIGTERM, self.drain)
        self.spawn()
        if options.spawn_only:
            sys.exit(0)
        if options.garbage:
            self.write(bytes(range(1, 256)) * 40 + b"\n\xff\xfe{]\n" * 20)
            sys.exit(options.exit_code if options.crash_at is not None else 0)
        if options.eat_memory:
            import resource

            half = options.eat_memory * 2**19
            resource.setrlimit(resource.RLIMIT_AS, (half, half))
            bytearray(options.eat_memory * 2**20)

    def drain(self, *_: object) -> None:
        self.emit("checkpoint_saved", path="checkpoint")
        self.emit("run_finished", reason="interrupted")
        sys.exit(0)

    def loss(self) -> float:
        options = self.options
        if options.never:
            return 4.0
        if options.reach_at is not None:
            target = 2.0 if self.target is None else self.target
            return target + 0.1 * (options.reach_at - self.step)
        return loss_at(self.step * self.step_s, self.tau)

    def misbehave_at_step(self) -> None:
        options = self.options
        if options.corrupt_at == self.step:
            self.write(self.line("step")[:30] + b"\n")
        if options.hang_at == self.step:
            time.sleep(3600)
        if options.crash_at == self.step:
            if options.stderr:
                print(options.stderr, file=sys.stderr, flush=True)
            if options.fail_class:
                self.emit("run_failed", **{"class": options.fail_class, "message": "as asked"})
            if options.torn:
                self.write(self.line("step")[:25])
            if options.signal:
                signal.signal(options.signal, signal.SIG_DFL) if options.signal != 9 else None
                os.kill(os.getpid(), options.signal)
                time.sleep(10)
            sys.exit(options.exit_code)

    def evaluate(self) -> bool:
        """One evaluation; True when the run is to stop at the target."""
        options, loss = self.options, self.loss()
        if options.near_miss_at == self.step and self.target is not None:
            for value, kind in ((self.target, "probe"), (self.target + 0.1, "confirmation")):
                self.emit("evaluated", metrics={"val_loss": value}, slice=kind)
            return False
        nan = options.nan_at is not None and self.step >= options.nan_at
        shown: float | None = (math.nan if options.foreign else None) if nan else loss
        name = "accuracy" if options.no_metric else "val_loss"
        if options.print_patterns:
            seen = math.nan if nan else loss
            print(f"step {self.step}: train loss {loss:.4f}, val loss {seen:.4f}")
            sys.stdout.flush()
        self.emit("evaluated", metrics={name: shown}, slice="probe")
        reached = self.target is not None and not nan and loss <= self.target
        if options.claim_target_at is not None:
            return self.step >= options.claim_target_at
        return reached and not options.go_on

    def train(self) -> str:
        options, started_at = self.options, time.monotonic() - self.clock["train"]
        while self.step < self.max_steps:
            self.misbehave_at_step()
            if self.step % options.eval_every == 0 and self.evaluate():
                return "target"
            if options.run_for is not None and time.monotonic() - started_at >= options.run_for:
                return "steps"
            if not options.virtual_clock:
                time.sleep(self.step_s)
            self.step += 1
            real_s = time.monotonic() - started_at
            self.clock["train"] = self.step * self.step_s if options.virtual_clock else real_s
            if options.step_every and self.step % options.step_every == 0:
                self.emit("step", loss=round(self.loss(), 6), tokens_per_s=1000.0)
                if options.print_patterns:
                    step_ms = self.step_s * 1e3
                    print(f"iter {self.step}: loss {self.loss():.4f}, time {step_ms:.2f}ms")
                    sys.stdout.flush()
        return "target" if self.evaluate() else "steps"

    def run(self) -> None:
        options = self.options
        time.sleep(options.startup)
        while options.wait_for and not options.wait_for.exists():
            time.sleep(0.05)
        self.misbehave_early()
        self.clock["startup"] = 0.1 if options.virtual_clock else time.monotonic() - self.born_at
        more = {}
        if options.resume:
            state = json.loads(options.resume.read_text())
            self.step, self.clock = state["step"], state["clock"]
            more["resumed_from"] = {"path": str(options.resume)} | state
        hardware = {"device": "cpu"}
        self.emit("run_started", config=self.config, hardware=hardware, data_hash="none", **more)
        time.sleep(options.compile)
        self.clock["compile"] = options.compile
        if options.unknown:
            self.emit("coffee_break", minutes=5)
            self.emit("step", flavour="vanilla")
        if options.long_line:
            long = b"x" * (options.long_line * 2**20) + b"\n"
            self.write(long)
            self.write(long, 1)
        for _ in range(options.flood // 100):
            self.write(b"".join(self.line("step", loss=4.0) for _ in range(100)))
        reason = self.train()
        if options.save:
            state = {"step": self.step, "clock": self.clock}
            Path(os.environ["SWEEP_RUN_DIR"], "checkpoint.json").write_text(json.dumps(state))
            self.emit("checkpoint_saved", path="checkpoint.json")
        if options.torn:
            self.write(self.line("run_finished", reason=reason)[:40])
        elif not options.no_finish:
            self.emit("run_finished", reason=reason)
        if options.hang_after_finish:
            time.sleep(3600)


if __name__ == "__main__":
    Trainer().run()
