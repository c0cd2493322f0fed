"""Which study a command means: a path, the name of a built-in study, or the default; and why.

It must not know what is done with the study, or what its file says beyond loading it.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sweeper.errors import StudyError, StudyFileError
from sweeper.study import Study
from sweeper.study_file import FILE
from sweeper.study_file import load as load_file


@dataclass(frozen=True)
class Chosen:
    """A study's file, a name for people, and the reason why it was chosen."""

    name: str
    path: Path
    why: str


def names() -> list[str]:
    """Names of the built-in studies."""
    folder = _built_in_folder()
    return sorted(item.name for item in folder.iterdir() if (item / FILE).is_file())


def choose(study: str | None) -> Chosen:
    """The study that the command line or the environment names, else the default.

    A path to a study file or its folder comes before a built-in study of the same name. Without
    any name: SWEEP_STUDY, else ./study.toml, else `ngpt` where a CUDA device and its data are, else
    `quickstart`.

    Raises:
        StudyError: neither a path nor a built-in study.
    """
    if study:
        return _named(study, "given on the command line")
    if named := os.environ.get("SWEEP_STUDY"):
        return _named(named, "SWEEP_STUDY names it")
    if Path(FILE).is_file():
        return Chosen(Path.cwd().name, Path(FILE), f"./{FILE} is here")
    if _has_cuda_device() and (missing := _missing_data("ngpt")) is None:
        why = "built-in; a CUDA device and its data are here"
        return Chosen("ngpt", _built_in("ngpt"), why)
    if not _has_cuda_device():
        why = "built-in default; there is no CUDA device here"
    else:
        why = f"built-in default; there is no {missing} for ngpt"
    return Chosen("quickstart", _built_in("quickstart"), why)


def is_study(named: str) -> bool:
    """Whether it is a path to a study or the name of a built-in one."""
    return _found(named) is not None


def load(chosen: Chosen, *, scale: str | None = None) -> Study:
    """The chosen study, parsed.

    Raises:
        StudyFileError: something in the file is wrong.
    """
    return load_file(chosen.path, scale=scale)


def _named(study: str, why: str) -> Chosen:
    if (found := _found(study)) is not None:
        return Chosen(found.name, found.path, f"{why}: {found.why}")
    known = names()
    if Path(study).expanduser().is_dir():
        raise StudyError(f"study {study!r}: the folder has no {FILE}; `sweep init` makes one")
    close = difflib.get_close_matches(study, known, n=1, cutoff=0.5)
    near = f"; the nearest known is {close[0]!r}" if close else ""
    raise StudyError(
        f"study {study!r}: neither a file, nor a folder with a {FILE}, nor a built-in study{near}; "
        f"built-in: {', '.join(known)}"
    )


def _found(study: str) -> Chosen | None:
    path = Path(study).expanduser()
    if path.is_dir() and (path / FILE).is_file():
        return Chosen(path.resolve().name, path / FILE, "a folder")
    if path.is_file():
        return Chosen(path.resolve().parent.name, path, "a file")
    if study in names():
        return Chosen(study, _built_in(study), "a built-in study")
    return None


def _built_in_folder() -> Path:
    return Path(str(resources.files("studies")))


def _built_in(name: str) -> Path:
    return _built_in_folder() / name / FILE


def _has_cuda_device() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _missing_data(name: str) -> Path | None:
    """The data path of a built-in study's base configuration, when nothing is there."""
    try:
        study = load_file(_built_in(name))
    except StudyFileError:
        return _built_in(name)
    data = study.base.get("data", {}).get("path")
    path = study.folder / str(data)
    return None if data is not None and path.exists() else path
