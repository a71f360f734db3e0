"""The console: pages, an HTTP API and a live stream over the same models that the command line prints.

`create_app` makes an ASGI application that runs alone (``graph-migrator console``) or mounted in another one.
"""

from graph_migrator.console.app import create_app
from graph_migrator.console.authentication import ProxyHeader
from graph_migrator.core.access.tokens import Identity, Role

__all__ = ["Identity", "ProxyHeader", "Role", "create_app"]
