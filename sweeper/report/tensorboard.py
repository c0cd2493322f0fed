"""Exported trials as TensorBoard runs: their curves as scalars, their points for the HParams page.

It must not know databases: it reads the documents of `export --trials`. The extra is `tensorboard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.errors import EnvironmentUnusable

TIME = "time_to_target_s"
MISSED = "censored_at_s"


More = Callable[[Mapping[str, Any]], Iterable[tuple[str, float, int, float]]]
"""Further points of an attempt's document: tag, value, step, seconds of training."""


def write_runs(
    documents: Sequence[Mapping[str, Any]], metric: str, folder: Path, more: More | None = None
) -> int:
    """One run folder per attempt under `folder`, as STAGE/TRIAL(-ATTEMPT); says how many.

    Scalars: the metric by step, and by milliseconds of training. A bound is a scalar of its own
    (`censored_at_s`), never a time.

    Raises:
        EnvironmentUnusable: the extra is not installed, or the folder cannot be written or has runs.
    """
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415
    except ImportError:
        raise EnvironmentUnusable(
            "export --format tensorboard needs the extra: in the clone, pip install -e '.[tensorboard]'"
        ) from None
    if folder.exists() and any(folder.iterdir()):
        raise EnvironmentUnusable(f"--out {folder}: is not empty; choose another folder")
    for document in documents:
        again = "" if document["attempt"] == 1 else f"-{document['attempt']}"
        place = folder / document["stage"] / f"{document['id']}{again}"
        try:
            writer = EventFileWriter(str(place))
        except OSError as error:
            raise EnvironmentUnusable(f"--out {folder}: {error.strerror}; choose another") from None
        for event in _events(document, metric, more(document) if more else ()):
            writer.add_event(event)
        writer.close()
    return len(documents)


def _events(
    document: Mapping[str, Any], metric: str, more: Iterable[tuple[str, float, int, float]]
) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

    began = document["started_at"]
    found = [Event(wall_time=began, step=0, summary=_start(document))]

    def scalar(tag: str, value: float, step: int, seconds: float) -> Any:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        return Event(wall_time=began + seconds, step=step, summary=summary)

    points = [(s, step, value) for s, step, _, value in document["curve"] if value is not None]
    found += [scalar(f"{metric}/by_step", value, step, s) for s, step, value in points]
    found += [scalar(f"{metric}/by_train_ms", v, round(1000 * s), s) for s, _, v in points]
    found += [scalar(tag, value, step, seconds) for tag, value, step, seconds in more]
    for tag in (TIME, MISSED):
        if document[tag] is not None:
            found.append(scalar(tag, document[tag], 0, document["wall_s"]))
    end = began + document["wall_s"]
    return [*found, Event(wall_time=end, step=0, summary=_end(document, end))]


def _start(document: Mapping[str, Any]) -> Any:
    """The attempt's point as hyperparameters."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import (  # noqa: PLC0415
        HParamsPluginData,
        SessionStartInfo,
    )

    info = SessionStartInfo(
        group_name=str(document["label"]), start_time_secs=document["started_at"]
    )
    for name, value in document["point"].items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, str):
            info.hparams[name].string_value = value
        else:
            info.hparams[name].number_value = value
    return _plugin("_hparams_/session_start_info", HParamsPluginData(session_start_info=info))


def _end(document: Mapping[str, Any], at: float) -> Any:
    from tensorboard.plugins.hparams.api_pb2 import Status  # noqa: PLC0415
    from tensorboard.plugins.hparams.plugin_data_pb2 import (  # noqa: PLC0415
        HParamsPluginData,
        SessionEndInfo,
    )

    good = document["outcome"] in ("reached", "censored")
    status = Status.Value("STATUS_SUCCESS" if good else "STATUS_FAILURE")
    info = SessionEndInfo(status=status, end_time_secs=at)
    return _plugin("_hparams_/session_end_info", HParamsPluginData(session_end_info=info))


def _plugin(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
    from tensorboard.plugins.hparams import metadata  # noqa: PLC0415

    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])
