"""With signing switched on, a worker carries out what a trusted key has signed, and nothing else."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from graph_migrator.core.embedded import Redis
from tests.acceptance.cluster import ROOT, Cluster, _inherited
from tests.rows import dump, graph_row, rows
from tests.waiting import until

CALL = "from tasks import migrate_graph; print(migrate_graph.delay('g', 2).get(timeout=60).version)"


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its self-signed certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    key_file, certificate_file = folder / f"{name}.key", folder / f"{name}.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


def signing(folder: Path, name: str, trusted: Path) -> dict[str, str]:
    key, certificate = make_key(folder, name)
    return {
        "GRAPH_MIGRATOR_SIGNING_KEY": str(key),
        "GRAPH_MIGRATOR_SIGNING_CERTIFICATE": str(certificate),
        "GRAPH_MIGRATOR_SIGNING_TRUSTED": str(trusted / "*.pem"),
    }


def run(cluster: Cluster, code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**_inherited(), **cluster.environment, **env}, cwd=ROOT,
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip


@pytest.mark.timeout(180)
def test_only_signed_messages_are_carried_out(tmp_path: Path, database_url: str, redis_server: Redis) -> None:
    trusted, stranger = tmp_path / "trusted", tmp_path / "stranger"
    trusted.mkdir()
    stranger.mkdir()
    ours = signing(trusted, "ours", trusted)
    theirs = signing(stranger, "theirs", stranger)
    with Cluster(tmp_path / "c", database_url=database_url, redis=redis_server) as cluster:
        worker = cluster.start_worker(concurrency=1, env=ours)
        cluster.add_graph("g", "trail")
        before = dump(cluster.engine)
        send = CALL.replace(".get(timeout=60).version", ".id")
        assert run(cluster, send, {}).returncode == 0  # unsigned
        assert run(cluster, send, theirs).returncode == 0  # signed by a stranger
        until(lambda: cluster.queue_length() == 0, "both messages taken")
        until(
            lambda: worker.text().count("Discarding") + worker.text().count("ContentDisallowed") >= 1,
            "refused",
        )
        assert dump(cluster.engine) == before

        signed = run(cluster, CALL, ours)
        assert signed.stdout.strip() == "2", signed.stderr
        assert graph_row(cluster.engine, "g").version == 2
        assert len(rows(cluster.engine, "SELECT * FROM requests")) == 1  # they came first, and left nothing
        workers = run(
            cluster,
            "from graph_migrator.tasks.fleet import look_at_fleet; print(*look_at_fleet().workers)",
            ours,
        )
        assert workers.stdout.strip() == "w1@localhost", workers.stderr
        assert worker.is_alive
