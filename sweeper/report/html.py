"""The report as one HTML file: no network, no script, dark and light, readable on a phone.

It must not know how any number was computed: it reads the report's document alone, and escapes all
of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from sweeper.analysis.wording import bracket, change, duration, metric_ratio, ratio, significant
from sweeper.report import claims
from sweeper.report import elements as el
from sweeper.report import html_answers as answers
from sweeper.report.drawing import Figure
from sweeper.report.lines import saved
from sweeper.space import show_value

Document = Mapping[str, Any]


def render(document: Document, figures: Sequence[Figure]) -> str:
    """The whole page; `figures` are those of the same document."""
    drawn = {figure.name: figure for figure in figures}
    parts = [
        _first_screen(document),
        answers.contents(document, drawn),
        answers.comparison(document),
        _decisions(document),
        answers.questions(document, drawn.get("questions")),
        answers.path(document, drawn.get("path")),
        el.section(drawn.get("curves")),
        el.section(drawn.get("ranking")),
        _steps(document, drawn.get("steps")),
        _ranking_table(document),
        el.section(drawn.get("plane")),
        _confirm(document, drawn.get("confirm")),
        _claims(document),
        _stage2(document, drawn.get("design"), drawn.get("effects")),
        answers.robustness(document, drawn.get("profile")),
        _targets(document),
        answers.devices(document, drawn.get("timeline"), drawn.get("drift")),
        _stages(document),
        answers.extensions(document),
        _failures(document),
        _reproduce(document),
    ]
    style = _part("report.css") + _part("figures.css")
    return Template(_part("page.html")).substitute(
        title=escape(f"{document['title'] or document['study']}: sweep report"),
        style=style,
        body="\n".join(part for part in parts if part),
    )


def standalone(figure: Figure) -> str:
    """A figure as an SVG file that carries its own colours."""
    # The page's own colours come first in its style sheet, up to the rule for every element.
    colours = _part("report.css").partition("* {")[0]
    style = f"<style>{colours}{_part('figures.css')}</style>"
    head, close, body = figure.wide.partition(">")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{close}{style}{body}\n'


def _part(name: str) -> str:
    return resources.files("sweeper.report").joinpath(name).read_text(encoding="utf-8")


# -- sections --------------------------------------------------------------------------------------


def _first_screen(document: Document) -> str:
    verdict = document["verdict"]
    name = document["title"] or document["study"]
    parts = [
        f'<p class="kicker">{escape(name)} · {el.date(document["generated_at"])}</p>',
        f"<h1>{el.words(verdict['sentence'])}</h1>",
    ]
    if document["exploratory"]:
        words = "Exploratory: the study was changed after its plan was frozen."
        parts.append(f'<p class="banner">{words}</p>')
    if document["banner"]:
        parts.append(f'<p class="banner">{el.words(document["banner"])}</p>')
    left = _winner(document)
    facts = _facts(document)
    if left:
        parts.append(f'<div class="first"><div>{left}</div>{facts}</div>')
    else:
        parts.append(facts)
    parts += [f"<p>{el.words(paragraph)}</p>" for paragraph in verdict["paragraphs"]
              if paragraph != document["banner"]]  # fmt: skip
    return "\n".join(parts)


def _winner(document: Document) -> str:
    winner = document["winner"]
    if winner is None:
        return ""
    rows = [
        (
            "changed" if row["changed"] else "",
            (
                escape(row["name"]).replace(".", ".<wbr>").replace("_", "_<wbr>"),
                escape(show_value(row["value"])),
                "" if row["baseline"] is None else escape(show_value(row["baseline"])),
            ),
        )
        for row in winner["configuration"]
    ]
    caption = "The winning configuration"
    columns = ("parameter", "winner", "baseline")
    table = el.table(caption, columns, rows, numbers=(1, 2), kind="config")
    use = el.pre(f"{winner['command']}\n", "Command that writes the whole configuration")
    toml = el.folded("The same as TOML", el.pre(winner["toml"], "The winning values as TOML"))
    return f'{table}<p class="note">Take it, whole, with its evidence:</p>{use}{toml}'


def _facts(document: Document) -> str:
    parts = []
    speedup, winner, cost = document["speedup"], document["winner"], document["cost"]
    if speedup:
        bound = "≥ " if speedup["at_least"] else ""
        metric = speedup["of"] == "metric"
        show = metric_ratio if metric else ratio
        how = bracket(speedup["low"], speedup["high"], show) or "single runs, not confirmed"
        sure = "" if speedup["decided"] or not speedup["confirmed"] else ", not decided"
        parts.append(
            f'<div><p class="big">{bound}{show(speedup["ratio"])}×</p>'
            f'<p class="note">{"lower" if metric else "faster"} than the baseline '
            f"{escape(how)}{sure}</p></div>"
        )
    if winner and document["goal"] == "final":
        parts.append(
            f'<div><p class="big plain">{significant(winner["final"], 5)}</p>'
            f'<p class="note">{escape(document["metric"])} at the end of the budget</p></div>'
        )
    elif winner:
        target = f"{document['metric']} {significant(document['target'], 6)}"
        parts.append(
            f'<div><p class="big plain">{duration(winner["time_to_target_s"])}</p>'
            f'<p class="note">to {escape(target)} ({escape(document["clock"])} clock)</p></div>'
        )
    saved = (
        f"; at most {duration(cost['saved_s'])} saved by stopping early and running no duplicate"
        if cost["saved_s"]
        else ""
    )
    parts.append(
        f'<div><p class="big plain">{duration(cost["train_s"])}</p>'
        f'<p class="note">of training in {cost["trials"]} trials{saved}</p></div>'
    )
    parts.append(answers.price(document["spent"]))
    return f'<div class="facts">{"".join(parts)}</div>'


def _decisions(document: Document) -> str:
    verdict, parts = document["verdict"], []
    for key, title in (
        ("decided", "Decided"),
        ("undecided", "Not decided"),
        ("missing", "Missing"),
    ):
        if verdict[key]:
            parts.append(f"<h3>{title}</h3>{el.items(verdict[key])}")
    if not parts:
        return ""
    heading = '<h2 id="h-decided">What is decided, and what is not</h2>'
    return f'<section aria-labelledby="h-decided">{heading}{"".join(parts)}</section>'


def _ranking_table(document: Document) -> str:
    rows = document["ranking"]
    if not rows:
        return ""
    winner = (document["winner"] or {}).get("point")
    final = document["goal"] == "final"
    cells = [
        (
            "winner-row" if row["point"] == winner else "" if row["place"] else "quiet",
            (
                escape(row["label"] + (" (suspect)" if row["suspect"] else "")),
                str(row["place"] or ""),
                *([el.optional(row["final"], 5)] if final else []),
                el.seconds(row),
                el.optional(row["steps_to_target"]),
                "" if row["ms_per_step"] is None else f"{row['ms_per_step']:.2f}",
                "" if row["best_loss"] is None else f"{row['best_loss']:.4f}",
                f"{row['reached_runs']}/{row['runs']}",
                escape(", ".join(row["reasons"])),
            ),
        )
        for row in rows
    ]
    columns = (
        "configuration", "place", *(["final"] if final else []), "time to target", "steps",
        "ms a step", "best", "reached", "ended by",
    )  # fmt: skip
    table = el.table(
        "Every configuration of stages 1 and 2", columns, cells, numbers=range(1, 7 + final)
    )
    doubts = "".join(f"<li>{escape(words)}</li>" for row in rows for words in row["suspect"])
    if doubts:
        table += f"<p>Suspect times:</p><ul>{doubts}</ul>"
    return el.folded(f"All {len(rows)} configurations as a table", table)


def _claims(document: Document) -> str:
    found = document["claims"]
    if not found:
        return ""
    rows = [("", tuple(map(escape, claims.cells(row)))) for row in found["rows"]]
    table = el.table(f"Claims: {escape(found['title'])}", claims.COLUMNS, rows)
    refuted = claims.refuted(found)
    said = f"<p>Contradictions:</p>{el.items(refuted)}" if refuted else ""
    return (
        '<section aria-labelledby="h-claims"><h2 id="h-claims">Claims</h2>'
        f'<p class="note">{escape(found["source"])}</p>{table}{said}</section>'
    )


def _steps(document: Document, figure: Figure | None) -> str:
    table = document["steps"]
    if not table:
        return ""
    names = [escape(f"{arm['label']} ({arm['role']})") for arm in table["arms"]]
    numbers = range(1, len(names) + 1)
    by_step = [
        (
            "",
            (
                str(row["step"]),
                *(
                    f"{significant(value, 5)} ({percent:+.1f} %)"
                    for value, percent in zip(row["values"], row["changes"], strict=True)
                ),
            ),
        )
        for row in table["rows"]
    ]
    levels = [
        (
            "",
            (
                significant(row["level"], 5),
                *("never" if s is None else f"{s:.0f}" for s in row["steps"]),
            ),
        )
        for row in table["levels"]
    ]
    caption = f"{escape(document['metric'])} at each evaluation, and against the first arm"
    detail = el.table(caption, ("step", *names), by_step, numbers=numbers)
    reached = el.table("Steps to each level", ("level", *names), levels, numbers=numbers)
    return el.section(figure) + el.folded("Every evaluation as a table", detail) + reached


def _confirm(document: Document, figure: Figure | None) -> str:
    found = document["confirm"]
    if not found:
        return ""
    final = document["goal"] == "final"
    show = metric_ratio if final else ratio
    what = str(document["metric"]) if final else "time"
    rows = []
    for contrast in found["contrasts"]:
        if contrast["time"] is None:
            continue
        time, learning, speed = contrast["time"], contrast["learning"], contrast["speed"]
        rows.append(
            (
                "",
                (
                    escape("baseline" if contrast["is_baseline"] else contrast["other_label"]),
                    f"{'≥ ' if contrast['at_least'] else ''}{show(time['ratio'])}",
                    escape(bracket(time["low"], time["high"], show)),
                    "" if learning is None else change(learning["ratio"]),
                    "" if speed is None else change(speed["ratio"]),
                    str(time["n"]),
                    "decided" if contrast["decided"] else "not decided",
                ),
            )
        )
    caption = f"{escape(what).capitalize()} over the leader's, within blocks"
    columns = (
        "other", f"{escape(what)} ratio", f"{100 * found['confidence']:.4g} % interval", "tokens",
        "time per token", "blocks", "verdict",
    )  # fmt: skip
    table = el.table(caption, columns, rows, numbers=range(1, 6))
    resolves = found["resolvable_ratio"]
    budget = (
        f"<p>At the spread seen here, the planned blocks separate configurations whose "
        f"{'metrics' if final else 'times'} differ by a factor of {show(resolves)} or more.</p>"
        if resolves
        else ""
    )
    return (
        '<section aria-labelledby="h-confirm"><h2 id="h-confirm">Confirm: pairs within blocks</h2>'
        f"{el.bare_figure(figure)}{table}{budget}</section>"
    )


def _stage2(document: Document, figure: Figure | None, effects: Figure | None) -> str:
    design = document["design"]
    if not design:
        return ""
    locked = [
        ("", (escape(name), escape(show_value(lock["value"])), escape(lock["why"])))
        for name, lock in design["locked"].items()
    ]
    varying = [
        (
            "",
            (
                escape(v["name"]),
                escape(", ".join(show_value(level) for level in v["levels"])),
                escape(", ".join(map(str, v["counts"]))),
            ),
        )
        for v in design["varying"]
    ]
    parts = ['<section aria-labelledby="h-design"><h2 id="h-design">The stage-2 design</h2>']
    parts.append(el.bare_figure(figure))
    if varying:
        parts.append(el.table("Varying", ("parameter", "levels", "runs at each"), varying))
    if locked:
        parts.append(el.table("Locked", ("parameter", "value", "why"), locked))
    if design["properties"]:
        parts.append(el.folded("Properties of the design", el.definitions(design["properties"])))
    if effects:
        parts.append(f"<h3>{escape(effects.title)}</h3>{el.bare_figure(effects)}")
        parts.append(answers.effects_table(document["effects"]))
    elif document["effects"] and document["effects"]["why_none"]:
        parts.append(f"<p>Effects are not decided: {escape(document['effects']['why_none'])}.</p>")
    if document["effects_elsewhere"]:
        parts.append(answers.effects_table(document["effects_elsewhere"]))
    if document["untested"]:
        parts.append(f"<p>{el.words(document['untested']['words'])}</p>")
    return "".join([*parts, "</section>"])


def _targets(document: Document) -> str:
    rows = [
        (
            "",
            (
                significant(row["target"], 6),
                f"{row['reached']} of {row['configurations']}",
                "" if row["time_to_target_s"] is None else duration(row["time_to_target_s"]),
                escape(row["fastest"] or ""),
            ),
        )
        for row in document["targets"]
    ]
    if len(rows) < 2:
        return ""
    columns = ("target", "reached", "fastest", "configuration")
    table = el.table("The same curves, read at other targets", columns, rows, numbers=(1, 2))
    return (
        '<section aria-labelledby="h-targets"><h2 id="h-targets">Other targets</h2>'
        f"{table}</section>"
    )


def _stages(document: Document) -> str:
    rows = [
        (
            "",
            (
                escape(stage["stage"] + ("" if stage["closed"] else " (open)")),
                *(
                    str(stage[key])
                    for key in (
                        "planned",
                        "distinct",
                        "reached",
                        "censored",
                        "failed",
                        "reused",
                        "missing",
                    )
                ),
                duration(stage["train_s"]),
                duration(stage["wall_s"]),
            ),
        )
        for stage in document["stages"]
    ]
    if not rows:
        return ""
    columns = (
        "stage", "planned", "distinct", "reached", "censored", "failed", "reused", "missing", "train",
        "wall",
    )  # fmt: skip
    table = el.table("What was planned, and what became of it", columns, rows, numbers=range(1, 10))
    if document["racing"]:
        table += el.folded("What each rule of racing did", _racing(document))
    return f'<section aria-labelledby="h-stages"><h2 id="h-stages">Stages</h2>{table}</section>'


def _racing(document: Document) -> str:
    rows = [
        (
            "" if rule["on"] else "quiet",
            (
                escape(rule["name"]),
                "on" if rule["on"] else "off",
                saved(rule["saved_s"]),
                escape(rule["words"]),
            ),
        )
        for rule in document["racing"]
    ]
    columns = ("rule", "switch", "saved, at most", "what it did")
    return el.table("Train seconds; below zero is what a rule cost", columns, rows, numbers=(2,))


def _failures(document: Document) -> str:
    rows = [
        ("", (escape(f["id"]), escape(f["label"]), escape(f["reason"]), escape(f["message"][:400])))
        for f in document["failures"]
    ]
    if not rows:
        return ""
    table = el.table("Failed trials", ("trial", "configuration", "reason", "message"), rows)
    heading = '<h2 id="h-failures">Failures</h2>'
    return f'<section aria-labelledby="h-failures">{heading}{table}</section>'


def _reproduce(document: Document) -> str:
    found = document["reproduce"]
    commands = el.pre("\n".join(found["commands"]) + "\n", "Commands that repeat this sweep")
    facts: dict[str, Any] = {
        **{
            f"hash of the definition, {stage}": value
            for stage, value in found["plan_hashes"].items()
        },
        "seed": found["seed"],
        **{f"frozen for every trial, {key}": value for key, value in found["frozen"].items()},
        **{f"version of {name}": version for name, version in found["versions"].items()},
    }
    for place, fingerprint in enumerate(found["fingerprints"], start=1):
        known = {key: "none" if value is None else value for key, value in fingerprint.items()}
        facts |= {f"fingerprint {place}, {key}": value for key, value in known.items()}
    for place, device in enumerate(found["devices"], start=1):
        facts |= {f"device {place}, {key}": value for key, value in device.items()}
    warning = (
        '<p class="banner">The trials ran under more than one fingerprint: their times are not '
        "strictly comparable.</p>"
        if len(found["fingerprints"]) > 1
        else ""
    )
    return (
        '<section aria-labelledby="h-again"><h2 id="h-again">How to reproduce</h2>'
        f"{warning}{commands}{el.definitions(facts)}</section>"
        "<footer>Every number here is in report.json beside this file.</footer>"
    )
