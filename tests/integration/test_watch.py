"""`status --watch` from another terminal sees what the stage command sees, and ends when it is over."""

from __future__ import annotations

import pytest


@pytest.mark.long
def test_watching_a_stage_from_another_terminal(sweep, wait_until):
    study = str(sweep.write(few=True, trivial="", tau_s=0.5, step_s=0.02))
    stage = sweep.start("stage1", study)
    wait_until(lambda: " step " in stage.said("out"), "a trial has measured something")
    watch = sweep.start("status", study, "--watch")
    wait_until(lambda: " step " in watch.said("out"), "the watch has seen an evaluation")
    assert stage.finish().code == 0
    seen = watch.finish()
    assert seen.code == 0
    assert "reached the target in" in seen.out
    assert "fastest single run so far" in seen.out  # the table of `status` at the end
    assert sweep("status", study, "--watch").code == 0
