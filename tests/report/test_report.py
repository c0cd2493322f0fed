"""The three forms of the report: strict JSON, the same numbers everywhere, one escaped page."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.commands.output import attempt_document
from sweeper.report import answers, figures, json_report, write_report
from sweeper.report.checker import NUMBER, check, numbers_in, text_of, unknown_numbers
from sweeper.study import Question, Resources
from sweeper.trial import Reason
from tests.fakes.facts import TARGET, Clockwork, make_study, make_sweep

pytestmark = pytest.mark.xdist_group("report")  # its fixtures are made once

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
    return write_report(priced_sweep(), tmp_path_factory.mktemp("report"))


def priced_sweep():
    facts = make_sweep()
    study = facts.study.model_copy(update={"questions": QUESTIONS, "resources": PRICED})
    return dataclasses.replace(facts, study=study)


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


def test_every_number_of_the_markdown_is_in_the_json(written):
    known = set(numbers_in(json.loads(written.json.read_text())))
    text = written.markdown.read_text()
    assert len(NUMBER.findall(text)) > 200
    assert unknown_numbers(text, known) == []
    assert unknown_numbers("a made-up 123.4567", known) == ["123.4567"]


def test_every_number_of_the_page_is_in_the_json(written):
    known = set(numbers_in(json.loads(written.json.read_text())))
    text = text_of(written.html.read_text())
    assert len(NUMBER.findall(text)) > 300
    assert unknown_numbers(text, known) == []


def test_the_checker_computes_the_report_again_from_the_facts(tmp_path):
    facts = priced_sweep()
    written = write_report(facts, tmp_path)
    assert check(tmp_path, facts) == []
    stage = facts.stages["stage2"]
    fewer = dataclasses.replace(stage, facts=stage.facts[:-1])
    other = dataclasses.replace(facts, stages={**facts.stages, "stage2": fewer})
    assert any(line.startswith("ranking[") for line in check(tmp_path, other))
    forged = written.markdown.read_text().replace("**", "** in 4321.5 s ", 1)
    written.markdown.write_text(forged)
    assert check(tmp_path, facts) == ["report.md: 4321.5 is no value of report.json"]


def test_the_main_figures_from_exported_trials_alone(written):
    """Independent of our analysis: crossings, medians, pairs and sums by hand from `export --trials`."""
    facts = priced_sweep()
    found = json.loads(written.json.read_text())
    trials = [
        attempt_document(facts.study, t.trial, a, TARGET)
        for stage in facts.stages.values()
        for t in stage.facts
        for a in t.attempts
    ]
    crossed = {t["id"]: crossing_s(t["curve"], TARGET) for t in trials}
    search = [t for t in trials if t["stage"] != "confirm" and t["outcome"] != "failed"]
    for row in found["ranking"]:
        same = [crossed[t["id"]] for t in search if t["point"] == row["point"]]
        assert row["reached"] is (None not in same)
        if row["reached"]:
            assert row["time_to_target_s"] == pytest.approx(statistics.median(same), rel=1e-9)
    blocks = {}
    for t in trials:
        if t["stage"] == "confirm":
            blocks.setdefault(t["id"].split("-")[2], {})[t["label"]] = crossed[t["id"]]
    logs = [math.log(b["baseline"] / b[found["winner"]["label"]]) for b in blocks.values()]
    assert found["speedup"]["ratio"] == pytest.approx(math.exp(statistics.mean(logs)), rel=1e-9)
    hours = 2 * sum(t["wall_s"] for t in trials) / 3600
    assert found["spent"]["hours"] == pytest.approx(hours)
    assert found["spent"]["money"] == pytest.approx(2.5 * hours)
    by_id = {t["id"]: t for t in trials}
    pairs = [p for q in found["questions"] for c in q["comparisons"] for p in c["pairs"]]
    assert len(pairs) > 8
    for pair in pairs:
        one, two = (by_id[pair[side][0]]["point"] for side in ("reference", "other"))
        assert sum(one[name] != two[name] for name in one) == 1
        if len(pair["reference"]) == len(pair["other"]) == 1 and not pair["bound"]:
            ratio = crossed[pair["other"][0]] / crossed[pair["reference"][0]]
            assert pair["ratio"] == pytest.approx(ratio, rel=1e-9)
            assert pair["ratio"] == pytest.approx(pair["learning"] * pair["speed"], rel=1e-9)


def crossing_s(curve, target):
    """Seconds at which a line through the evaluations first comes down to the target."""
    for (s0, _, _, v0), (s1, _, _, v1) in itertools.pairwise(curve):
        if v1 <= target:
            return s0 + (v0 - target) / (v0 - v1) * (s1 - s0)
    return None


def test_two_sweeps_are_compared_only_where_they_can_be(tmp_path):
    facts = priced_sweep()
    mine = document(facts)
    slower = make_sweep(seed=8)
    written = write_report(facts, tmp_path, against=document(slower))
    found = json.loads(written.json.read_text())["against"]
    expected = document(slower)["winner"]["time_to_target_s"] / mine["winner"]["time_to_target_s"]
    assert found["time_ratio"] == pytest.approx(expected)
    assert "is no verdict" in written.html.read_text()
    other = document(slower)
    other["reproduce"]["fingerprints"][0]["trainer"] = "other"
    refused = answers.against(mine, other)
    assert refused["time_ratio"] is None
    assert refused["differences"]["fingerprint"] == ["trainer: abc123 here, other there"]
    assert "times are not compared" in refused["words"]
    forced = answers.against(mine, other, across=True)
    assert forced["time_ratio"] == pytest.approx(expected)
    assert "not strictly comparable" in forced["words"]
    elsewhere = answers.against(mine, document(slower, target=2.8))
    assert "different questions" in elsewhere["words"]
    assert elsewhere["tokens_ratio"] is None


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


numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-10, 10),
    st.integers(-(10**6), 10**6).map(lambda n: n / 20_000),  # halves of a decimal among them
)


@given(st.lists(numbers, max_size=20), st.sampled_from([4, 6]))
def test_numbers_are_rounded_together_as_one_by_one(values, digits):
    one_by_one = [round(value, digits) for value in values]
    assert list(map(repr, json_report.rounded(values, digits))) == list(map(repr, one_by_one))


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


def test_a_study_of_the_final_metric_has_a_report_in_the_metric(tmp_path):
    facts = priced_sweep()
    objective = facts.study.objective.model_copy(update={"goal": "final"})
    study = facts.study.model_copy(update={"objective": objective})
    written = write_report(dataclasses.replace(facts, study=study), tmp_path)
    found = json.loads(written.json.read_text())
    assert all("difference" in e for e in found["effects"]["effects"])
    assert all("seconds" not in q["words"] for q in found["questions"])
    assert not {"questions", "effects", "path"} & {path.stem for path in written.figures}
    parse(written.html.read_text())


def test_a_cost_is_shown_with_its_sign_apart():
    from sweeper.report.checker import unknown_numbers

    assert unknown_numbers("\u221278.4 s and \u22121 min 47 s", [-78.368, -106.9]) == []
    assert unknown_numbers("79.5 s", [-78.368]) == ["79.5"]
