"""Tables for a terminal, from the plain documents that `--json` prints.

It must not know how any number was computed; import it late, because rich is not free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweeper.analysis.wording import bracket, duration, metric_ratio, ratio, rough, significant
from sweeper.report.lines import plain, summary_lines
from sweeper.space import show_value
from sweeper.trial import Outcome

MOST_NEAR_MISSES = 3
"""Near misses of an attempt that are named one by one; a loss may hover around its target."""


def summary_table(summary: Mapping[str, Any]) -> Group:
    """The end of a stage: what was counted, and the top as a table."""
    heading = Text(plain(summary_lines(summary)[0]), style="bold")
    parts: list[RenderableType] = [heading]
    final = summary["goal"] == "final"
    if summary["top"]:
        table = _table()
        score = "final metric" if final else "time to target"
        for name in ("", "trial", "configuration", score, "steps", "ms a step"):
            table.add_column(
                name, justify="left" if name in ("trial", "configuration") else "right"
            )
        for place, row in enumerate(summary["top"], start=1):
            speed = row["seconds_per_step"]
            table.add_row(
                str(place),
                Text(plain(row["id"])),
                Text(plain(row["label"])),
                _optional(row["final"], 5) if final else duration(row["time_to_target_s"]),
                _optional(row["steps_to_target"], 0),
                _optional(None if speed is None else 1000 * speed, 2),
            )
        parts.append(table)
    else:
        parts += [Text(line) for line in summary_lines(summary)[1:]]
    for failure in summary.get("failures", ()):
        words = f"{failure['id']} failed ({failure['reason']}): {failure['label']}"
        parts.append(Text(plain(words), style="red"))
    return Group(*parts)


def status_table(document: Mapping[str, Any]) -> Group:
    """`status --json` for people."""
    table = _table()
    names = ("planned", "done", "running", "reached", "censored", "failed")
    table.add_column("stage")
    for name in names:
        table.add_column(name, justify="right")
    for stage in document["stages"]:
        table.add_row(stage["stage"], *(str(stage.get(name, 0)) for name in names))
    parts: list[RenderableType] = [table]
    for stage in document["stages"]:
        declared, now = stage["target"], stage["effective_target"]
        if now != declared:
            parts.append(
                Text(
                    f"{stage['stage']} is judged at {significant(now, 5)} instead of "
                    f"{significant(declared, 5)}; the columns count how each trial ended, at the "
                    "target that it had"
                )
            )
    incumbent = document.get("incumbent")
    if incumbent:
        time, final = incumbent.get("time_to_target_s"), incumbent.get("final")
        took = f": {duration(time)}" if time is not None else ""
        name = "fastest" if final is None else "best"
        took = took if final is None else f": {significant(final, 5)}"
        parts.append(Text(f"{name} single run so far: {plain(str(incumbent['label']))}{took}"))
    if document.get("eta_s") is not None:
        parts.append(Text(f"about {rough(document['eta_s'])} left"))
    parts += _validity(document.get("validity"))
    return Group(*parts)


def _validity(found: Mapping[str, Any] | None) -> list[RenderableType]:
    """What the validity gate rejected or doubts, in one line; nothing where there is nothing."""
    if not found or not (found["rejected"] or found["suspect"]):
        return []
    numbers = [f"{found[key]} {key}" for key in ("rejected", "suspect") if found[key]]
    words = f"validity gate: {', '.join(numbers)}"
    if (most := found["commonest"]) is not None:
        words += f"; {most['attempts']} for the commonest reason, for example {most['trial']}: "
        words += most["words"]
    lines = [words, *([found["banner"]] if found["banner"] else [])]
    return [Text(plain(line), style="yellow") for line in lines]


def plan_table(document: Mapping[str, Any]) -> Group:
    """`plan --json` for people: every point, what is locked, varied and still open, the design."""
    parts: list[RenderableType] = [
        Text(
            f"{document['study']} {document['stage']}: {document['entries']} entries, "
            f"{document['distinct']} distinct, target {significant(document['target'], 6)}",
            style="bold",
        )
    ]
    assumed = document.get("open") or {}
    points = document["points"]
    constant = _constant(points)
    table = _table()
    table.add_column("trial", no_wrap=True)
    table.add_column("groups")
    names = [n for n in _names(points) if n not in constant]
    for name in names:
        table.add_column(_tail(name), justify="right")
    table.add_column("", justify="left")
    for point in points:
        cells = []
        for name in names:
            value = point["point"].get(name)
            mark = "?" if name in point.get("open", ()) else ""
            cells.append(Text("" if value is None else show_value(value) + mark))
        repeats = f"= {point['replicate_of']}" if point.get("replicate_of") else ""
        table.add_row(
            Text(point["id"]), Text(" ".join(point["groups"])), *cells, Text(repeats, style="dim")
        )
    parts.append(table)
    if constant:
        same = " ".join(f"{_tail(n)}={show_value(v)}" for n, v in constant.items())
        parts.append(Text(f"the same everywhere: {plain(same)}"))
    for name, value in assumed.items():
        words = f"open: {name}, assumed {show_value(value)} until its group has a winner"
        parts.append(Text(words, style="yellow"))
    for group, before in (document.get("depends_on") or {}).items():
        parts.append(Text(f"group {group} waits for group {before}"))
    for name, lock in (document.get("locked") or {}).items():
        parts.append(Text(f"locked: {name} = {show_value(lock['value'])}: {plain(lock['why'])}"))
    for name, levels in (document.get("varying") or {}).items():
        parts.append(Text(f"varies: {name} in {', '.join(map(show_value, levels))}"))
    design = document.get("design") or {}
    if design:
        shown = ", ".join(f"{key} {_short(v)}" for key, v in design.items() if _is_short(v))
        parts.append(Text(f"design: {plain(shown)}"))
    parts += [Text(plain(note), style="yellow") for note in document.get("notes") or ()]
    forecast = document.get("forecast") or {}
    if forecast.get("total_s") is not None:
        parts.append(Text(f"forecast: about {rough(forecast['total_s'])}"))
    return Group(*parts)


def show_trial(document: Mapping[str, Any]) -> Group:
    """`show --json` for people: configuration, how each attempt ended, the last one's curve."""
    from sweeper.report.live import sparkline  # noqa: PLC0415 - the live view is not for `status`

    title = (
        f"{document['study']} {document['stage']} {document['id']}: {document['label']} "
        f"(seed {document['seed']})"
    )
    parts: list[RenderableType] = [Text(plain(title), style="bold")]
    table = _table()
    table.add_column("parameter")
    table.add_column("value", justify="right")
    for name, value in document["point"].items():
        table.add_row(Text(name), Text(show_value(value)))
    parts.append(table)
    attempts = document["attempts"]
    parts += [_attempt(record) for record in attempts] or [Text("no attempt has ended yet")]
    curve = [row for row in attempts[-1]["curve"] if row[3] is not None] if attempts else []
    if curve:
        parts.append(Text(sparkline([row[3] for row in curve], 60), style="magenta"))
        rows = _table()
        for name in ("train s", "step", "tokens", "value"):
            rows.add_column(name, justify="right")
        for train_s, step, tokens, value in _thinned(curve, 20):
            rows.add_row(f"{train_s:.2f}", str(step), str(tokens), _five_digits(value))
        parts.append(rows)
    return Group(*parts)


