"""kombu's Redis transport, whose channels keep their client.

kombu makes a client object of the Redis driver for each message that is published, received or acknowledged, and
each builds a table of 200 callbacks anew (redis-py's issue 3624). That takes 8 % of the workers' CPU time in
chains of small hops. A client holds no connection of its own, only the channel's pool. Where kombu names things
otherwise one day, its own way is what is left.
"""

from __future__ import annotations

from typing import Any, Final

from celery.signals import celeryd_init
from kombu.transport import TRANSPORT_ALIASES, redis

from graph_migrator.tasks.celery import app


class Channel(redis.Channel):
    """A channel that keeps its client as long as its pool of connections."""

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # these two hold a connection each, for BRPOP and for LISTEN
            return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class Transport(redis.Transport):
    """The transport of `redis://` and `rediss://` in a worker of ours."""

    Channel = Channel


NAME: Final = f"{Transport.__module__}:{Transport.__name__}"


@celeryd_init.connect
def _use(instance: Any = None, **_: object) -> None:
    """In a worker of ours; in a program, or a worker of another app, the transport is its own."""
    if instance is not None and instance.app is app:
        TRANSPORT_ALIASES.update(redis=NAME, rediss=NAME)
