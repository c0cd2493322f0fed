"""The learning rates that trials will really be trained with, shown before a second is spent on them.

It must not know how a schedule is computed: the study's own command ([trainer] schedule) shows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from sweeper import starts
from sweeper.attempts import Begin, configuration
from sweeper.design.groups import plan_stage1
from sweeper.errors import StudyError
from sweeper.executors.local import NOT_FOR_TRAINERS
from sweeper.paths import Home, make_private
from sweeper.study import START_FROM, Start, Study
from sweeper.trial import PlannedTrial

LIMIT_S = 60.0


def of_starts(study: Study, home: Home, svg: Path | None = None) -> dict[str, str]:
    """For each start the schedule of the first planned trial that uses it, as the trainer shows it.

    Empty where the study has no starts, or no command that shows schedules. With `svg` a picture of
    each is drawn in that folder.

    Raises:
        StudyError: the command refuses a configuration, or fails.
    """
    if not study.trainer.schedule or not study.starts:
        return {}
    found: dict[str, str] = {}
    for trial in plan_stage1(study, {}).trials:
        name = str(trial.point[START_FROM])
        if name in found:
            continue
        start = study.starts[name]
        arguments, former = _arguments(study, home, trial, start)
        if arguments is None:
            found[name] = f"known when phase {start.phase} has run ([start.{name}] preview)"
            continue
        begin = Begin(start=name, steps=start.steps)
        config = configuration(study, trial, begin, target=study.objective.target)
        picture = None if svg is None else svg / f"{name}.svg"
        found[name] = show(study, config, arguments, former, picture)
    return found


def announce(study: Study, home: Home, say: Callable[[str], None]) -> None:
    """Before the first trial: one line for each start, and where its picture is."""
    folder = home.study(study.name) / "schedules"
    for name, text in of_starts(study, home, folder).items():
        say(f"schedule of {name}: {text.splitlines()[0]}; {folder / name}.svg")


def show(
    study: Study,
    config: Mapping[str, Any],
    arguments: Sequence[str],
    former: Mapping[str, Any] | None = None,
    svg: Path | None = None,
) -> str:
    """What the study's command says about the schedule of a configuration.

    `former` is the configuration of the phase before (`{phase}`).

    Raises:
        StudyError: it refuses, fails, or the picture cannot be drawn.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-schedule-") as folder:
        places = {"{python}": sys.executable, "{checkpoint}": ""}
        for name, values in (("config", config), ("phase", former or {})):
            path = Path(folder) / f"{name}.toml"
            path.write_text(tomli_w.dumps(values), encoding="utf-8")
            places[f"{{{name}}}"] = str(path)
        words = [_filled(word, places) for word in (*study.trainer.schedule, *arguments)]
        if svg is not None:
            make_private(svg.parent)
            words += ["--svg", str(svg.absolute())]
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                cwd=(study.folder / (study.trainer.cwd or ".")).resolve(),
                env={k: v for k, v in os.environ.items() if k not in NOT_FOR_TRAINERS},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StudyError(f"{study.name}: [trainer] schedule: {error}") from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        raise StudyError(
            f"{study.name}: the schedule cannot be shown: "
            + (said[0] if said else f"`{words[0]}` ended with {done.returncode}")
        )
    return done.stdout.rstrip()


def _arguments(
    study: Study, home: Home, trial: PlannedTrial, start: Start
) -> tuple[list[str] | None, Mapping[str, Any] | None]:
    """What is added to the command for a start, and its phase's configuration; None: not yet known."""
    if start.phase is None:
        path = "" if start.checkpoint is None else str((study.folder / start.checkpoint).resolve())
        return [word.replace("{checkpoint}", path) for word in start.arguments], None
    phase = starts.phase_trial(study, start.phase, trial.seed)
    former = configuration(study, phase, starts.phase_begin(study, start.phase), target=None)
    if start.preview is not None:
        return list(start.preview), former
    _, left = starts.left_by(study, home, phase.id)
    if left is not None:
        return [word.replace("{checkpoint}", str(left)) for word in start.arguments], former
    return None, former


def _filled(word: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word
