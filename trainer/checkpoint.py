"""Owns checkpoints: whole states as files that appear whole or not at all, and their refusal.

It must not know what a state means to the loop; it sees plain values and tensors.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config, as_dict
from trainer.errors import CheckpointError
from trainer.roles import RoledParameter

FORMAT = 1
AUTO = "auto"
BEST = "best.pt"
_NAME = re.compile(r"step-(\d{8})\.pt")


class CheckpointFolder:
    """The checkpoints of one run in one folder, the newest `keep_last` of them, and the best."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self._keep_last = folder, keep_last

    def refuse_earlier_run(self) -> None:
        """CheckpointError when the folder has checkpoints: a fresh run would delete them."""
        if found := [*newest_first(self.folder), *self.folder.glob(BEST)]:
            raise CheckpointError(
                f"{self.folder} holds checkpoints of an earlier run ({found[0].name}): continue it "
                "with --resume auto, or name another checkpoint.folder"
            )

    def save(self, state: Mapping[str, Any], step: int, *, best: bool = False) -> Path:
        """Write `state`, then drop what is no longer kept; the path. CheckpointError on failure."""
        path = self.folder / (BEST if best else f"step-{step:08d}.pt")
        write({"format": FORMAT, **state}, path)
        if not best:
            for old in newest_first(self.folder)[self._keep_last :]:
                old.unlink(missing_ok=True)
        return path


def newest_first(folder: Path) -> list[Path]:
    """The numbered checkpoints in `folder`, that of the latest step first."""
    try:
        return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)
    except OSError:
        return []


def write(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` (nested plain values and tensors) so that it appears whole or not at all."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: the checkpoint cannot be written ({reason})") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # gone already, unless something failed


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; CheckpointError when it is not one, or cut off.

    Nothing but tensors and plain values is ever unpickled (`weights_only`).
    """
    try:
        with path.open("rb") as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - torch names a damaged file in a dozen ways
        raise CheckpointError(
            f"{path}: not a whole checkpoint: it is cut off, or another kind of file "
            f"({type(error).__name__})"
        ) from None
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path}: not a checkpoint of this trainer")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: a checkpoint of format {state['format']}; expected {FORMAT}"
        )
    return state


def find(
    resume: str, folder: Path, warn: Callable[[str], object]
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that `resume` names, and its state; None when "auto" finds none.

    "auto" passes over a damaged file to the one before, and says so to `warn`; when all are
    damaged it raises the newest one's CheckpointError.
    """
    if resume != AUTO:
        path = Path(resume)
        return path, read(path)
    failures: list[CheckpointError] = []
    for path in newest_first(folder):
        try:
            return path, read(path)
        except CheckpointError as error:
            failures.append(error)
            warn(str(error))
    if failures:
        raise failures[0]
    return None


_DECIDES_WEIGHTS = ("model", "objective", "optim", "schedule")
_DECIDES_ORDER = ("batch_size", "micro_batch", "context", "stride")


def identity(config: Config, *, data_hash: str, vocabulary: int) -> dict[str, Any]:
    """What must be equal for one run to be the continuation of another, by dotted key."""
    values = as_dict(config)
    flat: dict[str, Any] = {"data hash": data_hash, "vocabulary": vocabulary}
    for section in _DECIDES_WEIGHTS:
        flat.update(_flat(values[section], f"{section}."))
    flat.update({f"data.{key}": values["data"][key] for key in _DECIDES_ORDER})
    flat.update({f"run.{key}": values["run"][key] for key in ("seed", "precision", "clip_norm")})
    return flat


def refuse_stranger(
    path: Path, saved: Mapping[str, Any], ours: Mapping[str, Any], *, extended: bool = False
) -> None:
    """CheckpointError that lists the differences, when the checkpoint is of another run.

    An `extended` run has its schedule planned anew, so that one may differ.
    """
    differences = [
        f"{key} = {saved.get(key)!r} there, {value!r} here"
        for key, value in ours.items()
        if saved.get(key) != value
        and key != "schedule.restart"
        and not (extended and key.startswith("schedule."))
    ]
    if differences:
        raise CheckpointError(
            f"{path}: a checkpoint of another run: {'; '.join(differences)}. "
            "--init-from takes its weights alone"
        )


def load_weights(path: Path, weights: Mapping[str, Tensor], into: Sequence[RoledParameter]) -> None:
    """Copy `weights` into the named tensors; CheckpointError when they are of another model."""
    ours = {parameter.name: tuple(parameter.tensor.shape) for parameter in into}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if ours != theirs:
        wrong = next(name for name in (*ours, *theirs) if ours.get(name) != theirs.get(name))
        raise CheckpointError(
            f"{path}: a checkpoint of another model: {wrong} has shape "
            f"{theirs.get(wrong, 'none')} there, {ours.get(wrong, 'none')} here"
        )
    with torch.no_grad():
        for parameter in into:
            parameter.tensor.copy_(weights[parameter.name])


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
