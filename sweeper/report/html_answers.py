"""The page's sections that answer: questions, the way to the winner, what would change it, devices.

It must not know how any number was computed: it reads the report's document alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from sweeper.analysis.wording import change, duration, significant
from sweeper.report import attempts
from sweeper.report import elements as el
from sweeper.report.drawing import Figure
from sweeper.space import show_value

Document = Mapping[str, Any]


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(title)}</h2>{body}</section>'


def contents(document: Document, drawn: Mapping[str, Figure]) -> str:
    """Links to the sections, for a keyboard and a phone."""
    places = [
        ("decided", "Decided or not", bool(document["ranking"])),
        ("questions", "Questions", bool(document["questions"])),
        ("path", "From the baseline", bool(document["path"])),
        ("curves", "Curves", "curves" in drawn),
        ("ranking", "Ranking", "ranking" in drawn),
        ("plane", "Learning and speed", "plane" in drawn),
        ("confirm", "Confirm", bool(document["confirm"])),
        ("design", "Stage 2", bool(document["design"])),
        ("stands", "Would it change?", bool(document["sensitivity"])),
        ("devices", "Devices", bool(document["timeline"])),
        ("again", "How to reproduce", True),
    ]
    links = "".join(
        f'<li><a href="#h-{at}">{words}</a></li>' for at, words, there in places if there
    )
    return f'<nav aria-label="Contents"><ul class="contents">{links}</ul></nav>'


def price(spent: Mapping[str, Any]) -> str:
    """Device hours, and money where the study has a price."""
    hours = significant(spent["hours"], 3)
    money = (
        f", {spent['money']:.2f} {escape(spent['currency'])} at "
        f"{significant(spent['price_per_hour'], 4)} an hour"
        if spent["money"] is not None
        else ""
    )
    others = significant(spent["hours_unranked"], 3)
    money += f"; besides {others} of phases and extensions" if spent["hours_unranked"] else ""
    return (
        f'<div><p class="big plain">{hours} h</p>'
        f'<p class="note">{escape(spent["kind"])} hours of attempts{money}</p></div>'
    )


def comparison(document: Document) -> str:
    """The other sweep that this one is set against."""
    found = document["against"]
    if not found:
        return ""
    parts = [f"<p><strong>{el.words(found['words'])}</strong></p>"]
    parts.append(f"<p>{escape(found['study'])}: {el.words(found['sentence'])}</p>")
    if found["changed"]:
        rows = [
            (
                "",
                (
                    escape(row["name"]),
                    "" if row["here"] is None else escape(show_value(row["here"])),
                    "" if row["there"] is None else escape(show_value(row["there"])),
                ),
            )
            for row in found["changed"]
        ]
        columns = ("parameter", document["study"], found["study"])
        parts.append(el.table("Where the winners differ", columns, rows, numbers=(1, 2)))
    for title, key in (
        ("Different questions", "question"),
        ("Different fingerprints", "fingerprint"),
    ):
        if found["differences"][key]:
            parts.append(f"<h3>{title}</h3>{el.items(found['differences'][key])}")
    return _section("against", f"Against {found['study']}", "".join(parts))


def questions(document: Document, figure: Figure | None) -> str:
    """Each question, its answer in a sentence, and the pairs that it was taken from."""
    if not document["questions"]:
        return ""
    parts = []
    for question in document["questions"]:
        state = "decided" if question["decided"] else "not decided"
        at = ", ".join(f"{name} = {show_value(v)}" for name, v in question["at"].items())
        where = f' <span class="quiet">(at {escape(at)})</span>' if at else ""
        parts.append(
            f'<h3>{escape(question["text"])}{where} <span class="state {state.replace(" ", "-")}">'
            f"{state}</span></h3><p>{el.words(question['words'])}.</p>"
        )
        parts.append(_pairs(question, document["goal"]))
    return _section("questions", "The questions", el.bare_figure(figure) + "".join(parts))


def _pairs(question: Mapping[str, Any], goal: str) -> str:
    rows = []
    for found in question["comparisons"]:
        against = f"{show_value(found['level'])} / {show_value(found['reference'])}"
        for pair in found["pairs"]:
            bound = f"{pair['bound']} " if pair["bound"] else ""
            times = [
                f"{'' if pair[f'{side}_reached'] else '> '}{_value(pair[f'{side}_value'], goal)}"
                for side in ("reference", "other")
            ]
            if goal == "final":
                difference = f"{bound}{pair['ratio']:+.4g}"
            else:
                difference = f"{bound}{change(pair['ratio'])}"
            rows.append(
                (
                    "",
                    (
                        escape(against),
                        escape(pair["at"] or "the only base"),
                        escape(times[0]),
                        escape(times[1]),
                        difference,
                        "" if pair["learning"] is None else change(pair["learning"]),
                        "" if pair["speed"] is None else change(pair["speed"]),
                        escape(" / ".join((*pair["reference"], *pair["other"]))),
                    ),
                )
            )
    if not rows:
        return ""
    columns = (
        "levels", "all else", "second", "first", "time" if goal != "final" else "difference",
        "tokens", "time per token", "trials",
    )  # fmt: skip
    caption = f"Pairs that differ in {question['parameter']} alone"
    table = el.table(caption, columns, rows, numbers=range(2, 7))
    return el.folded(f"{len(rows)} {'pair' if len(rows) == 1 else 'pairs'}", table)


def _value(value: float, goal: str) -> str:
    return significant(value, 5) if goal == "final" else duration(value)


def path(document: Document, figure: Figure | None) -> str:
    """The way from the baseline to the winner."""
    found = document["path"]
    if not found:
        return ""
    rows = [
        (
            "" if step["measured"] else "quiet",
            (
                escape(step["parameter"]),
                "" if step["from"] is None else escape(show_value(step["from"])),
                "off" if step["to"] is None else escape(show_value(step["to"])),
                _value(step["value"], document["goal"]),
                change(step["change"]) if document["goal"] != "final" else f"{step['change']:+.4g}",
                "" if step["learning"] is None else change(step["learning"]),
                "" if step["speed"] is None else change(step["speed"]),
                "measured" if step["measured"] else "expected",
            ),
        )
        for step in found["steps"]
    ]
    columns = ("parameter", "from", "to", "then", "change", "tokens", "time per token", "how known")
    table = el.table("One parameter at a time", columns, rows, numbers=range(3, 7))
    words = f"<p>{el.words(found['words'])}.</p>"
    body = f"{el.bare_figure(figure)}{words}{el.folded('The steps as a table', table)}"
    return _section("path", "From the baseline to the winner", body)


def effects_table(effects: Mapping[str, Any]) -> str:
    """Every effect in words, at one target."""
    lines = [f"{e['words']}{'' if e['decided'] else ': not decided'}" for e in effects["effects"]]
    heading = f"<p>At {significant(effects['target'], 5)}:</p>"
    return el.folded("The effects in words", heading + el.items(lines))


def robustness(document: Document, figure: Figure | None) -> str:
    """Whether another target, clock or cadence would give another verdict; how likely it reaches."""
    parts = []
    if document["sensitivity"]:
        same = sum(row["same_winner"] for row in document["sensitivity"])
        said = sum(row["winner"] is not None for row in document["sensitivity"])
        parts.append(
            f"<p>Of {len(document['sensitivity'])} changes to how the same curves are judged, {said} "
            f"leave something to say, and {same} keep the winner.</p>"
        )
        parts.append(el.items([row["words"] for row in document["sensitivity"]]))
    if document["chances"]:
        parts.append("<h3>How likely is the target reached at all?</h3>")
        parts.append(el.items([row["words"] for row in document["chances"]]))
    if figure:
        parts.append(f"<h3>{escape(figure.title)}</h3>{el.bare_figure(figure)}")
    return _section("stands", "Would the verdict change?", "".join(parts)) if parts else ""


def extensions(document: Document) -> str:
    """Trials that went on after they had ended, beside what they were before."""
    rows = [("", tuple(map(escape, attempts.extension_cells(r)))) for r in document["extensions"]]
    if not rows:
        return ""
    places = (2, 3, 4, *range(6, len(attempts.EXTENSION_COLUMNS)))
    caption = "In no ranking: others had no such chance"
    table = el.table(caption, attempts.EXTENSION_COLUMNS, rows, numbers=places)
    return _section("extensions", "Extensions", table)


def devices(document: Document, timeline: Figure | None, drift: Figure | None) -> str:
    """What the devices did, whether they stayed the same, what was doubted."""
    if not timeline and not drift:
        return ""
    found = document["drift"]
    parts = [el.bare_figure(timeline)]
    parts.append(f"<h3>{escape(drift.title)}</h3>{el.bare_figure(drift)}" if drift else "")
    if found["words"] and not drift:
        parts.append(f"<p>{el.words(found['words'])}</p>")
    if found["doubts"]:
        doubts = [("", (escape(doubt), str(n))) for doubt, n in found["doubts"].items()]
        table = el.table("What raised a doubt", ("doubt", "attempts"), doubts, numbers=(1,))
        parts.append(el.folded(f"What raised a doubt ({len(doubts)})", table))
    rows = [("", tuple(map(escape, attempts.phase_cells(row)))) for row in document["timeline"]]
    last = range(4, len(attempts.PHASE_COLUMNS))
    table = el.table("Every attempt by phase", attempts.PHASE_COLUMNS, rows, numbers=(1, *last))
    parts.append(el.folded(f"Where each attempt's seconds went ({len(rows)})", table))
    return _section("devices", timeline.title if timeline else "The devices", "".join(parts))
