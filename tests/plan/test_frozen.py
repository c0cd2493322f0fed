"""Keys that no group, point or base may change, and the keys of a run that a sweep sets itself."""

import pytest

from sweeper.configuration import frozen_values, get_key, resolve_config
from sweeper.errors import StudyFileError
from sweeper.study_file import load


def test_frozen_keys_have_the_base_s_value_in_every_trial(study_text, write_study):
    study = load(write_study(study_text))
    assert frozen_values(study) == {"run.epochs": 7}
    # A point that did not come through the space: a bug, or a plan from elsewhere.
    sneaked = {**study.space.baseline(), "run.epochs": 8}
    config = resolve_config(study, sneaked, seed=1, target=None, fallback=(), max_steps=100)
    assert get_key(config, "run.epochs") == 7


@pytest.mark.parametrize(
    ("key", "base", "words"),
    [
        ("run.max_steps", "max_steps = 50", "the frozen run.max_steps is 50 in base.toml"),
        ("run.seed", "seed = 3", "repeats would all be one and the same run"),
    ],
)
def test_a_frozen_key_that_the_sweep_sets_itself_is_refused_where_it_would_lie(
    key, base, words, study_text, write_study
):
    text = study_text.replace('frozen = ["run.epochs"]', f'frozen = ["{key}"]')
    file = write_study(text)
    config = file.parent / "base.toml"
    config.write_text(config.read_text().replace("epochs = 7", f"epochs = 7\n{base}"))
    with pytest.raises(StudyFileError, match=words):
        load(file)
