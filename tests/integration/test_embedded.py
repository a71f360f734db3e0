"""The private servers: they start anywhere, for anybody, and never outlive whoever started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from graph_migrator.core.embedded import EmbeddedUnavailable, Postgres, Redis
from graph_migrator.core.embedded import postgres as postgres_module
from graph_migrator.core.embedded import redis as redis_module
from graph_migrator.core.embedded import server as server_module

ROOT = Path(__file__).parents[2]

OWNER = """
    import sys
    from graph_migrator.core.embedded import Postgres, Redis

    with Postgres(durable=False) as postgres, Redis() as redis:
        print(postgres.pid, redis.pid, postgres.folder, redis.folder, flush=True)
        sys.stdin.read()
"""


def ask(url, statement):
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def wait_until(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


def gone(process):
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def owner():
    """A Python process that owns a Postgres and a Redis; the processes and folders that must go with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = process.stdout.readline().split()
    servers = [psutil.Process(int(pid)) for pid in line[:2]]
    family = [*servers, *(child for server in servers for child in server.children(recursive=True))]
    assert len(family) > len(servers), "Postgres has processes of its own"
    yield process, family, [Path(folder) for folder in line[2:]]
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_postgres_answers_by_its_url_and_stops():
    with Postgres(durable=False) as postgres:
        server, folder = psutil.Process(postgres.pid), postgres.folder
        assert ask(postgres.url, "SELECT current_user") == [("postgres",)]
        assert folder.stat().st_mode & 0o077 == 0
    assert gone(server)
    assert not folder.exists()


def test_redis_answers_by_its_url_and_stops():
    with Redis() as server:
        process, folder = psutil.Process(server.pid), server.folder
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
            assert client.config_get("save") == {"save": ""}
        assert folder.stat().st_mode & 0o077 == 0
    assert gone(process)
    assert not folder.exists()


def test_postgres_keeps_fsync_on_unless_asked_otherwise():
    with Postgres() as postgres:
        assert ask(postgres.url, "SHOW fsync") == [("on",)]
        assert ask(postgres.url, "SHOW client_connection_check_interval") == [("500ms",)]
        assert ask(postgres.url, "SHOW max_prepared_transactions") == [("10",)]


