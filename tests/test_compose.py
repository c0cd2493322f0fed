"""The compose file: valid, pinned, reachable from this machine only, without a password in it."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|KEY", re.IGNORECASE)
REQUIRED_VARIABLE = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")  # no default: compose stops without it
PINNED = re.compile(r"[\w./-]+:v?\d+(\.\d+)+([-.\w]*)?(@sha256:[0-9a-f]{64})?")


def load() -> dict[str, Any]:
    return YAML(typ="safe").load(COMPOSE)


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run(
        [*command, str(path)], capture_output=True, text=True, check=False, timeout=60
    )


def problems(document: dict[str, Any]) -> list[str]:
    """What the schema cannot see, one line each."""
    found = []
    services = document["services"]
    for name, service in services.items():
        image = service.get("image", "")
        if not PINNED.fullmatch(image):
            found.append(f"{name}: image {image!r} is not pinned to a version")
        for other, condition in dict(service.get("depends_on", {})).items():
            if other not in services:
                found.append(f"{name}: depends on {other}, which is no service")
            elif condition["condition"] == "service_healthy" and (
                "healthcheck" not in services[other]
            ):
                found.append(f"{name}: waits for the health of {other}, which has no check")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith((".", "/")) and source not in document.get("volumes", {}):
                found.append(f"{name}: volume {source} is not defined")
        found += [
            f"{name}: {kind[:-1]} {entry} is not defined"
            for kind in ("secrets", "configs", "networks")
            for entry in service.get(kind, [])
            if entry not in document.get(kind, {})
        ]
        found += [
            f"{name}: port {port} is open to other machines"
            for port in service.get("ports", [])
            if not str(port).startswith("127.0.0.1:")
        ]
        if service.get("network_mode") == "host":
            found.append(f"{name}: opens every port to other machines")
        found += [
            f"{name}: {variable} has a value or a default in the file"
            for variable, value in service.get("environment", {}).items()
            if SECRET_NAME.search(variable) and not REQUIRED_VARIABLE.fullmatch(str(value))
        ]
        found += [
            f"{name}: a secret in its command line"
            for word in service.get("command", [])
            if re.search(r"://[^@/]*:[^@/]*@", word) or SECRET_NAME.search(word)
        ]
        if "optuna-dashboard" in image and "default_transaction_read_only=on" not in str(
            service.get("environment", {}).get("PGOPTIONS")
        ):
            found.append(f"{name}: every visitor may write")
    return found


def test_it_is_a_valid_compose_file():
    done = check_schema(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_check_can_fail(tmp_path):
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:"))
    assert check_schema(broken).returncode == 1


def test_it_is_sound():
    assert problems(load()) == []


BREAKAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "tag": (lambda s: s["dashboard"].update(image="optuna-dashboard"), "not pinned"),
    "latest": (lambda s: s["dashboard"].update(image="optuna-dashboard:latest"), "not pinned"),
    "service": (lambda s: s["dashboard"].update(depends_on={"db": {}}), "no service"),
    "health": (lambda s: s["database"].pop("healthcheck"), "has no check"),
    "volume": (lambda s: s["database"].update(volumes=["data:/data"]), "not defined"),
    "secret": (lambda s: s["database"].update(secrets=["password"]), "not defined"),
    "port": (lambda s: s["dashboard"].update(ports=["8080:8080"]), "other machines"),
    "any address": (lambda s: s["dashboard"].update(ports=["0.0.0.0:8080:8080"]), "other machines"),
    "password": (lambda s: s["database"]["environment"].update(POSTGRES_PASSWORD="x"), "default"),
    "default": (
        lambda s: s["database"]["environment"].update(POSTGRES_PASSWORD="${P:-sweep}"),
        "default",
    ),
    "writable": (lambda s: s["dashboard"]["environment"].pop("PGOPTIONS"), "may write"),
    "command": (
        lambda s: s["dashboard"].update(command=["postgresql://u:${P}@database/sweep"]),
        "command line",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_unsound_is_found(name):
    break_it, words = BREAKAGES[name]
    document = copy.deepcopy(load())
    break_it(document["services"])
    assert len(found := problems(document)) == 1
    assert words in found[0]


def test_every_variable_is_in_the_example_and_none_of_its_secrets_has_a_value():
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    example = (ROOT / ".env.example").read_text()
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, flags=re.MULTILINE))
    assert used == set(named)
    assert [value for name, value in named.items() if SECRET_NAME.search(name)] == [""]
