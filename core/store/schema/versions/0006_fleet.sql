-- The fleet around rollouts: who works, and which types move forward by themselves.

-- One row per live worker, renewed by its sweep. The row of a killed worker is recognised by its age.
CREATE TABLE workers (
    name        text NOT NULL,
    instance    uuid NOT NULL DEFAULT gen_random_uuid(),
    queue       text NOT NULL,
    types       jsonb NOT NULL,
    error       text,
    pool        text NOT NULL,
    processes   integer NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    types_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, instance)
);
COMMENT ON COLUMN workers.instance IS 'One start of it. Two workers that were given one name have a row each.';
COMMENT ON COLUMN workers.types IS 'By graph type: oldest and newest version, and a digest of the code of all hops.';
COMMENT ON COLUMN workers.types_since IS 'Since when it serves these types with this code: its start, or a change.';

-- The policy of a type is its latest row; older ones are kept.
CREATE TABLE policies (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    graph_type     text NOT NULL,
    mode           text NOT NULL,
    strategy       jsonb NOT NULL,
    settle_seconds double precision NOT NULL,
    changed_by     text,
    why            text,
    changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT policies_mode_is_known CHECK (mode IN ('manual', 'automatic')),
    CONSTRAINT policies_settle_is_a_time CHECK (settle_seconds >= 0)
);
CREATE INDEX policies_by_type ON policies (graph_type, id);
CREATE TRIGGER policies_are_kept BEFORE DELETE OR UPDATE ON policies
    FOR EACH ROW EXECUTE FUNCTION refuse_change('changed or deleted');
CREATE TRIGGER policies_are_not_truncated BEFORE TRUNCATE ON policies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('deleted');

ALTER TABLE rollouts ADD COLUMN automatic boolean NOT NULL DEFAULT false, ADD COLUMN code text,
    ADD COLUMN reverses uuid REFERENCES rollouts (id), ADD COLUMN dispatch_after timestamptz, ADD COLUMN planned jsonb,
    ADD COLUMN sizes jsonb;
COMMENT ON COLUMN rollouts.sizes IS 'Its graphs by size class, counted at the start; used to estimate the time left.';
COMMENT ON COLUMN rollouts.planned IS 'The answer to the call that started it. A second delivery of the call gets the same answer.';
COMMENT ON COLUMN rollouts.automatic IS 'Started by the policy of its type.';
COMMENT ON COLUMN rollouts.code IS 'The digest of the type''s hops at the start: an automatic rollout that was cancelled is not repeated with the same.';
COMMENT ON COLUMN rollouts.reverses IS 'The rollout whose graphs it moves back.';
COMMENT ON COLUMN rollouts.dispatch_after IS 'With a rate: the time before which no more graphs are dispatched.';
CREATE INDEX rollouts_automatic ON rollouts (graph_type, to_version, code) WHERE automatic;

-- Pages of a rollout's graphs in the order in which they are moved.
CREATE INDEX rollout_members_in_order ON rollout_members (rollout_id, stage, position);
CREATE INDEX rollout_members_ended ON rollout_members (rollout_id, status, stage, position)
    WHERE status IN ('succeeded', 'failed', 'skipped');

-- An automatic rollout leaves out what an earlier one with the same code could not move.
CREATE INDEX rollout_members_left ON rollout_members (graph_id) WHERE status IN ('failed', 'skipped');

-- A verb whose message is delivered twice is carried out once.
ALTER TABLE rollout_changes ADD COLUMN request_id text;
CREATE UNIQUE INDEX rollout_changes_one_per_request ON rollout_changes (request_id) WHERE request_id IS NOT NULL;

-- Makes a waiting member the next one of its stage; false if the rollout's row is locked at this moment. Runs with the
-- owner's rights: an application that opens a graph may do this to a rollout, and nothing else.
CREATE FUNCTION move_to_front(p_rollout uuid, p_graph uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    first bigint;
BEGIN
    -- Every writer of members locks the rollout first.
    PERFORM FROM rollouts WHERE id = p_rollout FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT n.position INTO first FROM rollout_members n
        WHERE n.rollout_id = p_rollout AND n.status = 'pending' AND n.stage =
            (SELECT m.stage FROM rollout_members m WHERE m.rollout_id = p_rollout AND m.graph_id = p_graph)
        ORDER BY n.position LIMIT 1;
    UPDATE rollout_members SET position = first - 1
        WHERE rollout_id = p_rollout AND graph_id = p_graph AND status = 'pending' AND position <> first;
    RETURN FOUND;
END $$;
