"""Who sends a request: by a bearer token, a session, a trusted proxy's header, or an application's own rule."""

from __future__ import annotations

import inspect
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from anyio import to_thread
from sqlalchemy import Engine
from starlette.requests import HTTPConnection

from graph_migrator.console.problems import Problem
from graph_migrator.core.access import tokens
from graph_migrator.core.access.tokens import Identity, Role

COOKIE: Final = "graph_migrator_session"
_LOCAL: Final = {"localhost", "127.0.0.1", "::1", "[::1]"}
_LONGEST: Final = 200

AuthCallable = Callable[[HTTPConnection], Identity | Awaitable[Identity | None] | None]


@dataclass(frozen=True)
class ProxyHeader:
    """Trust a proxy that authenticates, by the header in which it names the user.

    Attributes:
        header: For example ``X-Forwarded-User``. The proxy must remove it from what clients send.
        proxies: Addresses or networks that the proxy sends from; the header of others is not read.
        operators: Users that may change things; all others may look.
    """

    header: str
    proxies: tuple[str, ...] = ("127.0.0.1/32", "::1/128")
    operators: frozenset[str] = frozenset()

    def identify(self, request: HTTPConnection) -> Identity | None:
        """Who the proxy says it is; None where the request does not come from it."""
        name = request.headers.get(self.header, "").strip()
        if not name or not is_from(request, self.proxies) or len(name) > _LONGEST or not name.isprintable():
            return None
        return Identity(name=name, role=Role.OPERATOR if name in self.operators else Role.VIEWER)


Auth = Literal["tokens", "none"] | ProxyHeader | AuthCallable


def is_from(request: HTTPConnection, networks: tuple[str, ...]) -> bool:
    """Whether the other end of the connection is in one of these networks."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)


@dataclass
class Authenticator:
    """Finds out who sends a request, by one of four ways."""

    auth: Auth
    engine: Engine
    local_name: str = "local"

    async def identify(self, request: HTTPConnection) -> Identity | None:
        """Who it is; None where nobody is known.

        Raises:
            Problem: The way of this console does not allow this request at all.
        """
        match self.auth:
            case "none":
                return self._local(request)
            case "tokens":
                return await self._by_token(request)
            case ProxyHeader() as proxy:
                return proxy.identify(request)
            case decide:
                found = decide(request)
                return await found if inspect.isawaitable(found) else found

    @property
    def has_login(self) -> bool:
        """Whether a browser can log in here."""
        return self.auth == "tokens"

    def _local(self, request: HTTPConnection) -> Identity:
        """Serve this machine alone, under a name of its own: no foreign name that was made to resolve to it."""
        host = request.url.hostname or ""
        if not is_from(request, ("127.0.0.0/8", "::1/128")) or host not in _LOCAL:
            raise Problem(403, "Forbidden", "Without authentication the console serves this machine alone.")
        return Identity(name=self.local_name, role=Role.OPERATOR)

    async def _by_token(self, request: HTTPConnection) -> Identity | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            return await to_thread.run_sync(tokens.identify, self.engine, token.strip())
        session = request.cookies.get(COOKIE)
        return await to_thread.run_sync(tokens.identify_session, self.engine, session) if session else None


@dataclass
class LoginLimit:
    """How often a wrong token may be tried, from one address and from all together."""

    tries: int = 10
    all_tries: int = 100
    seconds: float = 60.0
    _failed: OrderedDict[str, list[float]] = field(default_factory=OrderedDict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def check(self, address: str) -> None:
        """Refuse where there were too many.

        Raises:
            Problem: 429.
        """
        with self._mutex:
            now = time.monotonic()
            for key in list(self._failed):
                self._failed[key] = [at for at in self._failed[key] if now - at < self.seconds]
                if not self._failed[key]:
                    del self._failed[key]
            total = sum(map(len, self._failed.values()))
            if len(self._failed.get(address, ())) >= self.tries or total >= self.all_tries:
                raise Problem(429, "Too many requests", "Too many wrong tokens. Try again in a minute.")

    def failed(self, address: str) -> None:
        """Note a wrong token."""
        with self._mutex:
            self._failed.setdefault(address, []).append(time.monotonic())
