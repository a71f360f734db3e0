"""Every setting, read from the environment."""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import AliasChoices, Field, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The project's settings. Times are seconds."""

    model_config = SettingsConfigDict(env_prefix="GRAPH_MIGRATOR_", frozen=True, extra="ignore")

    database_url: str = Field(
        "postgresql://localhost/graphs",
        validation_alias=AliasChoices("database_url", "DATABASE_URL"),
        description="Postgres, where graphs, migrations and audit rows live.",
    )
    broker_url: str = Field(
        "redis://localhost:6379/0",
        validation_alias=AliasChoices("broker_url", "CELERY_BROKER_URL"),
        description="Celery's broker. It only wakes workers up; it may be wiped at any time.",
    )
    result_backend: str = Field(
        "redis://localhost:6379/1",
        validation_alias=AliasChoices("result_backend", "CELERY_RESULT_BACKEND"),
        description="Where Celery keeps results for callers that wait.",
    )
    types: str = Field("", description="Graph types to load, comma-separated `module:attribute`.")
    queue: str = Field("migrations", description="The Celery queue of all our tasks.")
    writer_drain_seconds: PositiveFloat = Field(
        10, description="How long begin waits for open write transactions before it is refused."
    )
    deadline_seconds: PositiveFloat = Field(
        30, description="Without progress for this long, recovery redelivers; doubles with each redelivery."
    )
    deadline_max_seconds: PositiveFloat = Field(
        600, description="The longest pause between two redeliveries."
    )
    sweep_seconds: PositiveFloat = Field(0.5, description="Pause between two recovery sweeps of a worker.")
    max_crashes: PositiveInt = Field(
        3,
        description="A hop whose process died this often, while its worker lived on, fails its migration.",
    )
    max_interruptions: PositiveInt = Field(
        20,
        description="A hop that lost its whole worker or its session this often fails its migration; it pauses "
        "between them, up to 5 minutes.",
    )
    max_transient_tries: PositiveInt = Field(
        8, description="A hop that met a transient error this often fails."
    )
    deploy_seconds: PositiveFloat = Field(
        900,
        description="How long a call or a hop waits for a worker with the code that it needs, as in a rolling deploy.",
    )
    quiet_seconds: PositiveFloat = Field(
        300,
        description="A running hop without a commit or a statement for this long is named as perhaps stuck.",
    )
    watch_seconds: PositiveFloat = Field(
        5,
        description="How often a pool process looks whether a long hop is still its own; it ends itself where not.",
    )
    hop_timeout_seconds: PositiveFloat | None = Field(
        None,
        description="The `timeout=` of hops that declare none, for all batches together; none by default.",
    )
    retry_base_seconds: PositiveFloat = Field(
        0.2, description="First pause after a transient error; doubles with each try, with jitter."
    )
    retry_max_seconds: PositiveFloat = Field(30, description="The longest pause after a transient error.")
    batch_target_seconds: PositiveFloat = Field(
        1.0, description="Batched hops adapt their batch size towards this time per batch."
    )

    max_shards_per_graph: PositiveInt = Field(
        16, description="Shards of one graph that are in flight at a time."
    )
    max_shards: PositiveInt = Field(
        64,
        description="Shards in flight at a time, of all graphs; never more than live workers have processes. Each "
        "graph may have one in any case.",
    )

    health_limits: dict[str, tuple[float | None, float | None]] = Field(
        {},
        description='Other limits of health signals, slow and stop, as JSON: `{"lock_waiters": [20, null]}`.',
    )
    health_sql: str = Field(
        "",
        description="A query that gives one number: the health signal `custom`. It needs limits to do anything.",
    )

    log_format: Literal["text", "json"] = Field(
        "text", description="A worker's log: lines for people, or one JSON object a line."
    )
    celery_events: Literal["flower", "all"] = Field(
        "flower", description="What goes over the broker for monitors: what Flower shows, or every event."
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="Serve Prometheus metrics on this port of each worker."
    )
    metrics_address: str = Field(
        "127.0.0.1", description="Where to serve them; `0.0.0.0` for a scraper on another machine."
    )

    signing_key: str = Field(
        "", description="PEM file of this process's private key; with it, only signed messages are taken."
    )
    signing_certificate: str = Field("", description="PEM file of the certificate that belongs to the key.")
    signing_trusted: str = Field("", description="Certificates whose messages are taken: `/folder/*.pem`.")

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, url: str) -> str:
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3; this project is built on psycopg2. A URL that is
        # shared with an application may name psycopg 3, whose parameters are the same.
        scheme, separator, rest = url.partition("://")
        ours = scheme in {"postgres", "postgresql", "postgresql+psycopg"} and separator
        return f"postgresql+psycopg2://{rest}" if ours else url


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
