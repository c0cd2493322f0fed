"""Optuna behind the search seam: one Optuna study per stage and effective target, built from our facts.

The only module that imports Optuna. It must not know processes, limits or targets.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from sweeper.errors import DatabaseGone, DatabaseUnusable
from sweeper.search.base import Known, Seen, Suggest, Told
from sweeper.space import NUMERIC, Categorical, Float, Integer, Parameter, Point, Space, Value

# Any number will do that nobody else takes for an advisory lock in this database.
_LOCK = 0x5357_4545_5002
KEY = "sweep:attempt"  # the attribute that makes every call idempotent
TWICE = "sweep:twice"  # the key of a trial that was made twice: see OptunaSearch
_STATES: dict[TrialState, Literal["running", "complete", "failed"]] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
}


def distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of a parameter; a stepped integer on a log scale becomes linear."""
    if isinstance(parameter, Float):
        return FloatDistribution(parameter.low, parameter.high, log=parameter.scale == "log")
    if isinstance(parameter, Integer):
        log = parameter.scale == "log" and parameter.step == 1
        high = parameter.low + (parameter.high - parameter.low) // parameter.step * parameter.step
        return IntDistribution(parameter.low, high, log=log, step=parameter.step)
    if isinstance(parameter, Categorical):
        return CategoricalDistribution(parameter.choices)
    return CategoricalDistribution(parameter.choices)


