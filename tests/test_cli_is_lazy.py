import subprocess
import sys

HEAVY = ("optuna", "sqlalchemy", "torch", "numpy", "scipy", "pydantic", "rich", "alembic")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, sweeper.cli as c\n"
        "c.build_parser().format_help()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_status_imports_no_numbers_and_no_sampler():
    code = (
        "import sys, sweeper.commands.status, sweeper.storage.sql, sweeper.report.console\n"
        f"print([m for m in {(*HEAVY, 'rich.live')!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "['sqlalchemy', 'pydantic', 'rich']"
