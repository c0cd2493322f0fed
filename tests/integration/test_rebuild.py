"""A database that was lost is made anew from run folders; what disagrees is said."""

from __future__ import annotations

import json

import psycopg2
import pytest


def sql(sweep, *statements):
    url = sweep.env["SWEEP_DATABASE_URL"].replace("+psycopg2", "", 1)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


@pytest.mark.long
def test_a_database_is_made_anew_from_run_folders(sweep):
    study = str(sweep.write(few=True))
    sweep("run", study)
    before = sweep.facts(study)
    assert sweep("db", "verify", study).out.endswith("agree\n")

    # our tables and Optuna's go; the run folders are all that is left
    sql(
        sweep,
        "DROP SCHEMA sweep_facts CASCADE",
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
    )
    sweep("db", "upgrade")
    refused = sweep("stage1", study, exit=3)
    assert "sweep db rebuild" in refused.err
    made = sweep("db", "rebuild", study, "--json").json()
    assert made["added"] == len(before)
    assert sweep.facts(study) == before
    assert sweep("db", "verify", study).out.endswith("agree\n")
    assert sweep("db", "rebuild", study, "--json").json()["added"] == 0
    assert len(sweep.attempts()) == len(before)
    sweep("run", study)
    assert len(sweep.attempts()) == len(before), "nothing was run again"


@pytest.mark.long
def test_what_disagrees_is_said(sweep):
    study = str(sweep.write(few=True))
    sweep("stage1", study)
    first, second, third = sweep.attempts()[:3]
    (first / "events.jsonl").write_text((first / "events.jsonl").read_text().splitlines()[0] + "\n")
    outcome = json.loads((second / "outcome.json").read_text())
    (second / "outcome.json").write_text(json.dumps(outcome | {"reason": "timeout"}))
    third.rename(third.with_name("attempt-7"))
    sql(sweep, "UPDATE public.trial_values SET value = value + 1 WHERE trial_value_id = 1")
    said = sweep("db", "verify", study, "--json", exit=1).json()["differences"]
    for words in (
        "its recorded curve differs",
        "its folder says",
        "run folder is gone",
        "is not recorded",
    ):
        assert any(words in line for line in said), words
    assert any("Optuna's trivial/stage1" in line for line in said)