class OptunaStorage:
    """Optuna's tables in the database at `url` (public schema); open once per process.

    `artifacts` is the folder for files that the dashboard shows beside a trial; without it none are
    kept.

    Raises:
        DatabaseUnusable: the tables cannot be created or read; the message holds no password.
        DatabaseGone: they cannot now.
    """

    def __init__(self, url: str, artifacts: Path | None = None) -> None:
        self._artifacts = artifacts
        logging.getLogger("optuna").setLevel(logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            with _alone(url):
                self._storage = RDBStorage(
                    url,
                    # without pre-ping the first report after a dropped connection is lost
                    engine_kwargs={"pool_pre_ping": True, "pool_size": 2, "max_overflow": 2},
                )
        except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
            gone = isinstance(error, sqlalchemy.exc.OperationalError)
            raise (DatabaseGone if gone else DatabaseUnusable)(
                f"Optuna's tables cannot be opened ({type(error).__name__}); see `sweep db status`"
            ) from None
        self._trouble = _Trouble()
        sqlalchemy.event.listen(self._storage.engine, "handle_error", self._trouble.note)

    @property
    def raw(self) -> RDBStorage:
        """Optuna's own storage object, for the dashboard."""
        return self._storage

    @staticmethod
    def artifact_store(folder: Path | None) -> Any:
        """Optuna's store of a folder, for the dashboard; None where there is none."""
        if folder is None or not folder.is_dir():
            return None
        from optuna.artifacts import FileSystemArtifactStore  # noqa: PLC0415

        return FileSystemArtifactStore(folder)

    def open(self, name: str, space: Space, notes: Mapping[str, Any]) -> OptunaSearch:
        """The Optuna study of that name, created when missing; minimises seconds (or the metric)."""
        with _translated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(
                storage=self._storage, study_name=name, direction="minimize", load_if_exists=True
            )
            for key, value in notes.items():
                if study.user_attrs.get(key) != value:
                    study.set_user_attr(key, value)
            if study.metric_names is None and notes.get("shows"):
                study.set_metric_names([notes["shows"]])
            return OptunaSearch(study, space, self._trouble, self._artifacts)

    def names(self) -> list[str]:
        """Names of all Optuna studies here."""
        with _translated():
            return [s.study_name for s in self._storage.get_all_studies()]

    def delete(self, name: str) -> None:
        """Remove an Optuna study (it can be rebuilt from our tables); a missing one is fine."""
        for study in self._storage.get_all_studies():
            if study.study_name == name:
                self._storage.delete_study(study._study_id)  # noqa: SLF001 - Optuna names no public id

    def close(self) -> None:
        """Close the connections of this thread."""
        self._storage.remove_session()
        self._storage.engine.dispose()


class _Trouble:
    """Remembers that a statement failed: also where Optuna tried again and then said nothing."""

    def __init__(self) -> None:
        self.seen = False

    def note(self, context: object) -> None:  # noqa: ARG002 - SQLAlchemy's event
        self.seen = True


class OptunaSearch:
    """One Optuna study. Trials are found again by their attempt key, so every call is idempotent.

    Where the answer to a COMMIT is lost, Optuna makes the trial once more. Whenever there was trouble,
    and when a study is opened, all but one of a key's trials become failed ones without a key.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        trouble: _Trouble,
        artifacts: Path | None = None,
    ) -> None:
        self._study = study
        self._artifacts = artifacts
        self._storage = study._storage  # noqa: SLF001 - create_new_trial is one commit, ask is eleven
        self._study_id = study._study_id  # noqa: SLF001
        self._distributions = {n: distribution(p) for n, p in space.parameters.items()}
        self._known: dict[str, tuple[int, TrialState]] = {}
        self._trouble = trouble
        self._look_again()

    def ask(self, trial_id: str, point: Point, attributes: Mapping[str, Any]) -> None:
        """Register a planned point as running, in one commit.

        Raises:
            DatabaseGone: the database went away; asking again later is safe.
        """
        if self._trouble.seen:
            self._look_again()
        if trial_id in self._known:
            return
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(point),
            distributions={name: self._distributions[name] for name in point},
            user_attrs={KEY: trial_id, **attributes},
        )
        with _translated():
            number = self._storage.create_new_trial(self._study_id, template_trial=template)
        self._known[trial_id] = (number, TrialState.RUNNING)
        if self._trouble.seen:
            self._look_again()

    def tell(self, trial_id: str, told: Told) -> None:
        """Finish a trial: attributes and constraint first, since a finished trial refuses them.

        Raises:
            KeyError: the trial was never asked for.
            DatabaseGone: the database went away; telling again later is safe.
        """
        number, state = self._known[trial_id]
        if state.is_finished():
            return
        end = TrialState.FAIL if told.value is None else TrialState.COMPLETE
        # finished already: it was told before, and the answer was lost
        with _translated(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            # the list form is the one that the dashboard shows; Optuna itself reads both
            attributes = {"constraints": [told.violation]}
            for key, value in attributes.items():
                self._storage.set_trial_system_attr(number, key, value)
            for key, value in told.attributes.items():
                self._storage.set_trial_user_attr(number, key, value)
            for milliseconds, loss in told.curve:
                self._storage.set_trial_intermediate_value(number, milliseconds, loss)
            self._attach(number, told)
            values = None if told.value is None else [told.value]
            self._storage.set_trial_state_values(number, end, values)
        self._known[trial_id] = (number, end)

    def _attach(self, number: int, told: Told) -> None:
        """Files beside the trial, before it is told: a finished trial refuses them."""
        if self._artifacts is None:
            return
        from optuna.artifacts import (  # noqa: PLC0415 - only a sweep that keeps files needs it
            FileSystemArtifactStore,
            get_all_artifact_meta,
            upload_artifact,
        )

        trial = self._storage.get_trial(number)
        there = {m.filename for m in get_all_artifact_meta(trial, storage=self._storage)}
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory() as folder:
            self._artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
            store = FileSystemArtifactStore(self._artifacts)
            for name, text in told.artifacts().items():
                if name not in there:
                    path = Path(folder) / name
                    path.write_text(text, encoding="utf-8")
                    upload_artifact(
                        artifact_store=store, file_path=str(path), study_or_trial=trial,
                        storage=self._storage, mimetype="text/plain",
                    )  # fmt: skip

    def describe(self, note: str, plots: Mapping[str, Mapping[str, Any]]) -> None:
        """A note and custom plots on the dashboard's pages; again replaces what was there.

        Raises:
            DatabaseGone: the database went away; describing again later is safe.
        """
        with _translated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna_dashboard  # noqa: PLC0415 - a second of imports that only this needs

            optuna_dashboard.save_note(self._study, note)
            for name, figure in plots.items():
                optuna_dashboard.save_plotly_graph_object(
                    self._study, _Plot(figure), graph_object_id=name
                )

    def known(self) -> Mapping[str, Known]:
        """Every trial by its attempt key, as the database has it now."""
        with _translated():
            trials = self._study.get_trials(deepcopy=False)
        return {
            t.user_attrs[KEY]: Known(_STATES.get(t.state, "failed"), t.value)
            for t in trials
            if t.user_attrs.get(KEY) is not None
        }

    def _look_again(self) -> None:
        """Know what is there; of a key's trials the first finished one stays, else the first."""
        self._trouble.seen = False
        try:
            with _translated():
                trials = self._study.get_trials(deepcopy=False)
                known: dict[str, tuple[int, TrialState]] = {}
                for trial in sorted(trials, key=lambda t: not t.state.is_finished()):
                    key, number = trial.user_attrs.get(KEY), trial._trial_id  # noqa: SLF001
                    if (
                        key is not None
                        and known.setdefault(key, (number, trial.state))[0] != number
                    ):
                        self._forget(number, key)
        except DatabaseGone:
            self._trouble.seen = True
            raise
        self._known = known

    def _forget(self, number: int, key: str) -> None:
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._storage.set_trial_user_attr(number, TWICE, key)
            self._storage.set_trial_user_attr(number, KEY, None)
            self._storage.set_trial_state_values(number, TrialState.FAIL)


@dataclass(frozen=True)
class _Plot:
    """What the dashboard asks of a plotly figure, without plotly."""

    figure: Mapping[str, Any]

    def to_json(self) -> str:
        """The figure as plotly's JSON."""
        return json.dumps(self.figure, allow_nan=False)


@contextlib.contextmanager
def _alone(url: str) -> Iterator[None]:
    """One process at a time: Optuna creates its tables without a thought for others that do."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, hide_parameters=True)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SET lock_timeout = '60s'"))
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        yield  # closing the connection gives the lock back


def sampler(strategy: Literal["tpe", "gp"], space: Space) -> Suggest:
    """Optuna's TPE (multivariate) or Gaussian process as a function of what was seen.

    Times are seen as logarithms. A censored trial has its bound and a violated constraint, so it ranks
    after everything that reached; trials outside the region are left out, because Optuna refuses them.
    """

    def suggest(
        varying: Mapping[str, Sequence[Value]], seen: Sequence[Seen], seed: int
    ) -> Mapping[str, Value]:
        logging.getLogger("optuna").setLevel(logging.WARNING)
        distributions = {n: _within(space.parameters[n], v) for n, v in varying.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen: optuna.samplers.BaseSampler = (
                optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5)
                if strategy == "tpe"
                else optuna.samplers.GPSampler(seed=seed, n_startup_trials=5)
            )
            study = optuna.create_study(sampler=chosen, direction="minimize")
            study.add_trials([t for one in seen for t in _trials(one, distributions)])
            return dict(study.ask(distributions).params)

    return suggest


def _within(parameter: Parameter, levels: Sequence[Value]) -> BaseDistribution:
    """The distribution of a parameter on the range (or the choice) of some of its levels."""
    if not isinstance(parameter, NUMERIC):
        return CategoricalDistribution(list(levels))
    low, high = min(levels), max(levels)
    if isinstance(parameter, Float):
        return FloatDistribution(float(low), float(high), log=parameter.scale == "log")
    log = parameter.scale == "log" and parameter.step == 1
    return IntDistribution(int(low), int(high), log=log, step=parameter.step)


def _trials(
    seen: Seen, distributions: Mapping[str, BaseDistribution]
) -> Iterator[optuna.trial.FrozenTrial]:
    """The trial as Optuna wants it; none where its point is outside, or it failed."""
    point = {name: seen.point.get(name) for name in distributions}
    for name, value in point.items():
        kind = distributions[name]
        inside = (
            value in kind.choices
            if isinstance(kind, CategoricalDistribution)
            else value is not None and kind._contains(kind.to_internal_repr(value))  # noqa: SLF001 - no public form
        )
        if not inside:
            return
    if seen.told is None:
        yield create_trial(
            state=TrialState.RUNNING, params=point, distributions=dict(distributions)
        )
    elif seen.told.value is not None:
        yield create_trial(
            value=math.log(max(seen.told.value, 1e-9)),
            params=point,
            distributions=dict(distributions),
            constraints={"loss": seen.told.violation},
        )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Optuna's and SQLAlchemy's failures become ours, without the URL that they may quote."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise DatabaseGone(
            "the database stopped answering while Optuna's tables were written "
            f"({type(error).__name__})"
        ) from None
