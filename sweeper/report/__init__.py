"""Figures, HTML, markdown, JSON and console views of an analysis.

It must not know how any number was computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.analysis.dataset import StudyFacts


@dataclass(frozen=True)
class Report:
    """Where the forms of a report were written; the figures stand in the page and as files.

    `document`: what `report.json` holds.
    """

    html: Path
    markdown: Path
    json: Path
    figures: tuple[Path, ...]
    document: dict[str, Any]


def write_report(
    facts: StudyFacts,
    out: Path,
    *,
    target: float | None = None,
    against: Mapping[str, Any] | None = None,
    across: bool = False,
) -> Report:
    """Write `report.json`, `report.md`, `report.html` and `figures/*.svg`, each whole or not at all.

    Args:
        facts: The study as measured so far.
        out: An existing folder.
        target: Judge at this target instead of the effective one.
        against: Another report's document, to set this sweep against.
        across: Compare its times also where the fingerprints differ.

    Raises:
        OSError: The folder cannot be written.
    """
    # Only a report needs these; a progress view, which imports this package too, starts without.
    from sweeper.paths import write_json, write_whole  # noqa: PLC0415
    from sweeper.report import answers, figures, html, json_report, markdown  # noqa: PLC0415

    document = json_report.document(facts, target=target, generated_at=time.time())
    if against is not None:
        document["against"] = answers.against(document, against, across=across)
    drawn = figures.figures(document)
    written = Report(
        html=out / "report.html",
        markdown=out / "report.md",
        json=out / "report.json",
        figures=tuple(out / "figures" / f"{f.name}.svg" for f in drawn),
        document=document,
    )
    write_json(written.json, document)
    write_whole(written.markdown, markdown.render(document))
    write_whole(written.html, html.render(document, drawn))
    (out / "figures").mkdir(exist_ok=True)
    for path, figure in zip(written.figures, drawn, strict=True):
        write_whole(path, html.standalone(figure))
    return written
