"""The simulated broker and result store. The broker keeps no promise at all; the store keeps Celery's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID


@dataclass(frozen=True)
class Step:
    """One `run_hop` of a chain: its hop, and the id of its task."""

    from_version: int
    to_version: int
    id: str


@dataclass(frozen=True)
class Message:
    """A task on its way. A `run_hop` carries the rest of its chain, as in Celery; a `run_shard` its own hop."""

    id: str
    task: str
    arguments: dict[str, Any] = field(default_factory=dict)
    migration_id: UUID | None = None
    dispatch: int = 0
    chain: tuple[Step, ...] = ()
    shard: int | None = None

    @property
    def next(self) -> Message | None:
        """What a `run_hop` that has returned publishes."""
        if len(self.chain) < 2:
            return None
        return replace(self, id=self.chain[1].id, chain=self.chain[1:])

    def __str__(self) -> str:
        if self.chain:
            hop = self.chain[0]
            which = f"{hop.from_version}→{hop.to_version}" + (f" shard {self.shard}" if self.shard else "")
            return f"{self.task} {which} of dispatch {self.dispatch} [{self.id}]"
        shown = " ".join(f"{key}={value}" for key, value in self.arguments.items() if value)
        return f"{self.task} {shown} [{self.id}]"


class Results:
    """Celery's result store: SUCCESS stays, everything else is overwritten by what comes later."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[str, Any]] = {}

    def store(self, task_id: str, state: str, value: Any) -> None:
        if self.state(task_id) != "SUCCESS":
            self.stored[task_id] = (state, value)

    def state(self, task_id: str) -> str:
        return self.stored.get(task_id, ("PENDING", None))[0]

    def value(self, task_id: str) -> Any:
        return self.stored.get(task_id, ("PENDING", None))[1]
