"""`graph-migrator console`: the pages, the API and the live stream; and the tokens that let people in."""

from __future__ import annotations

import ipaddress
import socket
from importlib import import_module
from typing import Any

import click

from graph_migrator.core.access import tokens
from graph_migrator.core.access.tokens import Role, Token
from graph_migrator.core.errors import InvalidRequest
from graph_migrator.tasks.cli.group import Group
from graph_migrator.tasks.cli.output import console as out
from graph_migrator.tasks.cli.output import json_option, moment, print_json, table, user
from graph_migrator.tasks.runtime import engine


@click.group(cls=Group, invoke_without_command=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="The port; 0 for a free one.",
)
@click.option(
    "--auth",
    type=click.Choice(["tokens", "none", "proxy"]),
    default="tokens",
    show_default=True,
    help="Who gets in: whoever has a token, whoever is on this machine, or whom a proxy names.",
)
@click.option(
    "--proxy-header",
    default="X-Forwarded-User",
    show_default=True,
    help="With --auth proxy: the header that names the user.",
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    default=("127.0.0.1/32", "::1/128"),
    show_default=True,
    help="With --auth proxy: the networks that the proxy sends from.",
)
@click.option(
    "--operator",
    "operators",
    multiple=True,
    help="With --auth proxy: a user who may change things; all others may look.",
)
@click.option("--root-path", default="", help="The path that a proxy serves it under, like /migrations.")
@click.pass_context
def console(
    ctx: click.Context,
    host: str,
    port: int,
    auth: str,
    proxy_header: str,
    proxies: tuple[str, ...],
    operators: tuple[str, ...],
    root_path: str,
) -> None:
    """Serve the pages, the HTTP API and the live stream of changes.

    A browser logs in with a token, a program sends it as `Authorization: Bearer`. `console token create` makes one.
    It serves plain HTTP: put a proxy with TLS in front of it on any address but loopback.
    """
    if ctx.invoked_subcommand is not None:
        return
    if auth == "none" and not _is_loopback(host):
        raise InvalidRequest(
            "--auth",
            f"without authentication it serves this machine alone, not {host}; use --auth tokens or proxy",
        )
    for network in proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise InvalidRequest("--proxy", f"{network!r} is no address and no network") from None
    serve(_application(auth, proxy_header, proxies, operators), host, port, root_path)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _application(auth: str, header: str, proxies: tuple[str, ...], operators: tuple[str, ...]) -> Any:
    # By name: the console stands above the command line, which only starts it.
    try:
        made = import_module("graph_migrator.console")
        import_module("uvicorn")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("graph_migrator"):
            raise
        raise InvalidRequest(
            "console", f"{missing.name} is not installed: pip install 'graph-migrator[console]'"
        ) from None
    who = made.ProxyHeader(header, proxies, frozenset(operators)) if auth == "proxy" else auth
    return made.create_app(who, local_name=user())


def serve(application: Any, host: str, port: int, root_path: str = "") -> None:
    """Serve an ASGI application until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        root_path=root_path,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # who asks is decided by the address that really connects
        timeout_graceful_shutdown=2,  # streams never end by themselves
    )
    server = uvicorn.Server(config)
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"Console: http://{shown}:{listener.getsockname()[1]}{root_path}/  Ctrl-C stops it.")
    with listener:
        server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise InvalidRequest("--host and --port", f"{host}:{port}: {error.strerror or error}") from None


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────


@console.group()
def token() -> None:
    """Make, list and revoke the tokens that let people and programs in."""


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default=Role.VIEWER.value,
    show_default=True,
    help="A viewer looks; an operator also changes things, and sees tracebacks.",
)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=90, show_default=True, help="How long it is valid."
)
@click.option("--no-expiry", is_flag=True, help="Valid until it is revoked.")
@json_option
def create(name: str, role: str, days: int, no_expiry: bool, as_json: bool) -> None:
    """Make a token for NAME, which appears in the audit rows. It is shown once; only its digest is stored."""
    made, secret = tokens.create_token(
        engine(), name, Role(role), days=None if no_expiry else days, by=user()
    )
    if as_json:
        print_json({**made.model_dump(mode="json"), "token": secret})
        return
    until = f"until {moment(made.expires_at)} UTC" if made.expires_at else "until it is revoked"
    click.echo(
        f"{made.name} is {_a(made.role)} {until}. The token, shown this once:",
        err=True,
    )
    click.echo(secret)


def _a(role: Role) -> str:
    return f"{'an' if role is Role.OPERATOR else 'a'} {role}"


@token.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """List all tokens, also those that are not valid any more."""
    found = tokens.list_tokens(engine())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            t.name,
            t.role,
            _state(t),
            moment(t.expires_at),
            moment(t.used_at),
            t.created_by,
            moment(t.created_at),
        )
        for t in found
    ]
    out().print(table(None, ("NAME", "ROLE", "STATE", "EXPIRES", "LAST USED", "MADE BY", "MADE"), rows))


def _state(found: Token) -> str:
    return "revoked" if found.revoked_at else "expired" if found.has_expired else "valid"


@token.command()
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """End the token of NAME (or with this id), and every login with it."""
    ended = tokens.revoke_token(engine(), name, by=user())
    if as_json:
        print_json(ended)
    else:
        click.echo(f"{ended.name}: revoked; whoever was logged in with it is logged out.")
