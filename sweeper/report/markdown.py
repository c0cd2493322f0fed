"""The report as markdown: the same verdict and tables, for a repository or a mail.

It must not know how any number was computed: it reads the report's document alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.analysis.wording import bracket, duration, metric_ratio, ratio, significant
from sweeper.report import attempts, claims
from sweeper.report.lines import plain, saved
from sweeper.space import show_value

Document = Mapping[str, Any]
SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


def safe(words: Any) -> str:
    """Text on one line that markdown shows as it is."""
    return plain(str(words)).translate(SPECIAL)


def render(document: Document) -> str:
    """The whole file."""
    verdict = document["verdict"]
    lines = [
        f"# {safe(document['title'] or document['study'])}",
        "",
        f"**{safe(verdict['sentence'])}**",
        "",
    ]
    if document["exploratory"]:
        lines += ["> Exploratory: the study was changed after its plan was frozen.", ""]
    for paragraph in verdict["paragraphs"]:
        lines += [safe(paragraph), ""]
    lines += _winner(document)
    for key, title in (
        ("decided", "Decided"),
        ("undecided", "Not decided"),
        ("missing", "Missing"),
    ):
        if verdict[key]:
            lines += [f"## {title}", "", *(f"- {safe(line)}" for line in verdict[key]), ""]
    lines += _against(document)
    lines += _questions(document)
    lines += _path(document)
    lines += _ranking(document)
    lines += _steps(document)
    lines += _confirm(document)
    lines += _claims(document)
    lines += _design(document)
    lines += _effects(document)
    lines += _racing(document)
    lines += _stands(document)
    lines += _spent(document)
    lines += _stages(document)
    lines += _attempts(document)
    lines += _failures(document)
    lines += _reproduce(document)
    return "\n".join(lines).rstrip() + "\n"


READING = """\
## How to read this page

- A trial's value is its seconds to the target. One that did not reach it shows the time that it was
  judged against, and a violated constraint: how far its loss was above the target.
