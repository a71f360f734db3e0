"""What the triggers behind the console's stream cost a migration, while nobody follows and while somebody does.

    python -m bench.followed

In interleaved pairs, inline and in CPU time, as `bench.proof`: a chain of Celery tasks costs several times as much, so
its share is smaller.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bench.database import server
from bench.proof import PAIRS, in_pairs, side
from bench.results import at_most, table
from bench.types import TYPES
from graph_migrator.core.graph_types import registry

_WITHOUT = """
DROP TRIGGER migrations_are_followed_from_the_start ON migrations;
DROP TRIGGER migrations_are_followed ON migrations;
DROP TRIGGER hop_attempts_are_followed_from_the_start ON hop_attempts;
DROP TRIGGER hop_attempts_are_followed ON hop_attempts;
"""
_FOLLOWED = "UPDATE change_followers SET followed_until = 'infinity';"


def run(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure on a private server with fsync on.

    Returns:
        One line while nobody follows, one while a console does: with / without, the median over all pairs.
    """
    for each in TYPES:
        registry.register(each)
    pairs = 5 if quick else PAIRS
    lines = []
    with server() as postgres, ExitStack() as stack:
        for name, change, limit in (
            ("nobody_follows", "", 1.03),
            ("a_console_follows", _FOLLOWED, 1.06),
        ):
            without = side(postgres, f"without_{name}", pairs, stack, change=_WITHOUT)
            followed = side(postgres, name, pairs, stack, change=change)
            ratios = in_pairs(without, followed, pairs)
            lines.append(
                at_most(
                    f"stream: an inline migration of three small hops, {name.replace('_', ' ')}",
                    ratios,
                    limit,
                )
            )
    return lines


if __name__ == "__main__":
    print(table(run()))
