import shutil
from pathlib import Path

import pytest

from sweeper.analysis.dataset import StageFacts, StudyFacts
from sweeper.analysis.verdict import verdict
from sweeper.commands.foreign import _plan, read_foreign
from sweeper.errors import StudyError
from sweeper.study_file import load
from sweeper.trial import Outcome, Reason

HERE = Path(__file__).parent / "foreign"
EARLIER = Path(__file__).parents[3] / "shared" / "data" / "ngpt-muon-sweep"


@pytest.fixture
def study():
    return load(HERE / "study.toml")


def judged(study, facts, target=None):
    stage = StageFacts(_plan(study, facts), tuple(facts), study.objective.target, closed=True)
    return verdict(StudyFacts(study, {"stage1": stage}), target=target)


HEAD = "name,group,orthogonalizer,lr,lazy_freq,batch,variance_reduction,cautious_wd,momentum"
TRIALS = f"""{HEAD},steps,seconds,final_val_loss
one,A,newton_schulz,0.003,7,32,false,false,0.95,400,100,5.6
same,B,newton_schulz,0.003,7,32,false,false,0.95,400,SAME_S,5.61
other,B,polar_express,0.003,7,32,true,false,0.95,400,110,5.5
"""
LAUNCHED = "trial_outcome,launcher_status,launcher_seconds"
LAUNCHES = f"""{HEAD},{LAUNCHED},oom_requested_mib,oom_free_mib,oom_other_processes
one,A,newton_schulz,0.003,7,32,false,false,0.95,completed,timeout,60,,,
same,B,newton_schulz,0.003,7,32,false,false,0.95,completed,ok,900,,,
other,B,polar_express,0.003,7,32,true,false,0.95,completed,ok,900,,,
lost,B,polar_express,0.02,7,64,true,false,0.95,cuda_out_of_memory,nonzero_exit,7,786,300,2
"""


def tables(folder, same_s=105):
    shutil.copy(HERE / "mapping.toml", folder)
    (folder / "trials.csv").write_text(TRIALS.replace("SAME_S", str(same_s)))
    (folder / "launches.csv").write_text(LAUNCHES)
    lines = ["name,step,val_loss"]
    for name, end in (("one", 5.6), ("same", 5.61), ("other", 5.5)):
        lines += [f"{name},{step},{end + (400 - step) / 100}" for step in range(0, 401, 50)]
    (folder / "curves.csv").write_text("\n".join(lines) + "\n")
    return folder / "mapping.toml"


def test_tables_become_facts(study, tmp_path):
    facts = {f.trial.id: f for f in read_foreign(tables(tmp_path), study)}
    assert list(facts) == ["one", "same", "other", "lost"]
    one = facts["one"].counted
    assert (one.reason, one.steps, one.tokens, one.best_loss) == (
        Reason.STEPS,
        400,
        400 * 4096,
        5.6,
    )
    assert one.curve[4].clock.train == pytest.approx(50.0)
    assert facts["same"].trial.replicate_of == "one"
    assert facts["other"].trial.point["variance_reduction"] is True
    lost = facts["lost"].counted
    assert (lost.outcome, lost.reason) == (Outcome.FAILED, Reason.OOM)
    assert lost.device["observed"] == {"other_processes": 2, "free_mib": 300, "requested_mib": 786}


def test_alike_times_are_comparable_and_unlike_ones_are_not(study, tmp_path):
    calm = judged(study, read_foreign(tables(tmp_path), study))
    assert not any("not comparable" in p for p in calm.paragraphs)
    wild = judged(study, read_foreign(tables(tmp_path, same_s=400), study), target=5.7)
    words = next(p for p in wild.paragraphs if "not comparable" in p)
    assert "one and same are one configuration" in words
    assert "4.00-fold" in words
    assert wild.speedup is None


def test_what_is_wrong_with_a_mapping_is_said(study, tmp_path):
    mapping = tables(tmp_path)
    good = mapping.read_text()
    for old, new, words in (
        ("[results]", "[result]", "results"),
        ('lr = "lr"', 'lr = "rate"', "no column 'rate'"),
        ('momentum = "momentum"', 'momentun = "momentum"', "momentun"),
        ('file = "curves.csv"', 'file = "curve.csv"', "curve.csv"),
        ('seconds = "seconds"', 'seconds = "name"', "trial one"),
    ):
        mapping.write_text(good.replace(old, new, 1))
        with pytest.raises(StudyError, match=words):
            read_foreign(mapping, study)


@pytest.mark.skipif(not EARLIER.is_dir(), reason="the figures of the earlier sweep are not here")
def test_the_earlier_sweep_is_seen_through(study):
    found = judged(study, read_foreign(HERE / "mapping.toml", study, EARLIER))
    assert found.kind == "nothing_reached"
    text = "\n".join(found.paragraphs)
    assert "After the first 2 of 31 measured trials" in text
    assert (
        "A1_ne, B1_vr0_cwd0, C_lazy7, D_lr0.003, E_batch32 and F_mom0.95 are one configuration"
        in text
    )
    assert "differ 5.94-fold" in text
    assert "no effect on speed" in text
    assert "31 of 48 launches outlived their launcher" in text
    assert "17 trials failed (oom 17) while 6 other processes held the device" in text
    assert "The best fallback target is 5.75: 13 of 25 configurations crossed it" in text
    assert "A3_po 10.8 M, A1_po 12.1 M" in text
