"""Every statement inside of our functions, and its plan for any parameters.

A function plans a statement when it comes to it. So each statement is put alone into a block that has the function's
arguments and variables, all NULL, and its settings. Postgres prints the plan before it runs it (`debug_print_plan`),
and what the statement does is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from psycopg.rows import dict_row

_TOKEN = re.compile(r"--[^\n]*|\$(?P<quote>\w*)\$.*?\$(?P=quote)\$|'(?:[^']|'')*'|:=|\w+|\s+|.", re.DOTALL)
_NODE = re.compile(r'[{}()]|"(?:[^"\\]|\\.)*"|(?:\\.|[^\s(){}\\"])+')
_SQL = ("SELECT", "UPDATE", "INSERT", "DELETE", "WITH", "PERFORM")
_EXPRESSION = re.compile(r"(?:IF|ELSIF|WHILE|RETURN|[\w.]+ *:=)\s(.*)", re.DOTALL)
_SESSION = """
SET client_min_messages = log; SET debug_print_plan = on; SET debug_pretty_print = off;
SET plan_cache_mode = force_generic_plan; SET search_path = graph_migrator, pg_temp; SET statement_timeout = '10s';
SET graph_migrator.shard = '1';
"""
_FUNCTIONS = """
SELECT p.proname AS name, l.lanname AS language, p.prosrc AS body, p.proconfig AS settings,
       ARRAY(SELECT format('%I %s;', a.name, format_type(a.type, NULL))
             FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[])) a (name, type)) AS variables,
       ARRAY(SELECT DISTINCT t.tgrelid::regclass::text FROM pg_trigger t WHERE t.tgfoid = p.oid ORDER BY 1) AS tables
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'graph_migrator'::regnamespace AND p.prosrc <> '' ORDER BY 1
"""
_OF_A_TRIGGER = """
tg_op text; tg_argv text[]; tg_table_name text; tg_table_schema text; tg_relid oid; old {table}; new {table};
"""


@dataclass(frozen=True)
class Plan:
    """One statement of one function, as Postgres would run it."""

    function: str
    statement: str
    cost: float
    """The planner's units."""
    whole: tuple[str, ...]
    """Tables that are read from the beginning to the end."""


def plans(url: str) -> Iterator[Plan]:
    """The plans of all statements of all functions; a trigger's for each of its tables.

    Raises:
        AssertionError: A statement was not planned.
    """
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        heard: list[str] = []

        def hear(message: Diagnostic) -> None:
            """Keep the plan of the block's statement; not those of functions and triggers that it calls."""
            frames = re.findall(r"^(?:PL/pgSQL|SQL) function ", message.context or "", re.MULTILINE)
            if message.message_primary == "plan:" and len(frames) == 1:
                heard.append(message.message_detail or "")

        functions = connection.execute(_FUNCTIONS).fetchall()
        names = {
            str(row["oid"]): row["relname"] for row in connection.execute("SELECT oid, relname FROM pg_class")
        }
        connection.execute(_SESSION)
        connection.add_notice_handler(hear)
        for function in functions:
            for table in function["tables"] or [""]:
                before: list[str] = []
                for statement in statements(function["language"], function["body"]):
                    filled = [each for each in before if _fills(each, statement)]
                    with connection.transaction(force_rollback=True):
                        failed = _run_alone(connection, heard, function, table, [*filled, statement])
                    before.append(statement)
                    others = len(filled) + _declared(function["body"]).count("(SELECT ")
                    assert len(heard) > others, f"{function['name']} {table}: {statement}: {failed}"
                    for tree in map(_parsed, heard):
                        yield Plan(
                            function["name"], " ".join(statement.split()), _cost(tree), _whole(tree, names)
                        )


def _run_alone(
    connection: psycopg.Connection[Any],
    heard: list[str],
    function: dict[str, Any],
    table: str,
    block: list[str],
) -> str:
    for setting in function["settings"] or ():
        connection.execute("SELECT set_config(%s, %s, true)", setting.split("=", 1))
    variables = [*function["variables"], _declared(function["body"])]
    if table:
        variables.append(_OF_A_TRIGGER.format(table=table))
        for rows in ("new_rows", "old_rows"):
            connection.execute(f"CREATE TEMP TABLE {rows} (LIKE {table})")
    heard.clear()
    declared = f"<<{function['name']}>> DECLARE found_row record; {' '.join(variables)}"
    try:
        with connection.transaction():
            connection.execute(f"DO $alone$ {declared} BEGIN {' '.join(block)} END $alone$")
    except psycopg.Error as error:  # NULL where there must be a value: it was planned all the same
        return str(error)
    return "it has no plan"


