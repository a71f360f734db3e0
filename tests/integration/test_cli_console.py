"""`graph-migrator console` and its tokens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from graph_migrator.core.access import tokens
from graph_migrator.core.embedded import Redis, free_port
from tests.acceptance.cluster import ROOT, Cluster
from tests.integration.console import call
from tests.waiting import until


@pytest.fixture
def here(tmp_path: Path, database_url: str, redis_server: Redis) -> Cluster:  # type: ignore[misc] # a generator
    with Cluster(tmp_path, database_url=database_url, redis=redis_server) as cluster:
        yield cluster  # type: ignore[misc]


def test_a_token_is_shown_once_listed_and_revoked(here: Cluster) -> None:
    made = call("console", "token", "create", "ada", "--role", "operator", "--days", 7)
    secret = made.out.strip()
    assert made.exit_code == 0
    assert secret.startswith("gmt_")
    assert "ada is an operator until" in made.err
    assert tokens.identify(here.engine, secret) == tokens.Identity(name="ada", role=tokens.Role.OPERATOR)
    listed = call("console", "token", "list").out
    assert "ada" in listed
    assert "valid" in listed
    assert secret not in listed
    taken = call("console", "token", "create", "ada")
    assert (taken.exit_code, "already" in taken.err) == (2, True)
    assert call("console", "token", "revoke", "ada").exit_code == 0
    assert tokens.identify(here.engine, secret) is None
    assert "revoked" in call("console", "token", "list").out
    assert call("console", "token", "revoke", "ada").exit_code == 2
    assert call("console", "token", "create", "ada").exit_code == 0


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101, "\x1b[31m"])
def test_a_name_that_cannot_stand_in_the_audit_is_refused(here: Cluster, name: str) -> None:
    assert call("console", "token", "create", name).exit_code == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org"])
def test_without_authentication_it_does_not_start_on_other_addresses(here: Cluster, host: str) -> None:
    refused = call("console", "--auth", "none", "--host", host)
    assert refused.exit_code == 2
    assert "this machine alone" in refused.err


def test_a_proxy_that_is_no_network_is_refused(here: Cluster) -> None:
    assert call("console", "--auth", "proxy", "--proxy", "everybody").exit_code == 2


def test_a_port_that_is_taken_is_named(here: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = call("console", "--port", taken.getsockname()[1])
    assert refused.exit_code == 2
    assert "in use" in refused.err


def test_it_serves_until_it_is_asked_to_end(here: Cluster) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "graph_migrator", "console", "--auth", "none", "--port", str(port)],
        cwd=ROOT, env={**os.environ, **here.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}/" in process.stdout.readline()

        def answers() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                    return str(answer.read())
            except OSError:
                return ""

        assert "Wrong now" in until(answers, "it answers")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) in {(0, ""), (-signal.SIGTERM, ""), (128 + signal.SIGTERM, "")}
    finally:
        process.kill()
        process.wait()
