"""For tests of graph types: ``pytest_plugins = ["graph_migrator.testing"]``.

PYTEST_DONT_REWRITE: a test module imports this before pytest does.
"""

from graph_migrator.core.testing import *  # noqa: F403 - the public names, as they are listed there
from graph_migrator.core.testing import __all__ as __all__
