"""Plans, from literals and for any type."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_migrator import Nodes
from graph_migrator.core.errors import InvalidRequest, IrreversibleHop, UnknownTarget, UnreachableGraph
from graph_migrator.core.graph_types.definition import Direction, GraphType
from graph_migrator.core.planning import Plan, Step, continue_plan, make_plan


def kind_of(first, reversible):
    """A type with one hop for each element, the first of them from version `first`."""
    kind = GraphType("kind")
    for version, has_reverse in enumerate(reversible, first):
        back = f"DELETE {version} :graph_id" if has_reverse else None
        kind.sql_hop(
            version, version + 1, name=f"hop_{version}", forward=f"UPDATE {version} :graph_id", reverse=back
        )
    return kind


def versions_of(steps):
    return [(step.from_version, step.to_version) for step in steps]


def test_the_way_forward_takes_each_hop_once():
    kind = kind_of(1, [True, False, True])
    plan = make_plan("g", kind, 1, 3)
    assert (plan.graph_type, plan.from_version, plan.to_version) == ("kind", 1, 3)
    assert [(step.name, step.direction) for step in plan.steps] == [
        ("hop_1", Direction.FORWARD),
        ("hop_2", Direction.FORWARD),
    ]
    assert plan.steps[0].fingerprint == kind.directed(1, 2).fingerprint


def test_the_way_back_takes_the_reverses():
    kind = kind_of(1, [True, True])
    plan = make_plan("g", kind, 3, 1)
    assert versions_of(plan.steps) == [(3, 2), (2, 1)]
    assert {step.direction for step in plan.steps} == {Direction.REVERSE}
    assert plan.steps[0].fingerprint == kind.directed(3, 2).fingerprint != kind.directed(2, 3).fingerprint


def test_no_target_means_the_newest_version():
    assert make_plan("g", kind_of(1, [True, True]), 1).to_version == 3


def test_a_graph_at_its_target_has_no_steps():
    assert make_plan("g", kind_of(1, [False]), 2, 2) == Plan("kind", 2, 2, ())
    assert make_plan("g", kind_of(1, [False]), 2, None).steps == ()


def test_a_batched_hop_says_so():
    kind = GraphType("kind")

    @kind.hop(1, 2, over=Nodes())
    def split(ctx, nodes): ...

    assert make_plan("g", kind, 1).steps[0].batched
    assert not make_plan("g", kind_of(1, [True]), 1).steps[0].batched


def test_a_target_above_the_newest_version_is_refused():
    with pytest.raises(UnknownTarget) as refused:
        make_plan("g", kind_of(2, [True, True]), 2, 5)
    assert refused.value.args == ("g", "kind", 5, 2, 4, None)


def test_a_target_below_the_oldest_version_is_refused():
    with pytest.raises(UnknownTarget) as refused:
        make_plan("g", kind_of(2, [True]), 2, 1)
    assert refused.value.target == 1


@pytest.mark.parametrize("target", [None, 2, 5])
def test_a_graph_outside_of_what_the_type_knows_is_refused(target):
    with pytest.raises(UnreachableGraph) as refused:
        make_plan("g", kind_of(1, [True]), 5, target)
    assert refused.value.version == 5


def test_the_way_back_across_a_hop_without_reverse_is_refused_and_the_hop_is_named():
    with pytest.raises(IrreversibleHop) as refused:
        make_plan("g", kind_of(1, [False, False, True]), 4, 1)
    assert refused.value.args == ("g", "hop_2", 2, 3)


def test_hops_without_reverse_that_are_not_on_the_way_do_not_matter():
    assert versions_of(make_plan("g", kind_of(1, [False, True, False]), 3, 2).steps) == [(3, 2)]


@pytest.mark.parametrize("target", [0, -1, True, "2", 2.0])
def test_a_target_that_is_no_version_is_refused(target):
    with pytest.raises(InvalidRequest) as refused:
        make_plan("g", kind_of(1, [True]), 1, target)
    assert refused.value.field == "target"


def test_steps_survive_json():
    for step in make_plan("g", kind_of(1, [True, True]), 3, 1).steps:
        assert type(step.to_json()["direction"]) is str
        stored = json.loads(json.dumps(step.to_json()))
        assert Step.from_json(stored) == step
        assert Step.from_json(stored).direction is Direction.REVERSE
        assert stored == {
            "from_version": step.from_version,
            "to_version": step.to_version,
            "name": step.name,
            "fingerprint": step.fingerprint,
            "direction": "reverse",
            "batched": False,
        }


def step(start, end, fingerprint="old"):
    way = Direction.FORWARD if end > start else Direction.REVERSE
    return Step(start, end, f"hop_{min(start, end)}", fingerprint, way, batched=False)


def test_a_retry_keeps_what_is_applied_and_plans_the_rest_anew():
    old = [step(1, 2), step(2, 3), step(3, 4)]
    new = Plan("kind", 2, 4, (step(2, 3, "new"), step(3, 4, "new")))
    assert continue_plan(old, new) == (old[0], *new.steps)


def test_a_retry_with_nothing_applied_is_the_new_plan():
    new = Plan("kind", 1, 3, (step(1, 2, "new"), step(2, 3, "new")))
    assert continue_plan([step(1, 2), step(2, 3)], new) == new.steps
    assert continue_plan([], new) == new.steps


def test_a_retry_with_everything_applied_keeps_the_recorded_plan():
    old = [step(1, 2), step(2, 3)]
    assert continue_plan(old, Plan("kind", 3, 3, ())) == tuple(old)


def test_a_retry_of_the_way_back_keeps_what_is_applied():
    old = [step(3, 2), step(2, 1)]
    new = Plan("kind", 2, 1, (step(2, 1, "new"),))
    assert continue_plan(old, new) == (old[0], *new.steps)


def test_a_graph_that_left_its_recorded_plan_is_not_patched_over():
    with pytest.raises(ValueError, match="ends at v3, not at v7"):
        continue_plan([step(1, 2), step(2, 3)], Plan("kind", 7, 8, (step(7, 8),)))


@st.composite
def journeys(draw):
    """A type, and two of its versions."""
    first = draw(st.integers(1, 5))
    reversible = draw(st.lists(st.booleans(), min_size=1, max_size=8))
    versions = st.integers(first, first + len(reversible))
    return first, reversible, draw(versions), draw(versions)


@given(journeys())
def test_every_plan_chains_from_the_version_to_the_target_or_names_the_hop_in_its_way(journey):
    first, reversible, version, target = journey
    kind = kind_of(first, reversible)
    blocking = [v for v in range(target, version) if not reversible[v - first]]
    if blocking:
        with pytest.raises(IrreversibleHop) as refused:
            make_plan("g", kind, version, target)
        assert refused.value.from_version == max(blocking)
        return
    steps = make_plan("g", kind, version, target).steps
    way = [version, *(each.to_version for each in steps)]
    assert [each.from_version for each in steps] == way[:-1]
    assert way[-1] == target
    assert len(steps) == abs(target - version)
    assert all(abs(each.to_version - each.from_version) == 1 for each in steps)


@given(journeys())
def test_the_plan_back_takes_the_same_hops_in_the_other_order(journey):
    first, reversible, version, target = journey
    kind = kind_of(first, [True] * len(reversible))
    there = make_plan("g", kind, version, target).steps
    back = make_plan("g", kind, target, version).steps
    assert [each.name for each in back] == [each.name for each in reversed(there)]
    assert versions_of(back) == [(b, a) for a, b in reversed(versions_of(there))]
    assert not {each.fingerprint for each in there} & {each.fingerprint for each in back}


@given(journeys(), st.data())
def test_a_retry_from_any_boundary_is_one_chain_again(journey, data):
    first, reversible, version, target = journey
    kind = kind_of(first, [True] * len(reversible))
    old = make_plan("g", kind, version, target).steps
    applied = data.draw(st.integers(0, len(old)))
    stands_at = version if applied == 0 else old[applied - 1].to_version
    assert continue_plan(old, make_plan("g", kind, stands_at, target)) == old