- Intermediate values are the loss by milliseconds of training, thinned.
- A failed trial says nothing about its configuration; its reason is among its attributes.
- Configuration and the end of the output are artifacts of each trial. The whole report:
"""


def note(document: Document) -> str:
    """The verdict for a page that shows one stage's trials, with how to read what it shows."""
    verdict = document["verdict"]
    lines = [
        f"# {safe(document['title'] or document['study'])}",
        "",
        f"**{safe(verdict['sentence'])}**",
        "",
    ]
    for paragraph in verdict["paragraphs"]:
        lines += [safe(paragraph), ""]
    lines += _winner(document)
    for question in document["questions"]:
        lines += [f"- **{safe(question['text'])}** {safe(question['words'])}."]
    report = f"`{plain(document['reproduce']['commands'][-1])}`"
    return "\n".join([*lines, "", READING, report, ""])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = f"| {' | '.join(columns)} |"
    rule = f"|{'|'.join(' --- ' for _ in columns)}|"
    return [head, rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _winner(document: Document) -> list[str]:
    winner = document["winner"]
    if winner is None:
        return []
    rows = [
        (
            f"`{row['name']}`",
            safe(show_value(row["value"])),
            "" if row["baseline"] is None else safe(show_value(row["baseline"])),
        )
        for row in winner["configuration"]
    ]
    return [
        "## The winning configuration",
        "",
        *_table(("parameter", "winner", "baseline"), rows),
        "```sh",
        plain(winner["command"]),
        "```",
        "",
    ]


def _ranking(document: Document) -> list[str]:
    final = document["goal"] == "final"
    rows = [
        (
            str(row["place"] or ""),
            safe(row["label"]) + (" (suspect)" if row["suspect"] else ""),
            *([_optional(row["final"], 5)] if final else []),
            duration(row["time_to_target_s"])
            if row["reached"]
            else f"> {duration(row['censored_at_s'])}",
            _optional(row["steps_to_target"]),
            _optional(row["best_loss"], 5),
            f"{row['reached_runs']} of {row['runs']}",
            ", ".join(row["reasons"]),
        )
        for row in document["ranking"]
    ]
    columns = ("place", "configuration", *(["final"] if final else []), "time to target", "steps",
               "best", "reached", "ended by")  # fmt: skip
    doubts = [
        f"- suspect: {safe(words)}" for row in document["ranking"] for words in row["suspect"]
    ]
    return ["## Ranking", "", *_table(columns, rows), *doubts, ""] if rows else []


def _claims(document: Document) -> list[str]:
    found = document["claims"]
    if not found:
        return []
    rows = [tuple(map(safe, claims.cells(row))) for row in found["rows"]]
    heading = f"## Claims: {safe(found['title'])}"
    refuted = [f"- {safe(words)}" for words in claims.refuted(found)]
    return [heading, "", safe(found["source"]), "", *_table(claims.COLUMNS, rows), *refuted, ""]


def _steps(document: Document) -> list[str]:
    table = document["steps"]
    if not table:
        return []
    names = [f"{safe(arm['label'])} ({arm['role']})" for arm in table["arms"]]
    rows = [
        (
            str(row["step"]),
            significant(row["values"][0], 5),
            *(
                f"{significant(value, 5)} ({change:+.1f} %)"
                for value, change in zip(row["values"][1:], row["changes"][1:], strict=True)
            ),
        )
        for row in table["rows"]
    ]
    levels = [
        (
            significant(row["level"], 5),
            *("never" if s is None else f"{s:.0f}" for s in row["steps"]),
        )
        for row in table["levels"]
    ]
    return [
        "## The arms, step by step", "",
        *_table(("step", *names), rows),
        f"Steps to each level of {safe(document['metric'])}:", "",
        *_table(("level", *names), levels),
    ]  # fmt: skip


def _confirm(document: Document) -> list[str]:
    found = document["confirm"]
    if not found:
        return []
    final = document["goal"] == "final"
    show = metric_ratio if final else ratio
    what = str(document["metric"]) if final else "time"
    rows = [
        (
            "baseline" if c["is_baseline"] else safe(c["other_label"]),
            f"{'≥ ' if c['at_least'] else ''}{show(c['time']['ratio'])}",
            safe(bracket(c["time"]["low"], c["time"]["high"], show)),
            str(c["time"]["n"]),
            "decided" if c["decided"] else "not decided",
        )
        for c in found["contrasts"]
        if c["time"]
    ]
    columns = ("other", f"{safe(what)} ratio", "interval", "blocks", "verdict")
    leader = safe(found["leader_label"])
    heading = f"{safe(what).capitalize()} over the {safe(what)} of {leader} in the same block."
    return ["## Confirm", "", heading, "", *_table(columns, rows)]


def _design(document: Document) -> list[str]:
    design = document["design"]
    if not design:
        return []
    rows = [
        (f"`{v['name']}`", "varies", ", ".join(safe(show_value(level)) for level in v["levels"]))
        for v in design["varying"]
    ]
    rows += [
        (f"`{name}`", f"locked at {safe(show_value(lock['value']))}", safe(lock["why"]))
        for name, lock in design["locked"].items()
    ]
    return ["## The stage-2 design", "", *_table(("parameter", "", "levels or evidence"), rows)]


def _effects(document: Document) -> list[str]:
    lines: list[str] = []
    for effects in (document["effects"], document["effects_elsewhere"]):
        if not effects or not effects["effects"]:
            continue
        heading = (
            f"To {significant(effects['target'], 5)}, {effects['runs']} runs that crossed and "
            f"{effects['not_crossed']} bounds."
        )
        lines += ["## Effects in stage 2", "", heading, ""]
        lines += [
            f"- {safe(e['words'])}: {'decided' if e['decided'] else 'not decided'}"
            for e in effects["effects"]
        ]
        lines.append("")
    if document["untested"]:
        lines += [safe(document["untested"]["words"]), ""]
    return lines


def _against(document: Document) -> list[str]:
    found = document["against"]
    if not found:
        return []
    different = [line for key in ("question", "fingerprint") for line in found["differences"][key]]
    return [
        f"## Against {safe(found['study'])}",
        "",
        safe(found["words"]),
        "",
        safe(found["sentence"]),
        "",
        *(f"- {safe(line)}" for line in different),
        *([""] if different else []),
    ]


def _questions(document: Document) -> list[str]:
    lines = []
    for question in document["questions"]:
        lines += [f"### {safe(question['text'])}", "", f"{safe(question['words'])}.", ""]
        for found in question["comparisons"]:
            for pair in found["pairs"]:
                trials = " / ".join((*pair["reference"], *pair["other"]))
                bound = f"{pair['bound']} " if pair["bound"] else ""
                size = (
                    f"{pair['ratio']:+.4g}"
                    if document["goal"] == "final"
                    else f"{ratio(pair['ratio'])} times"
                )
                levels = f"{show_value(found['level'])} / {show_value(found['reference'])}"
                at = pair["at"] or "the only base"
                lines.append(f"- {safe(levels)} at {safe(at)}: {bound}{size} ({safe(trials)})")
        lines.append("")
    return ["## The questions", "", *lines] if lines else []


def _path(document: Document) -> list[str]:
    found = document["path"]
    return (
        ["## From the baseline to the winner", "", f"{safe(found['words'])}.", ""] if found else []
    )


def _stands(document: Document) -> list[str]:
    rows = [*document["sensitivity"], *document["chances"]]
    lines = [f"- {safe(row['words'])}" for row in rows]
    if document["drift"]["words"]:
        lines += ["", safe(document["drift"]["words"])]
    return ["## Would the verdict change?", "", *lines, ""] if lines else []


def _spent(document: Document) -> list[str]:
    spent = document["spent"]
    money = (
        f", {spent['money']:.2f} {safe(spent['currency'])}" if spent["money"] is not None else ""
    )
    hours = f"{significant(spent['hours'], 3)} {spent['kind']} hours of attempts{money}"
    if spent["hours_unranked"]:
        hours += f"; besides {significant(spent['hours_unranked'], 3)} of phases and extensions"
    return [f"{hours}.", ""]


def _racing(document: Document) -> list[str]:
    rows = [
        (rule["name"], "on" if rule["on"] else "off", saved(rule["saved_s"]), safe(rule["words"]))
        for rule in document["racing"]
    ]
    columns = ("rule", "switch", "train seconds saved, at most", "what it did")
    return ["## Racing", "", *_table(columns, rows)] if rows else []


def _stages(document: Document) -> list[str]:
    keys = ("planned", "distinct", "reached", "censored", "failed", "reused", "missing")
    rows = [
        (
            stage["stage"],
            *(str(stage[key]) for key in keys),
            duration(stage["train_s"]),
            duration(stage["wall_s"]),
        )
        for stage in document["stages"]
    ]
    return ["## Stages", "", *_table(("stage", *keys, "train", "wall"), rows)] if rows else []


def _attempts(document: Document) -> list[str]:
    """Extensions, and where every attempt's seconds went."""
    lines = []
    if document["extensions"]:
        rows = [tuple(map(safe, attempts.extension_cells(row))) for row in document["extensions"]]
        lines += ["## Extensions", "", "In no ranking: others had no such chance.", "",
                  *_table(attempts.EXTENSION_COLUMNS, rows)]  # fmt: skip
    if document["timeline"]:
        rows = [tuple(map(safe, attempts.phase_cells(row))) for row in document["timeline"]]
        lines += ["## Where each attempt's seconds went", "", *_table(attempts.PHASE_COLUMNS, rows)]
    return lines


def _failures(document: Document) -> list[str]:
    rows = [
        (safe(f["id"]), safe(f["label"]), f["reason"], safe(f["message"][:200]))
        for f in document["failures"]
    ]
    columns = ("trial", "configuration", "reason", "message")
    return ["## Failures", "", *_table(columns, rows)] if rows else []


def _reproduce(document: Document) -> list[str]:
    found = document["reproduce"]
    hashes = [f"- hash of the definition of {s}: `{h}`" for s, h in found["plan_hashes"].items()]
    versions = [f"- {safe(name)} {safe(version)}" for name, version in found["versions"].items()]
    commands = ["```sh", *map(plain, found["commands"]), "```", ""]
    frozen = [
        f"- frozen for every trial: {safe(key)} = {safe(show_value(value))}"
        for key, value in found["frozen"].items()
    ]
    seed = f"- seed {found['seed']}"
    return ["## How to reproduce", "", *commands, *hashes, seed, *frozen, *versions]


def _optional(value: float | None, digits: int = 4) -> str:
    return "" if value is None else significant(value, digits)