def _fills(statement: str, other: str) -> bool:
    """Whether a statement gives a record its columns, which the other one names."""
    found = re.match(r"FOR (\w+) IN", statement) or re.search(r"\bINTO (\w+)\s+FROM\b", statement)
    return found is not None and re.search(rf"\b{found[1]}\.", other) is not None


# ── out of the source ───────────────────────────────────────────────────────────────────────────────


def statements(language: str, body: str) -> Iterator[str]:
    """The statements of a function that read or write a table, each as a statement of a block; not what EXECUTE runs.

    Raises:
        AssertionError: One is in a place that is not known here.
    """
    for step in _steps(body.removeprefix("\nDECLARE").removeprefix(_declared(body))):
        words = re.findall(r"\w+", re.sub("'[^']*'", "", step))
        if not {"FROM", "INTO", "UPDATE"} & {*words}:
            continue
        first = step.split(None, 1)[0].upper()
        looped = re.match(r"FOR (\w+) IN\s+(.*)", step, re.DOTALL)
        expression = _EXPRESSION.match(step)
        if looped and looped[2].startswith(_SQL):
            yield f"FOR {looped[1]} IN {looped[2]} LOOP END LOOP;"
        elif first in _SQL and language == "plpgsql":
            yield f"{step};"
        elif first in _SQL:
            yield (
                f"FOR found_row IN {step} LOOP END LOOP;"
                if first == "SELECT" or " RETURNING " in step
                else f"{step};"
            )
        elif step.startswith("RETURN QUERY"):
            yield f"FOR found_row IN {step.removeprefix('RETURN QUERY')} LOOP END LOOP;"
        elif expression and re.search(r"\bSELECT\b", expression[1]):
            yield f"PERFORM ({expression[1]});"
        else:
            assert words[0] in {"RAISE", "EXECUTE", "CREATE"} or not {*_SQL} & {*words}, step


def _declared(body: str) -> str:
    found = re.match(r"\s*DECLARE\b(.*?)\bBEGIN\b", body, re.DOTALL)
    return found[1] if found else ""


def _steps(body: str) -> Iterator[str]:
    """The body cut at semicolons and at the words that begin a block. In a CASE these words mean something else."""
    step, depth, cases = "", 0, 0
    for found in _TOKEN.finditer(body.removeprefix("\n")):
        token = found[0]
        word = token.upper()
        depth += (token == "(") - (token == ")")
        cases += (word == "CASE") - (word == "END" and cases > 0)
        if token.startswith("--"):
            continue
        if depth == 0 and cases == 0 and word in {";", "THEN", "LOOP", "ELSE", "BEGIN"}:
            if step.strip():
                yield step.strip()
            step = ""
        else:
            step += token
    if step.strip():
        yield step.strip()


# ── out of the printed plan ─────────────────────────────────────────────────────────────────────────


def _parsed(text: str) -> dict[str, Any]:
    tokens = iter(_NODE.findall(text))

    def value(token: str) -> Any:
        if token == "(":
            return [value(each) for each in iter(lambda: next(tokens), ")")]
        if token != "{":
            return token
        node: dict[str, Any] = {"node": next(tokens)}
        name = ""
        for each in iter(lambda: next(tokens), "}"):
            if each.startswith(":"):
                name = each[1:]
            else:
                node.setdefault(name, value(each))
        return node

    found: dict[str, Any] = value(next(tokens))
    return found


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(part)


def _cost(tree: dict[str, Any]) -> float:
    return float(next(value for name, value in tree["planTree"].items() if name.endswith("plan.total_cost")))


def _whole(tree: dict[str, Any], names: dict[str, str]) -> tuple[str, ...]:
    relations = [each.get("relid", "") for each in tree["rtable"]]
    return tuple(
        names.get(relations[int(each["scan.scanrelid"]) - 1], "")
        for each in _nodes(tree)
        if each["node"] == "SEQSCAN"
    )
