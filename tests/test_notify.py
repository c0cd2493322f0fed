"""Real commands are told: in time, too slow, missing, failing; the watcher behind never minds."""

from __future__ import annotations

import json
import sys
import time

from sweeper.analysis.ranking import stage_summary
from sweeper.notify import NotifyingProgress, run_command
from sweeper.report.lines import QuietProgress
from sweeper.study import Notify
from tests.fakes.facts import make_sweep

WRITE = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n' + sys.stdin.read() + '\\n')"
WORDS = {"event": "stage_ended", "study": "s", "stage": "stage1", "text": "done; $(touch owned)"}


class Heard(QuietProgress):
    def __init__(self):
        self.notes = []

    def note(self, text, kind=""):
        self.notes.append(text)


def test_a_stage_s_end_is_told_with_its_summary(tmp_path):
    told = tmp_path / "told"
    settings = Notify(command=(sys.executable, "-c", WRITE, str(told), "{event}: {text}"))
    heard = Heard()
    progress = NotifyingProgress(heard, "synthetic", settings, {})
    facts = make_sweep()
    progress.stage_started(facts.stages["stage1"].plan, 0)
    progress.stage_ended(stage_summary(facts, "stage1"))
    progress.note("an open level was decided")
    progress.note("the target looks out of reach", "unreachable")
    progress.close()
    text = told.read_text()
    assert "stage_ended: synthetic stage1: 14 of 17 reached 2.5; fastest: " in text
    assert "unreachable: the target looks out of reach" in text
    documents = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    ended = next(d for d in documents if d["event"] == "stage_ended")
    assert ended["summary"]["reached"] == 14
    assert len(documents) == 2
    assert heard.notes == ["an open level was decided", "the target looks out of reach"]


def test_a_command_has_its_time_and_no_more():
    settings = Notify(command=(sys.executable, "-c", "import time; time.sleep(60)"), timeout_s=0.3)
    began = time.monotonic()
    assert "was ended after 0.3 s" in run_command(settings, WORDS, "{}", {})
    assert time.monotonic() - began < 20


def test_what_goes_wrong_is_words():
    missing = Notify(command=("no-such-program", "{text}"))
    assert "cannot be started" in run_command(missing, WORDS, "{}", {})
    failing = Notify(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert run_command(failing, WORDS, "{}" * 100_000, {}).endswith("ended with code 3")


def test_a_slow_command_does_not_delay_the_watcher():
    settings = Notify(command=(sys.executable, "-c", "import time; time.sleep(5)"), timeout_s=10)
    heard = Heard()
    progress = NotifyingProgress(heard, "s", settings, {})
    began = time.monotonic()
    progress.note("out of reach", "unreachable")
    assert heard.notes == ["out of reach"]
    assert time.monotonic() - began < 4
