"""docker-compose.yml and Dockerfile: what they promise, and that every service's command does its job.

The commands run as processes of this machine, with the services' environment; only hosts and ports are
those of private servers instead of containers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from graph_migrator import celeryconfig
from graph_migrator.core.embedded import Postgres, Redis, free_port
from graph_migrator.core.embedded.redis import redis_program
from tests.acceptance.compose import ROOT, Running, Unset, interpolated, load
from tests.waiting import until

PASSWORDS = {
    name: secrets.token_hex(12) for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "FLOWER_PASSWORD")
}
SERVICES = ("postgres", "redis", "schema", "worker", "flower", "console")
OURS = ("schema", "worker", "flower", "console")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(PASSWORDS)


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return float(found[1])


# ── what the file says ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("${A}", "1"),
        ("$A-$B", "1-"),
        ("${B:-x}${B-x}${A:-x}", "x1"),
        ("${C-x}", "x"),
        ("$$A and $${A}", "$A and ${A}"),
        ("${A:?needed}", "1"),
    ],
)
def test_variables_are_replaced_as_compose_does(text: str, becomes: str) -> None:
    assert interpolated({"k": [text]}, {"A": "1", "B": ""}) == {"k": [becomes]}


def test_the_services_are_those_that_are_needed(compose: dict[str, Any]) -> None:
    assert tuple(compose["services"]) == SERVICES


@pytest.mark.parametrize("missing", PASSWORDS)
@pytest.mark.parametrize("as_", ["unset", "empty"])
def test_nothing_starts_without_a_password_of_ones_own(missing: str, as_: str) -> None:
    given = PASSWORDS | {missing: ""}
    if as_ == "unset":
        del given[missing]
    with pytest.raises(Unset, match=missing):
        load(given)


def test_the_example_names_every_variable_and_gives_no_password() -> None:
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert set(example) == used
    assert {name for name, value in example.items() if not value} == set(PASSWORDS)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert ".env" in ignored


def test_no_port_is_reachable_from_outside(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 5
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
    assert not any(service.get("network_mode") for service in compose["services"].values())


def test_passwords_stand_in_environments_only(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        rest = json.dumps({key: value for key, value in service.items() if key != "environment"})
        for password in PASSWORDS.values():
            assert password not in rest, name
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"PASSWORD:[-?]?[^?}\s]*[-][^?}]", text)  # no default for a password


def test_images_are_pinned_and_ours_is_built_here(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.search(r":\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), name
        assert ("build" in service) == (name in OURS)
    assert compose["services"]["postgres"]["image"].startswith("postgres:18.")


def test_the_worker_waits_for_the_schema_and_the_broker(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["worker"]["depends_on"] == {
        "schema": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    assert services["schema"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["schema"]["restart"] == "no"
    for name in set(SERVICES) - {"schema"}:
        assert services[name]["restart"] == "unless-stopped"
        assert services[name]["healthcheck"]["test"]


def test_a_worker_has_time_to_put_its_messages_back(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert worker["environment"]["REMAP_SIGTERM"] == "SIGQUIT"
    assert worker["stop_signal"] == "SIGTERM"
    assert seconds(worker["stop_grace_period"]) >= celeryconfig.worker_soft_shutdown_timeout + 10


def test_containers_have_no_more_rights_than_they_need(compose: dict[str, Any]) -> None:
    for name in OURS:
        service = compose["services"][name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert not service.get("privileged")


def test_the_image_is_slim_pinned_staged_and_not_root() -> None:
    lines = [
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert re.fullmatch(r"ARG PYTHON=3\.\d+\.\d+-slim-bookworm", lines[0])
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages == ["FROM python:${PYTHON} AS build", "FROM python:${PYTHON}"]
    last = lines[lines.index(stages[1]) :]
    (user,) = (line for line in last if line.startswith("USER "))
    assert user.split()[1] not in {"root", "0"}
    assert not any("pip install" in line for line in last)
    assert "COPY . " not in "\n".join(lines)
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", "\n".join(lines), re.MULTILINE):
        for each in source.split():
            assert (ROOT / each).exists(), each
            assert f"!{each}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_images_own_command_is_the_workers(compose: dict[str, Any]) -> None:
    command = (ROOT / "Dockerfile").read_text().rstrip().splitlines()[-1]
    assert command == f"CMD {json.dumps(compose['services']['worker']['command'])}"


def test_compose_itself_reads_the_file() -> None:
    """Where its program is installed; it needs no engine for that."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        assert load(PASSWORDS)  # this project's own reading stands alone then
        return
    answer = subprocess.run(
        [docker, "compose", "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **PASSWORDS},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    ours = load(PASSWORDS)["services"]
    for name, service in json.loads(answer.stdout)["services"].items():
        unescaped = [word.replace("$$", "$") for word in service["command"]]
        assert unescaped == ours[name]["command"]
        assert service["environment"] == ours[name]["environment"]


# ── what the services do ────────────────────────────────────────────────────────────────────────────


class Stack:
    """All services, one after the other as Compose starts them, as processes of this machine."""

    def __init__(self, compose: dict[str, Any], folder: Path, stack: ExitStack) -> None:
        self.services = compose["services"]
        self.folder = folder
        self.stack = stack
        self.ports = {name: free_port() for name in ("redis", "flower", "metrics", "console")}
        self.moved: dict[str, str] = {}

    def run(self, name: str, **moved: str) -> Running:
        running = Running(name, self.services[name], self.moved | moved, self.folder)
        self.stack.callback(running.end)
        return running

    def healthy(self, name: str, running: Running) -> bool:
        """Run the service's own health check, where the service is."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        words = ["sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        for there, here in self.moved.items():
            words = [word.replace(there, here) for word in words]
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **running.environment}
        environment["HOME"] = str(self.folder)
        return not subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, timeout=60
        ).returncode


@pytest.mark.timeout(240)
def test_the_main_job_succeeds_through_every_services_command(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        up = Stack(compose, tmp_path, stack)
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "redis-server").symlink_to(redis_program())

        # postgres: the image's own entry point makes the role and the database from the environment.
        service = up.services["postgres"]
        options = dict(option.split("=", 1) for option in service["command"][2::2])
        postgres = stack.enter_context(Postgres(durable=False, settings=options))
        shown = service["environment"]
        with psycopg2.connect(postgres.url) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"CREATE ROLE {shown['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD %s",
                (shown["POSTGRES_PASSWORD"],),
            )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {shown['POSTGRES_DB']} OWNER {shown['POSTGRES_USER']}")
        connection.close()

        up.moved = {
            "@postgres:5432": f"@127.0.0.1:{postgres.port}",
            "@redis:6379": f"@127.0.0.1:{up.ports['redis']}",
            "0.0.0.0": "127.0.0.1",
            "9464": str(up.ports["metrics"]),
            "5555": str(up.ports["flower"]),
            "8080": str(up.ports["console"]),
        }

        # redis
        redis = up.run("redis", **{
            "port 6379": f"bind 127.0.0.1\\nport {up.ports['redis']}", "redis-server": f"{programs}/redis-server",
        })  # fmt: skip
        reader = Redis(tmp_path / "reader")  # never started: only asks
        reader.port = up.ports["redis"]
        until(lambda: b"NOAUTH" in reader.ask("PING"), "redis asks for its password")
        assert reader.ask(f"AUTH {PASSWORDS['REDIS_PASSWORD']}", "PING").endswith(b"+PONG\r\n")
        in_the_process_list = Path(f"/proc/{redis.process.pid}/cmdline")
        if in_the_process_list.exists():
            assert PASSWORDS["REDIS_PASSWORD"] not in in_the_process_list.read_text()

        # schema, and again, as after every restart of the stack
        for said in ("went from nothing", "already"):
            schema = up.run("schema")
            assert schema.process.wait(60) == 0, schema.text()
            assert said in schema.text()

        # worker
        worker = up.run("worker")
        until(lambda: "ready." in worker.text() or worker.process.poll() is not None, "worker", seconds=60)
        assert worker.process.poll() is None, worker.text()
        assert up.healthy("worker", worker), worker.text()

        # flower
        flower = up.run("flower")
        page = f"http://127.0.0.1:{up.ports['flower']}"
        until(lambda: up.healthy("flower", flower), "flower", seconds=60, pause=0.3)
        assert http(page + "/api/workers")[0] == 401
        assert http(page + "/")[0] == 401
        known = until(
            lambda: json.loads(http(page + "/api/workers?refresh=1", PASSWORDS["FLOWER_PASSWORD"])[1]),
            "Flower knows the worker",
            seconds=40,
        )
        assert [name.partition("@")[0] for name in known] == ["worker"]

        # console
        console = up.run("console")
        until(lambda: up.healthy("console", console), "console", seconds=60, pause=0.3)
        assert http(f"http://127.0.0.1:{up.ports['console']}/api/v1/overview")[0] == 401

        # the main job, by the command line that `docker compose exec worker` reaches
        def cli(*words: str, stdin: str | None = None) -> str:
            done = subprocess.run(
                [str(Path(sys.executable).parent / "graph-migrator"), *words],
                cwd=ROOT,
                env={"PATH": os.environ["PATH"], **worker.environment},
                input=stdin,
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{worker.text()[-3_000:]}"
            return done.stdout

        graph = tmp_path / "graph.json"
        graph.write_text(
            json.dumps(
                {
                    "nodes": [{"id": f"n{i}"} for i in range(3)],
                    "edges": [{"source": "n0", "target": "n1"}, {"source": "n1", "target": "n2"}],
                }
            )
        )
        cli("import", str(graph), "--slug", "novel", "--type", "knowledge", "--version", "1")
        cli("migrate", "novel", "--to", "3", "--wait")
        assert json.loads(cli("status", "novel", "--json"))["graph"]["version"] == 3

        # what watches it
        lines = [json.loads(line) for line in worker.text().splitlines() if line.startswith("{")]
        assert [line["status"] for line in lines if line.get("event") == "migration_finished"] == [
            "succeeded"
        ]
        metrics = http(f"http://127.0.0.1:{up.ports['metrics']}/metrics")[1]
        assert 'graph_migrator_migrations{graph_type="knowledge",status="succeeded"} 1.0' in metrics
        rows = json.loads(http(page + "/api/tasks", PASSWORDS["FLOWER_PASSWORD"])[1]).values()
        assert "novel v1→v2 name_the_relation" in {row["args"] for row in rows}

        # `docker compose stop`
        how = signal.Signals[up.services["worker"]["stop_signal"]]
        assert worker.stop(how, seconds(up.services["worker"]["stop_grace_period"])) == 0, worker.text()[
            -3_000:
        ]


def http(url: str, password: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url)
    if password is not None:
        token = base64.b64encode(f"operator:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


@pytest.fixture(autouse=True)
def _nothing_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*PASSWORDS, "DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"]:
        monkeypatch.delenv(name, raising=False)