def verdict_view(document: Mapping[str, Any]) -> Group:
    """The end of a sweep: the report's first screen (`report.json`) for a terminal."""
    verdict = document["verdict"]
    parts: list[RenderableType] = [Text(plain(verdict["sentence"]), style="bold")]
    winner = document.get("winner")
    if winner:
        table = _table()
        table.add_column("parameter")
        table.add_column("winner", justify="right")
        table.add_column("baseline", justify="right", style="dim")
        for row in winner["configuration"]:
            table.add_row(Text(row["name"]), _value(row["value"]), _value(row["baseline"]))
        parts.append(table)
    speedup = document.get("speedup")
    if speedup:
        metric = speedup["of"] == "metric"
        show = metric_ratio if metric else ratio
        interval = bracket(speedup["low"], speedup["high"], show)
        name = "the baseline's metric over the winner's" if metric else "speed-up over the baseline"
        parts.append(Text(f"{name}: {show(speedup['ratio'])}x {interval}"))
    parts += [Text(f"not decided: {plain(line)}", style="yellow") for line in verdict["undecided"]]
    return Group(*parts)


def _attempt(record: Mapping[str, Any]) -> Text:
    time, stopped = record["time_to_target_s"], record["censored_at_s"]
    target = significant(record["target"], 5)
    words = f"attempt {record.get('attempt', 1)}: {record['outcome']} ({record['reason']})"
    # the stage's target may have become an easier or a harder one since the attempt ended
    if time is not None:
        now = "" if record["outcome"] == Outcome.REACHED else f", but reached {target}"
        words += f"{now} in {duration(time)}"
    elif stopped is not None:
        now = "" if record["outcome"] == Outcome.CENSORED else f", but did not reach {target}"
        words += f"{now} after {duration(stopped)}"
    if record["best_loss"] is not None:
        words += f", best {significant(record['best_loss'], 5)}"
    phases = ", ".join(f"{k} {duration(v)}" for k, v in record["phases"].items() if v)
    message = f"\n  {plain(record['message'])}" if record.get("message") else ""
    judged = record.get("verdict") or {"verdict": "valid", "reasons": [], "next": None}
    fresh = [r for r in judged["reasons"] if r not in (record.get("message") or "")]
    said = f"\n  {judged['verdict']}: {plain('; '.join(fresh))}" if fresh else ""
    if judged["next"]:
        said += f"\n  validity gate: {plain(judged['next'])}"
    missed = record.get("near_misses", ())
    for _, step, probe, confirmation in missed[:MOST_NEAR_MISSES]:
        larger = "no number" if confirmation is None else significant(confirmation, 5)
        said += (
            f"\n  near miss of target {target} at step {step}: {significant(probe, 5)} on the probe, "
            f"but {larger} on the larger (confirmation) slice: it does not count"
        )
    if (more := len(missed) - MOST_NEAR_MISSES) > 0:
        said += f"\n  {more} more near {'miss' if more == 1 else 'misses'}: see --json"
    return Text(f"{words}; {record['steps']} steps; {phases}{message}{said}")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)


def _optional(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _value(value: Any) -> Text:
    return Text("" if value is None else plain(show_value(value)))


def _tail(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _five_digits(value: float) -> str:
    """Five digits, zeros at the end included: a column of losses stands in line."""
    text = f"{value:#.5g}"
    return significant(value, 5) if "e" in text else text.rstrip(".")


def _names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point["point"]))


def _constant(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {}
    for name in _names(points):
        values = [point["point"].get(name) for point in points]
        if len(points) > 1 and values[0] is not None and all(v == values[0] for v in values):
            found[name] = values[0]
    return found


def _is_short(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) and len(str(value)) < 40


def _short(value: Any) -> str:
    return significant(value) if isinstance(value, float) else str(value)


def _thinned(rows: Sequence[Any], most: int) -> Sequence[Any]:
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
