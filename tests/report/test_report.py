"""The three forms of the report: strict JSON, the same numbers everywhere, one escaped page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from sweeper.report import figures, json_report, write_report
from sweeper.study import Question, Resources
from sweeper.trial import Reason
from tests.fakes.facts import Clockwork, make_study, make_sweep

NUMBER = re.compile(r"(?<![\w.#])-?\d+(?:\.\d+)?")
EVIL = '<script>alert(1)</script> & "quotes" [x](y) | `z`'
QUESTIONS = (
    Question(text="Does it pay?", parameter="optim.method"),
    Question(text="Which batch?", parameter="data.batch_size"),
)
PRICED = Resources(gpus=2, price_per_hour=2.5, currency="EUR")
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


def document(facts, **options):
    return json_report.document(facts, generated_at=1_760_000_000.0, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    facts = make_sweep()
    study = facts.study.model_copy(update={"questions": QUESTIONS, "resources": PRICED})
    folder = tmp_path_factory.mktemp("report")
    return write_report(dataclasses.replace(facts, study=study), folder)


class Page(HTMLParser):
    """Fails on tags that do not nest, and keeps what the tests ask about."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.tags, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("aria-labelledby", "aria-describedby"):
                self.references += value.split()

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(html):
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_json_is_strict_and_has_the_answer(written):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(written.json.read_text(), parse_constant=refuse)
    assert found["verdict"]["kind"] == "confirmed"
    assert found["winner"]["time_to_target_s"] > 0
    assert found["speedup"]["low"] < found["speedup"]["ratio"] < found["speedup"]["high"]
    assert [stage["stage"] for stage in found["stages"]] == ["stage1", "stage2", "confirm"]
    assert len(found["curves"]) == 40
    assert found["reproduce"]["plan_hashes"]["stage1"] == "0" * 64


def numbers_in(value):
    """Every number of a JSON value, those inside its strings and keys included."""
    if isinstance(value, dict):
        for key, v in value.items():
            yield from numbers_in(key)
            yield from numbers_in(v)
    elif isinstance(value, list):
        for v in value:
            yield from numbers_in(v)
    elif isinstance(value, str):
        yield from (float(found) for found in NUMBER.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def unknown_numbers(text, known):
    """Numbers of a text that no known number rounds to, at the precision that they are shown with."""
    seconds = re.compile(r"(?:(\d+) h )?(\d+) min(?: (\d+) s)?")
    durations = [(int(h or 0), int(m), int(s or 0)) for h, m, s in seconds.findall(text)]
    found = [str(3600 * h + 60 * m + s) for h, m, s in durations]
    found += NUMBER.findall(seconds.sub(" ", text))
    unknown = []
    for shown in found:
        decimals = len(shown.partition(".")[2])
        significant = len(shown.replace(".", "").strip("-0")) or 1
        value = float(shown)
        step = 0.5000001 * 10.0**-decimals
        if not any(
            abs(value - k) <= step
            or (k and abs(value - k) <= abs(k) * 0.51 * 10.0 ** (1 - significant))
            for k in known
        ):
            unknown.append(shown)
    return unknown


def test_every_number_of_the_markdown_is_in_the_json(written):
    known = set(numbers_in(json.loads(written.json.read_text())))
    text = written.markdown.read_text()
    assert len(NUMBER.findall(text)) > 200
    assert unknown_numbers(text, known) == []
    assert unknown_numbers("a made-up 123.4567", known) == ["123.4567"]


def test_every_number_of_the_page_is_in_the_json(written):
    known = set(numbers_in(json.loads(written.json.read_text())))
    body = re.sub(
        r"<svg.*?</svg>|<style.*?</style>", " ", written.html.read_text(), flags=re.DOTALL
    )
    text = " ".join(parse(body).text)
    for change in re.findall(r"([+-]\d+(?:\.\d)?) %", text):  # ratios shown as a change
        known |= {float(change)} & {
            round(100 * (k - 1), 1 if "." in change else 0) for k in known if 0 < k < 1000
        }
    assert unknown_numbers(text.replace("\u00a0", " "), known) == []


def test_the_page_is_one_file_that_needs_no_network(written):
    html = written.html.read_text()
    assert "http-equiv" not in html
    links = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", html)
    assert all(link.startswith("#") for link in links), links
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html) == []
    assert "<script" not in html
    assert len(html) < 2_000_000


