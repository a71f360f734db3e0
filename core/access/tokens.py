"""API tokens and browsers' sessions. Postgres keeps their digests; the texts exist where they are used.

A token has 256 random bits, so one SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from graph_migrator.core.errors import InvalidRequest

PREFIX: Final = "gmt_"
"""Every token begins with it, so that scanners of repositories find one that was committed."""
SESSION_HOURS: Final = 12
_LONGEST_NAME: Final = 100


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class Identity(BaseModel):
    """Who sends a request."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What stands in `requested_by` of what is asked for.")
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this one may do what needs `role`."""
        return role is Role.VIEWER or self.role is Role.OPERATOR


class Token(BaseModel):
    """One API token, without its text."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    name: str
    role: Role
    created_by: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = Field(description="The last use, to the minute.")

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)


def create_token(
    engine: Engine, name: str, role: Role, *, days: int | None = None, by: str | None = None
) -> tuple[Token, str]:
    """Make a token.

    Args:
        engine: The database.
        name: Who uses it; it stands in `requested_by`. One valid token of a name at a time.
        role: What it may do.
        days: How long it is valid; None for ever.
        by: Who makes it.

    Returns:
        The token, and its text, which cannot be had again.

    Raises:
        InvalidRequest: The name is empty, too long or taken, or `days` is out of range.
    """
    if not name.isprintable() or not 1 <= len(name.strip()) <= _LONGEST_NAME:
        raise InvalidRequest("name", f"it has 1 to {_LONGEST_NAME} printable characters")
    if days is not None and not 1 <= days <= 3650:
        raise InvalidRequest("days", "it is a number from 1 to 3650")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        with engine.begin() as connection:
            row = connection.execute(
                text(
                    "INSERT INTO graph_migrator.api_tokens (id, name, role, digest, created_by, expires_at) VALUES "  # noqa: S608 - own names
                    "(:id, :name, :role, :digest, :by, clock_timestamp() + make_interval(days => :days)) "
                    f"RETURNING {_COLUMNS}"
                ),
                {
                    "id": uuid4(),
                    "name": name.strip(),
                    "role": role,
                    "digest": _digest(secret),
                    "by": by,
                    "days": days,
                },
            ).mappings().one()  # fmt: skip
    except IntegrityError:
        raise InvalidRequest(
            "name", f"there is a valid token {name!r} already; revoke it, or choose another name"
        ) from None
    return Token.model_validate(dict(row)), secret


def list_tokens(source: Engine) -> list[Token]:
    """All tokens, also expired and revoked ones, the latest first."""
    with source.connect() as connection:
        rows = connection.execute(
            text(f"SELECT {_COLUMNS} FROM graph_migrator.api_tokens ORDER BY created_at DESC")  # noqa: S608 - own names
        ).mappings()
        return [Token.model_validate(dict(row)) for row in rows]


def revoke_token(engine: Engine, which: str, *, by: str | None = None) -> Token:
    """End a token, and with it every session that was opened with it.

    Args:
        engine: The database.
        which: The name of a valid token, or an id.
        by: Who revokes it.

    Raises:
        InvalidRequest: There is no valid token of this name or id.
    """
    with engine.begin() as connection:
        row = connection.execute(
            text(
                f"UPDATE graph_migrator.api_tokens SET revoked_at = clock_timestamp(), revoked_by = :by "  # noqa: S608 - own names
                f"WHERE revoked_at IS NULL AND (name = :which OR id::text = :which) RETURNING {_COLUMNS}"
            ),
            {"which": which, "by": by},
        ).mappings().one_or_none()  # fmt: skip
        if row is None:
            raise InvalidRequest(
                "token", f"there is no valid token {which!r}; `console token list` names them"
            )
        connection.execute(
            text("DELETE FROM graph_migrator.api_sessions WHERE token_id = :id"), {"id": row["id"]}
        )
    return Token.model_validate(dict(row))


def identify(engine: Engine, token: str) -> Identity | None:
    """Who has this token; None where nobody has, or it is not valid any more."""
    with engine.begin() as connection:
        return _identity(connection, "t.digest = :digest", _digest(token))


def open_session(engine: Engine, token: str) -> tuple[Identity, str] | None:
    """Log in with a token.

    Returns:
        Who logged in, and the session's text for the cookie; None where the token is not valid.
    """
    with engine.begin() as connection:
        who = _identity(connection, "t.digest = :digest", _digest(token))
        if who is None:
            return None
        session = secrets.token_urlsafe(32)
        connection.execute(
            text(
                "INSERT INTO graph_migrator.api_sessions (digest, token_id, expires_at) "
                "SELECT :session, t.id, least(t.expires_at, clock_timestamp() + make_interval(hours => :hours)) "
                "FROM graph_migrator.api_tokens t WHERE t.digest = :digest"
            ),
            {"session": _digest(session), "digest": _digest(token), "hours": SESSION_HOURS},
        )
        connection.execute(
            text("DELETE FROM graph_migrator.api_sessions WHERE expires_at < clock_timestamp()")
        )
    return who, session


def identify_session(engine: Engine, session: str) -> Identity | None:
    """Who has this session; None where it has ended, or its token is not valid any more."""
    which = (
        "t.id = (SELECT s.token_id FROM graph_migrator.api_sessions s "
        "WHERE s.digest = :digest AND s.expires_at > clock_timestamp())"
    )
    with engine.begin() as connection:
        return _identity(connection, which, _digest(session))


def end_session(engine: Engine, session: str) -> None:
    """Log out."""
    with engine.begin() as connection:
        connection.execute(
            text("DELETE FROM graph_migrator.api_sessions WHERE digest = :digest"),
            {"digest": _digest(session)},
        )


_COLUMNS = ", ".join(Token.model_fields)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _identity(connection: Connection, which: str, digest: str) -> Identity | None:
    row = connection.execute(
        text(
            "SELECT t.id, t.name, t.role, coalesce(t.used_at < clock_timestamp() - interval '1 minute', true) AS stale "  # noqa: S608 - own names
            f"FROM graph_migrator.api_tokens t WHERE {which} AND t.revoked_at IS NULL "
            "AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())"
        ),
        {"digest": digest},
    ).one_or_none()
    if row is None:
        return None
    if row.stale:
        connection.execute(
            text("UPDATE graph_migrator.api_tokens SET used_at = clock_timestamp() WHERE id = :id"),
            {"id": row.id},
        )
    return Identity(name=row.name, role=Role(row.role))
