"""Nodes and edges as a Python hop sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Node:
    """One node. A hop changes `label` and `properties` in place; `id` is its identity and stays."""

    id: str
    label: str
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Edge:
    """One edge. A hop changes its ends, its `type` and its `properties` in place; `id` stays."""

    id: str
    source: str
    target: str
    type: str
    properties: dict[str, Any] = field(default_factory=dict)
