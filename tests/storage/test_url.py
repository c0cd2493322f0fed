"""What URLs are taken, what the refused ones are told, and that no password is ever shown."""

import traceback

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from sweeper.errors import EXIT_ENVIRONMENT, DatabaseUnusable
from sweeper.storage.url import mask, normalise, without_secrets

SECRET = "hunter2"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_the_driver_is_named(scheme):
    written = f"{scheme}://u:p%40w@h:5433/d?sslmode=require"
    assert normalise(f"  {written}\n") == "postgresql+psycopg2://u:p%40w@h:5433/d?sslmode=require"


def test_a_socket_url_keeps_its_folder():
    url = make_url(normalise("postgresql://u@/d?host=/run/a b&port=5499"))
    assert (url.database, url.query["host"], url.query["port"]) == ("d", "/run/a b", "5499")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"postgresql+asyncpg://u:{SECRET}@h/d", "driver 'asyncpg'"),
        (f"postgresql+psycopg://u:{SECRET}@h/d", "write postgresql://"),
        (f"mysql://u:{SECRET}@h/d", "no second storage engine"),
        ("sqlite:///facts.db", "no second storage engine"),
        (f"postgresql://u:{SECRET}@h", "without a database"),
        (f"postgresql://u:{SECRET}@h/", "without a database"),
        (f"postgresql://u:a@{SECRET}@h/d", "second @"),
        (f"postgresql://u:a@{SECRET}:b@h/d", "write %40"),
        (f"postgresql://u:a:b@h:{SECRET}/d", "expected postgresql://USER"),
        (f"host=h password={SECRET}", "expected postgresql://USER"),
        (SECRET, "expected postgresql://USER"),
        ("", "expected postgresql://USER"),
    ],
)
def test_a_wrong_url_says_what_to_write(url, problem):
    with pytest.raises(DatabaseUnusable) as caught:
        normalise(url)
    assert problem in str(caught.value)
    assert caught.value.exit_code == EXIT_ENVIRONMENT
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_masking_keeps_what_helps():
    shown = mask(
        f"postgresql://me:{SECRET}@db.example:5433/facts?sslpassword={SECRET}&sslmode=prefer"
    )
    assert shown == "postgresql://me:***@db.example:5433/facts?sslmode=prefer&sslpassword=***"
    assert mask("postgresql://me@h/d") == "postgresql://me@h/d"
    assert mask(make_url(f"postgresql://me:{SECRET}@h/d")) == "postgresql://me:***@h/d"


@given(st.text(max_size=8), st.text(max_size=8))
@example("@/", "")
@example("a@h?", "")
def test_any_password_is_masked_however_it_is_written(before, after):
    password = f"{before}{SECRET}{after}"
    clean = URL.create("postgresql", "u", password, "h", 5432, "d")
    assert SECRET not in mask(clean.render_as_string(hide_password=False))
    assert SECRET not in mask(f"postgresql://u:{password}@h:5432/d")
    with pytest.raises(DatabaseUnusable) as caught:
        normalise(f"mysql://u:{password}@h:5432/d")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@given(st.text(min_size=1, max_size=20))
def test_a_password_is_taken_out_of_any_text(password):
    url = URL.create("postgresql", "u", f"{SECRET}{password}", "h", database="d")
    said = f"before {url.password} between {url.render_as_string(hide_password=False)}"
    assert SECRET not in without_secrets(said, url)