def test_the_page_nests_and_its_ids_are_unique_and_there(written):
    page = parse(written.html.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 2 * len(written.figures)  # each wide and narrow
    assert page.tags.count("desc") == 2 * len(written.figures)
    links = re.findall(r'href="#([^"]+)"', written.html.read_text())
    assert set(links) <= set(page.ids)


def test_figures_are_files_of_their_own(written):
    assert [path.stem for path in written.figures] == [
        "curves", "questions", "path", "ranking", "plane", "confirm", "effects", "design",
        "profile", "timeline", "drift",
    ]  # fmt: skip
    for path in written.figures:
        root = ET.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert "--winner" in path.read_text()


def test_coordinates_are_finite_and_inside(written):
    for path in written.figures:
        root = ET.fromstring(path.read_text())
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            for key, most in (("x", width), ("x1", width), ("cx", width), ("y", height)):
                if key in element.attrib:
                    value = float(element.attrib[key])
                    assert math.isfinite(value)
                    assert -1 <= value <= most + 1, (path.stem, element.attrib)


def test_everything_that_a_user_wrote_is_escaped(tmp_path):
    study = make_study(title=EVIL)
    work = Clockwork(study)
    work.trial("stage1", "a", {"optim.lr": 0.02}, 2.0, label=EVIL)
    work.trial("stage1", "b", {}, 3.0, label=f"{EVIL}2")
    work.trial("stage1", "c", {"optim.lr": 0.1}, None, reason=Reason.CRASHED, message=EVIL)
    written = write_report(work.facts(stage1=work.stage("stage1")), tmp_path)
    html = written.html.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    parse(html)
    for path in written.figures:
        ET.fromstring(path.read_text())
    markdown = written.markdown.read_text()
    assert "<script" not in markdown.replace("\\<", "")
    assert EVIL in json.loads(written.json.read_text())["title"]


def cases():
    def one(**options):
        work = Clockwork(make_study())
        work.trial("stage1", "a", {"optim.lr": 0.02}, **options)
        return work.facts(stage1=work.stage("stage1"))

    empty = Clockwork(make_study())
    yield "nothing", empty.facts(stage1=empty.stage("stage1", closed=False))
    yield "one reached", one(seconds=2.0)
    yield "one missed", one(seconds=None)
    yield "one failed", one(seconds=None, reason=Reason.OOM)
    yield "stage 1", make_sweep(stage2=False, confirm=False)
    yield "no confirm", make_sweep(confirm=False)
    yield "long against short", long_and_short()
    yield "diverged", diverged()


def long_and_short():
    work = Clockwork(make_study())
    for number, seconds in enumerate((0.5, 2.0, 60.0), start=1):
        work.trial("stage1", f"t{number}", {"optim.lr": 0.01 * number}, seconds, step_s=0.001)
    return work.facts(stage1=work.stage("stage1"))


def diverged():
    work = Clockwork(make_study())
    trial = work.trial("stage1", "a", {"optim.lr": 0.02}, None, reason=Reason.DIVERGED)
    (attempt,) = trial.attempts
    last = attempt.curve[-1]._replace(value=math.nan)
    broken = dataclasses.replace(attempt, curve=(*attempt.curve, last))
    work.trials[0] = dataclasses.replace(trial, attempts=(broken,))
    return work.facts(stage1=work.stage("stage1"))


@pytest.mark.parametrize(("name", "facts"), [pytest.param(n, f, id=n) for n, f in cases()])
def test_every_state_of_a_study_has_a_report(tmp_path, name, facts):
    written = write_report(facts, tmp_path)
    found = json.loads(written.json.read_text())
    assert found["verdict"]["sentence"] in written.html.read_text().replace("\u00a0", " ")
    parse(written.html.read_text())
    for target in (2.2, 3.2):
        json.dumps(document(facts, target=target), allow_nan=False)


def test_censored_trials_are_arrows_and_never_dots():
    found = document(make_sweep())
    drawn = figures.ranking(found)
    missed = [row for row in found["ranking"] if not row["reached"]]
    assert len(missed) == 2
    assert drawn.wide.count("<polygon") == len(missed)
    assert drawn.wide.count("&gt; ") == len(missed)


def test_an_axis_turns_logarithmic_only_when_a_linear_one_would_hide_the_short():
    assert "(log)" in figures.ranking(document(long_and_short())).wide
    assert "(log)" not in figures.ranking(document(make_sweep())).wide


def test_judged_at_another_target_the_report_says_so(tmp_path):
    written = write_report(make_sweep(), tmp_path, target=3.2)
    assert "judged at val_loss 3.2" in written.html.read_text().replace("\u00a0", " ")
    assert json.loads(written.json.read_text())["target"] == 3.2


def test_toml_of_the_winner_reads_back():
    import tomllib

    winner = document(make_sweep())["winner"]
    nested = tomllib.loads(winner["toml"])
    assert nested["optim"]["lr"] == winner["point"]["optim.lr"]
    assert nested["model"]["projection"] is winner["point"]["model.projection"]
