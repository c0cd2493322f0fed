"""The report as one HTML file: no network, no script, dark and light, readable on a phone.

It must not know how any number was computed: it reads the report's document alone, and escapes all
of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from sweeper.analysis.wording import bracket, change, duration, ratio, significant
from sweeper.report.figures import Figure
from sweeper.report.lines import saved
from sweeper.space import show_value

Document = Mapping[str, Any]


def render(document: Document, figures: Sequence[Figure]) -> str:
    """The whole page; `figures` are those of the same document."""
    drawn = {figure.name: figure for figure in figures}
    parts = [
        _first_screen(document),
        _decisions(document),
        _figure(drawn.get("curves")),
        _figure(drawn.get("ranking")),
        _ranking_table(document),
        _confirm(document, drawn.get("confirm")),
        _stage2(document, drawn.get("design"), drawn.get("effects")),
        _targets(document),
        _stages(document),
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


# -- pieces ----------------------------------------------------------------------------------------


def _table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    numbers: Sequence[int] = (),
    kind: str = "",
) -> str:
    """A table in a region that a keyboard can scroll. `rows` pair a class with already escaped
    cells; `numbers` are the columns that are set flush right.
    """
    side = [' class="n"' if place in numbers else "" for place in range(len(columns))]
    head = "".join(
        f'<th scope="col"{side[i]}>{escape(name)}</th>' for i, name in enumerate(columns)
    )
    body = []
    for row_kind, cells in rows:
        shown = [f'<th scope="row"{side[0]}>{cells[0]}</th>']
        shown += [f"<td{side[i]}>{cell}</td>" for i, cell in enumerate(cells[1:], start=1)]
        body.append(f'<tr class="{row_kind}">{"".join(shown)}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return (
        f'<section aria-labelledby="h-{figure.name}"><h2 id="h-{figure.name}">'
        f"{escape(figure.title)}</h2>{_bare_figure(figure)}</section>"
    )


def _bare_figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return (
        f'<figure><div class="wide">{figure.wide}</div><div class="narrow">{figure.narrow}</div>'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _words(words: str) -> str:
    """Escaped prose in which a number keeps its unit, and an interval its ends, on one line."""
    kept = re.sub(r"(?<=\d) (?=(?:s|min|h|%)(?![A-Za-z]))", "\u00a0", words)
    kept = re.sub(r"\[[-+0-9.%, \u00a0]+\]", lambda found: found[0].replace(" ", "\u00a0"), kept)
    return escape(kept)


def _date(instant: str | None) -> str:
    return escape(f"{instant[:10]} {instant[11:16]} UTC" if instant else "")


def _items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_words(line)}</li>" for line in lines) + "</ul>"


def _pre(words: str, label: str) -> str:
    return f'<pre tabindex="0" aria-label="{escape(label)}"><code>{escape(words)}</code></pre>'


def _optional(value: float | None, digits: int = 4) -> str:
    return "" if value is None else significant(value, digits)


def _seconds(row: Mapping[str, Any]) -> str:
    if row["reached"]:
        return duration(row["time_to_target_s"])
    return f"&gt; {duration(row['censored_at_s'])}"


# -- sections --------------------------------------------------------------------------------------


def _first_screen(document: Document) -> str:
    verdict = document["verdict"]
    name = document["title"] or document["study"]
    parts = [
        f'<p class="kicker">{escape(name)} · {_date(document["generated_at"])}</p>',
        f"<h1>{_words(verdict['sentence'])}</h1>",
    ]
    if document["exploratory"]:
        words = "Exploratory: the study was changed after its plan was frozen."
        parts.append(f'<p class="banner">{words}</p>')
    if document["banner"]:
        parts.append(f'<p class="banner">{_words(document["banner"])}</p>')
    left = _winner(document)
    facts = _facts(document)
    if left:
        parts.append(f'<div class="first"><div>{left}</div>{facts}</div>')
    else:
        parts.append(facts)
    parts += [f"<p>{_words(paragraph)}</p>" for paragraph in verdict["paragraphs"]
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
    table = _table(caption, columns, rows, numbers=(1, 2), kind="config")
    use = _pre(f"{winner['command']}\n", "Command that writes the whole configuration")
    toml = _folded("The same as TOML", _pre(winner["toml"], "The winning values as TOML"))
    return f'{table}<p class="note">Take it, whole, with its evidence:</p>{use}{toml}'


def _facts(document: Document) -> str:
    parts = []
    speedup, winner, cost = document["speedup"], document["winner"], document["cost"]
    if speedup:
        bound = "≥ " if speedup["at_least"] else ""
        how = bracket(speedup["low"], speedup["high"]) or "single runs, not confirmed"
        sure = "" if speedup["decided"] or not speedup["confirmed"] else ", not decided"
        parts.append(
            f'<div><p class="big">{bound}{ratio(speedup["ratio"])}×</p>'
            f'<p class="note">faster than the baseline {escape(how)}{sure}</p></div>'
        )
    if winner:
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
    return f'<div class="facts">{"".join(parts)}</div>'


def _decisions(document: Document) -> str:
    verdict, parts = document["verdict"], []
    for key, title in (
        ("decided", "Decided"),
        ("undecided", "Not decided"),
        ("missing", "Missing"),
    ):
        if verdict[key]:
            parts.append(f"<h3>{title}</h3>{_items(verdict[key])}")
    if not parts:
        return ""
    heading = '<h2 id="h-decided">What is decided, and what is not</h2>'
    return f'<section aria-labelledby="h-decided">{heading}{"".join(parts)}</section>'


def _ranking_table(document: Document) -> str:
    rows = document["ranking"]
    if not rows:
        return ""
    winner = (document["winner"] or {}).get("point")
    cells = [
        (
            "winner-row" if row["point"] == winner else "" if row["reached"] else "quiet",
            (
                escape(row["label"] + (" (suspect)" if row["suspect"] else "")),
                str(row["place"] or ""),
                _seconds(row),
                _optional(row["steps_to_target"]),
                "" if row["ms_per_step"] is None else f"{row['ms_per_step']:.2f}",
                "" if row["best_loss"] is None else f"{row['best_loss']:.4f}",
                f"{row['reached_runs']}/{row['runs']}",
                escape(", ".join(row["reasons"])),
            ),
        )
        for row in rows
    ]
    columns = (
        "configuration", "place", "time to target", "steps", "ms a step", "best", "reached", "ended by",
    )  # fmt: skip
    table = _table("Every configuration of stages 1 and 2", columns, cells, numbers=range(1, 7))
    doubts = "".join(f"<li>{escape(words)}</li>" for row in rows for words in row["suspect"])
    if doubts:
        table += f"<p>Suspect times:</p><ul>{doubts}</ul>"
    return _folded(f"All {len(rows)} configurations as a table", table)


def _confirm(document: Document, figure: Figure | None) -> str:
    found = document["confirm"]
    if not found:
        return ""
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
                    f"{'≥ ' if contrast['at_least'] else ''}{ratio(time['ratio'])}",
                    escape(bracket(time["low"], time["high"])),
                    "" if learning is None else change(learning["ratio"]),
                    "" if speed is None else change(speed["ratio"]),
                    str(time["n"]),
                    "decided" if contrast["decided"] else "not decided",
                ),
            )
        )
    caption = "Time over the leader's, within blocks"
    columns = (
        "other", "time ratio", f"{100 * found['confidence']:.4g} % interval", "tokens",
        "time per token", "blocks", "verdict",
    )  # fmt: skip
    table = _table(caption, columns, rows, numbers=range(1, 6))
    resolves = found["resolvable_ratio"]
    budget = (
        f"<p>At the spread seen here, the planned blocks separate configurations whose times differ "
        f"by a factor of {ratio(resolves)} or more.</p>"
        if resolves
        else ""
    )
    return (
        '<section aria-labelledby="h-confirm"><h2 id="h-confirm">Confirm: pairs within blocks</h2>'
        f"{_bare_figure(figure)}{table}{budget}</section>"
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
    parts.append(_bare_figure(figure))
    if varying:
        parts.append(_table("Varying", ("parameter", "levels", "runs at each"), varying))
    if locked:
        parts.append(_table("Locked", ("parameter", "value", "why"), locked))
    if design["properties"]:
        parts.append(_folded("Properties of the design", _definitions(design["properties"])))
    if effects:
        parts.append(f"<h3>{escape(effects.title)}</h3>{_bare_figure(effects)}")
    elif document["effects"] and document["effects"]["why_none"]:
        parts.append(f"<p>Effects are not decided: {escape(document['effects']['why_none'])}.</p>")
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
    table = _table("The same curves, read at other targets", columns, rows, numbers=(1, 2))
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
    table = _table("What was planned, and what became of it", columns, rows, numbers=range(1, 10))
    table += _folded("What each rule of racing did", _racing(document))
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
    return _table("Train seconds; below zero is what a rule cost", columns, rows, numbers=(2,))


def _failures(document: Document) -> str:
    rows = [
        ("", (escape(f["id"]), escape(f["label"]), escape(f["reason"]), escape(f["message"][:400])))
        for f in document["failures"]
    ]
    if not rows:
        return ""
    table = _table("Failed trials", ("trial", "configuration", "reason", "message"), rows)
    heading = '<h2 id="h-failures">Failures</h2>'
    return f'<section aria-labelledby="h-failures">{heading}{table}</section>'


def _reproduce(document: Document) -> str:
    found = document["reproduce"]
    commands = _pre("\n".join(found["commands"]) + "\n", "Commands that repeat this sweep")
    facts: dict[str, Any] = {
        **{f"plan hash, {stage}": value for stage, value in found["plan_hashes"].items()},
        "seed": found["seed"],
        **{f"version of {name}": version for name, version in found["versions"].items()},
    }
    for place, fingerprint in enumerate(found["fingerprints"], start=1):
        facts |= {f"fingerprint {place}, {key}": value for key, value in fingerprint.items()}
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
        f"{warning}{commands}{_definitions(facts)}</section>"
        "<footer>Every number here is in report.json beside this file.</footer>"
    )


def _definitions(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        rows.append(f"<dt>{escape(str(name))}</dt><dd>{escape(_value(value))}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _value(value: Any) -> str:
    """A JSON value as a line of text; what is nested is taken apart."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_value(v)}" for key, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(v) for v in value)
    return significant(value, 4) if isinstance(value, float) else str(value)