def test_a_wrong_password_is_refused():
    with Postgres(durable=False) as postgres, Redis() as server:
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(postgres.url.replace("postgres:", "postgres:not-"))
        with (
            redis.Redis.from_url(server.url.replace("//:", "//:not-")) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()


def test_only_loopback_listens():
    with Postgres(durable=False) as postgres, Redis() as server:
        for pid in (postgres.pid, server.pid):
            listening = [c for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
            assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_two_at_once_have_ports_of_their_own():
    with Postgres(durable=False) as one, Postgres(durable=False) as two, Redis() as three, Redis() as four:
        assert len({one.port, two.port, three.port, four.port}) == 4


def test_a_port_that_was_taken_meanwhile_costs_another_try(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        taken = squatter.getsockname()[1]
        ports = iter([taken, taken, server_module.free_port(), server_module.free_port()])
        monkeypatch.setattr(server_module, "free_port", lambda: next(ports))
        with Postgres(durable=False) as postgres:
            assert postgres.port != taken
            assert ask(postgres.url, "SELECT 1") == [(1,)]


def test_restart_keeps_port_and_data_of_postgres():
    with Postgres(durable=False) as postgres:
        url = postgres.url
        ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
        postgres.restart()
        assert postgres.url == url
        assert ask(url, "SELECT n FROM kept") == [(7,)]


def test_a_killed_postgres_comes_back_with_what_was_committed():
    with Postgres() as postgres:
        ask(postgres.url, "CREATE TABLE kept AS SELECT 7 AS n")
        with closing(psycopg2.connect(postgres.url)):  # its process outlives the postmaster for a moment
            postgres.kill()
            postgres.start()
        assert ask(postgres.url, "SELECT n FROM kept") == [(7,)]


def test_a_folder_of_ones_own_is_kept(tmp_path):
    with Postgres(tmp_path / "a folder", durable=False) as postgres:
        ask(postgres.url, "CREATE TABLE kept AS SELECT 7 AS n")
    with Postgres(tmp_path / "a folder", durable=False) as postgres:
        assert ask(postgres.url, "SELECT n FROM kept") == [(7,)]


def test_postgres_lives_below_a_folder_that_only_we_may_enter(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Postgres(closed / "postgres", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == [(1,)]


def test_a_first_start_that_was_interrupted_begins_again(tmp_path):
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")  # initdb writes it early
    with Postgres(tmp_path / "postgres", durable=False) as postgres:
        assert ask(postgres.url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(("empty", "found"), [(True, None), (False, b"here")])
def test_redis_restarts_empty_unless_asked_otherwise(tmp_path, empty, found):
    with Redis(tmp_path / 'with "quotes" and spaces') as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("message", "here")
        server.restart(empty=empty)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("message") == found


def test_redis_flushes():
    with Redis() as server, redis.Redis.from_url(server.url) as client:
        client.set("message", "here")
        server.flush()
        assert client.get("message") is None


def test_an_error_in_the_owner_stops_the_servers():
    with pytest.raises(ZeroDivisionError), Postgres(durable=False) as postgres, Redis() as server:  # noqa: PT012 - the error has to come while they run
        processes = [psutil.Process(postgres.pid), psutil.Process(server.pid)]
        folders = [postgres.folder, server.folder]
        _ = 1 / 0
    assert all(gone(process) for process in processes)
    assert not any(folder.exists() for folder in folders)


def test_ctrl_c_on_the_owner_leaves_no_process_and_no_folder(owner):
    process, family, folders = owner
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    process.wait(70)  # each server has 30 seconds to stop before it is killed
    wait_until(lambda: all(map(gone, family)), "all servers gone")
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_leaves_no_process(owner, how):
    process, family, _ = owner
    process.send_signal(how)
    process.wait(20)
    wait_until(lambda: all(map(gone, family)), "all servers gone")


def test_what_a_killed_owner_left_is_removed_by_the_next_one(owner):
    process, family, folders = owner
    process.kill()
    process.wait()
    wait_until(lambda: all(map(gone, family)), "all servers gone")
    assert all(folder.exists() for folder in folders)
    for folder in folders:
        os.utime(folder, (0, 0))
    Redis().close()
    assert not any(folder.exists() for folder in folders)


def test_the_folder_of_a_living_owner_is_left_alone(owner):
    _, _, folders = owner
    for folder in folders:
        os.utime(folder, (0, 0))
    Redis().close()
    assert all(folder.exists() for folder in folders)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are run by an ordinary user already")
def test_an_ordinary_user_can_run_them():
    script = """
        import encodings.idna, os, shutil, sys  # idna: Python itself may lie below /root, too
        from pathlib import Path
        import graph_migrator.core.embedded.postgres, graph_migrator.core.embedded.redis
        from graph_migrator.core.embedded import Postgres, Redis
        from graph_migrator.core.embedded.server import unprivileged_user

        user = unprivileged_user()
        # What is installed below /root stays closed to others, so they get programs that they can read.
        postgres_programs = graph_migrator.core.embedded.postgres.postgres_programs(user)
        redis_program = shutil.copy(graph_migrator.core.embedded.redis.redis_program(), sys.argv[1])
        os.setgroups([]), os.setgid(user.pw_gid), os.setuid(user.pw_uid)
        graph_migrator.core.embedded.postgres.postgres_programs = lambda user: postgres_programs
        graph_migrator.core.embedded.redis.redis_program = lambda: redis_program

        folder = Path(sys.argv[1])
        with Postgres(folder / "postgres") as postgres, Redis(folder / "redis") as redis:
            owners = {os.stat(f"/proc/{server.pid}").st_uid for server in (postgres, redis)}
            assert owners == {user.pw_uid}, owners
        print("well")
    """
    # Not below tmp_path: pytest closes the folder above it to others whenever any session starts.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "well\n", done.stderr


def test_programs_below_a_closed_folder_are_copied_for_the_other_user(tmp_path, monkeypatch):
    user = server_module.unprivileged_user()
    installed = postgres_module.postgres_programs(None).parent
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(postgres_module.tempfile, "tempdir", folder)
        copy = postgres_module._copied(installed)
        assert Path(folder) in copy.parents
        (copy / "bin" / "initdb").unlink()  # as a program does that tidies /tmp
        assert postgres_module._copied(installed) == copy
        for program in ("postgres", "initdb"):
            said = subprocess.run(
                [copy / "bin" / program, "--version"],
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                env={},
                capture_output=True,
                text=True,
                check=True,
            )
            assert "PostgreSQL" in said.stdout
        monkeypatch.setattr(postgres_module, "postgres_programs", lambda user: copy / "bin")
        with Postgres(tmp_path / "cluster", durable=False) as postgres:
            assert ask(postgres.url, "SELECT 1") == [(1,)]


def test_a_stranger_in_place_of_the_copy_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(postgres_module.tempfile, "tempdir", str(tmp_path))
    installed = postgres_module.postgres_programs(None).parent
    postgres_module._copied(installed)
    [copy] = tmp_path.iterdir()
    copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedUnavailable, match="not ours"):
        postgres_module._copied(installed)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(postgres_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedUnavailable, match=r"pip install 'graph-migrator\[embedded\]'"):
        Postgres()
    monkeypatch.setattr(redis_module.shutil, "which", lambda name: None)
    with pytest.raises(EmbeddedUnavailable, match=r"pip install 'graph-migrator\[embedded\]'"):
        Redis()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(server_module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EmbeddedUnavailable, match="unrecognized configuration parameter"):
        Postgres(settings={"no_such_setting": "1"}).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["before", "after_in_parent"])
@pytest.mark.parametrize("server", ["Redis", "Postgres"])
def test_ctrl_c_while_a_server_is_forked_is_not_lost(server: str, moment: str) -> None:
    """Python calls hooks around a fork; what a handler raises within one goes to nobody."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED).format(server=server, moment=moment)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, ""), done.stderr


INTERRUPTED = """
    import os, signal, sys
    from graph_migrator.core.embedded import {server}

    def interrupted(*_):
        sys.exit(130)

    signal.signal(signal.SIGINT, interrupted)
    os.register_at_fork({moment}=lambda: os.kill(os.getpid(), signal.SIGINT))
    with {server}():
        print("started")
"""


@pytest.mark.parametrize("server", ["Redis", "Postgres"])
def test_a_server_that_was_forked_when_ctrl_c_came_is_ended(server: str) -> None:
    """Nobody has heard of it yet, so nobody else can end it."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED).format(server=server)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "interrupted, 0 left\n"), done.stderr


FORKED = """
    import os, signal, psutil
    from graph_migrator.core.embedded import {server}

    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        with {server}():
            print("started")
    except KeyboardInterrupt:
        print("interrupted,", len(psutil.Process().children()), "left")
"""
