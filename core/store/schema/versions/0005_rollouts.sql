-- Rollouts: one run that moves many graphs of a type to one version. Decisions are made in core/rollouts.
-- What must hold whatever a process does is here, with the number of its invariant (docs/rollouts.md).

CREATE TABLE rollouts (
    id             uuid PRIMARY KEY,
    graph_type     text NOT NULL,
    to_version     integer NOT NULL,
    direction      integer NOT NULL,
    status         text NOT NULL DEFAULT 'running',
    stage          integer NOT NULL DEFAULT 0,
    strategy       jsonb NOT NULL,
    max_in_flight  integer NOT NULL,
    pace           integer,
    hold           jsonb,
    plan           jsonb NOT NULL,
    requested_by   text,
    reason         text,
    failures_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    progress_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at    timestamptz,
    CONSTRAINT rollouts_status_is_known CHECK (status IN ('running', 'held', 'cancelling', 'cancelled', 'succeeded',
        'finished_with_failures')),
    CONSTRAINT rollouts_move_one_way CHECK (direction IN (-1, 1)),
    CONSTRAINT rollouts_limit_is_positive CHECK (max_in_flight > 0 AND (pace IS NULL OR pace > 0)),
    -- F7: a hold always has its reason, and nothing else has one.
    CONSTRAINT rollouts_hold_is_explained CHECK ((status = 'held') = (hold IS NOT NULL) AND (hold IS NULL OR hold ? 'reason')),
    CONSTRAINT rollouts_end_is_dated CHECK (
        (status IN ('cancelled', 'succeeded', 'finished_with_failures')) = (finished_at IS NOT NULL))
);
COMMENT ON COLUMN rollouts.pace IS 'The limit on units in flight under the present load. NULL: max_in_flight.';
COMMENT ON COLUMN rollouts.plan IS 'All hops with their fingerprints, frozen at the start: other code is not run (F8).';
COMMENT ON COLUMN rollouts.failures_since IS 'The breaker counts what failed after this moment: the start, or the last resume.';
COMMENT ON COLUMN rollouts.progress_at IS 'When the controller last dispatched or settled a member.';
-- F4: a type has at most one live rollout.
CREATE UNIQUE INDEX rollouts_one_live_per_type ON rollouts (graph_type) WHERE status IN ('running', 'held', 'cancelling');
CREATE INDEX rollouts_by_start ON rollouts (started_at);

-- Counters by status of the stage's members, kept by the trigger on members (F6).
CREATE TABLE rollout_stages (
    rollout_id  uuid NOT NULL REFERENCES rollouts (id),
    number      integer NOT NULL,
    kind        text NOT NULL,
    size        bigint NOT NULL,
    pending     bigint NOT NULL,
    dispatched  bigint NOT NULL DEFAULT 0,
    succeeded   bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    skipped     bigint NOT NULL DEFAULT 0,
    began_at    timestamptz,
    ended_at    timestamptz,
    promoted_at timestamptz,
    PRIMARY KEY (rollout_id, number),
    CONSTRAINT rollout_stages_kind_is_known CHECK (kind IN ('canary', 'wave')),
    -- F6: every member is counted once.
    CONSTRAINT rollout_stages_add_up CHECK (pending + dispatched + succeeded + failed + skipped = size
        AND least(pending, dispatched, succeeded, failed, skipped) >= 0)
);

-- Some small graphs that one task moves one after another. Its executor holds `pack_key` while the pack is running.
CREATE TABLE packs (
    id          uuid PRIMARY KEY,
    rollout_id  uuid NOT NULL REFERENCES rollouts (id),
    status      text NOT NULL DEFAULT 'sent',
    size        integer NOT NULL,
    done        integer NOT NULL DEFAULT 0,
    first_graph text NOT NULL,
    last_graph  text NOT NULL,
    worker      text,
    sent_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    resends     integer NOT NULL DEFAULT 0,
    resend_at   timestamptz NOT NULL,
    started_at  timestamptz,
    ended_at    timestamptz,
    CONSTRAINT packs_status_is_known CHECK (status IN ('sent', 'running', 'left', 'closed')),
    CONSTRAINT packs_hold_several CHECK (size > 1),
    CONSTRAINT packs_running_one_has_a_worker CHECK ((status = 'running') <= (worker IS NOT NULL AND started_at IS NOT NULL)),
    CONSTRAINT packs_end_is_dated CHECK ((status IN ('left', 'closed')) = (ended_at IS NOT NULL))
);
COMMENT ON COLUMN packs.done IS 'How many graphs it has moved, failed or found settled, when it was left.';
CREATE INDEX packs_open ON packs (rollout_id) WHERE status <> 'closed';
CREATE INDEX packs_by_end ON packs (rollout_id, ended_at) WHERE done > 0;

CREATE FUNCTION pack_key(p_pack uuid) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN uuid_hash_extended(p_pack, 5716853094183207179);

-- graph_id has no foreign key: what became of a graph outlives the graph.
CREATE TABLE rollout_members (
    rollout_id   uuid NOT NULL REFERENCES rollouts (id),
    graph_id     uuid NOT NULL,
    graph        text NOT NULL,
    stage        integer NOT NULL,
    position     bigint NOT NULL,
    status       text NOT NULL DEFAULT 'pending',
    number       integer NOT NULL DEFAULT 1,
    request_id   uuid,
    migration_id uuid,
    pack_id      uuid,
    paused       boolean NOT NULL DEFAULT false,
    from_version integer NOT NULL,
    row_count    bigint,
    shape        text,
    error_group  text,
    error_title  text,
    crashed      boolean NOT NULL DEFAULT false,
    note         text,
    sent_at      timestamptz,
    resends      integer NOT NULL DEFAULT 0,
    resend_at    timestamptz,
    settled_at   timestamptz,
    PRIMARY KEY (rollout_id, graph_id),
    CONSTRAINT rollout_members_status_is_known
        CHECK (status IN ('pending', 'dispatched', 'succeeded', 'failed', 'skipped')),
    -- F5: a dispatched member can be found by its request, and is looked for again.
    CONSTRAINT rollout_members_are_findable
        CHECK ((status = 'dispatched') <= (request_id IS NOT NULL AND resend_at IS NOT NULL)),
    -- F7: every member that did not succeed says why.
    CONSTRAINT rollout_members_are_explained CHECK ((status IN ('failed', 'skipped')) <= (note IS NOT NULL)),
    CONSTRAINT rollout_members_failure_has_a_group CHECK ((status = 'failed') = (error_group IS NOT NULL)),
    CONSTRAINT rollout_members_pack_was_sent CHECK ((pack_id IS NOT NULL) <= (status <> 'pending')),
    CONSTRAINT rollout_members_end_is_dated
        CHECK ((status IN ('succeeded', 'failed', 'skipped')) = (settled_at IS NOT NULL))
);
COMMENT ON COLUMN rollout_members.number IS 'Which try this is; the request id of a try is uuid5(rollout, graph/number).';
COMMENT ON COLUMN rollout_members.paused IS 'An operator paused its migration: it takes no place and keeps its stage open.';
COMMENT ON COLUMN rollout_members.pack_id IS
    'The pack that holds it; NULL for a chain of its own, from the start or since it left its pack. Kept when it settles.';
CREATE INDEX rollout_members_pending ON rollout_members (rollout_id, stage, position) WHERE status = 'pending';
CREATE INDEX rollout_members_dispatched ON rollout_members (rollout_id, sent_at) WHERE status = 'dispatched';
CREATE INDEX rollout_members_chains ON rollout_members (rollout_id, sent_at) WHERE status = 'dispatched' AND pack_id IS NULL;
CREATE INDEX rollout_members_packed ON rollout_members (pack_id, position) WHERE status = 'dispatched' AND pack_id IS NOT NULL;
CREATE INDEX rollout_members_failed ON rollout_members (rollout_id, error_group) WHERE status = 'failed';
CREATE INDEX rollout_members_settled ON rollout_members (rollout_id, settled_at) WHERE status IN ('succeeded', 'failed');
-- F4: no graph waits or moves in two rollouts.
CREATE UNIQUE INDEX rollout_members_one_unsettled ON rollout_members (graph_id) WHERE status IN ('pending', 'dispatched');

CREATE TABLE rollout_changes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rollout_id uuid REFERENCES rollouts (id),
    what       text NOT NULL,
    before     jsonb,
    after      jsonb,
    who        text,
    why        text,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON COLUMN rollout_changes.rollout_id IS 'NULL where all rollouts were held or released together.';
CREATE INDEX rollout_changes_by_rollout ON rollout_changes (rollout_id, id);

-- The one switch that holds all rollouts. One row.
CREATE TABLE rollout_fleet (
    only_row boolean PRIMARY KEY DEFAULT true,
    held_at  timestamptz,
    held_by  text,
    why      text,
    CONSTRAINT rollout_fleet_has_one_row CHECK (only_row)
);
INSERT INTO rollout_fleet DEFAULT VALUES;

-- The health signals as the sweep last read them. One row per signal (core/rollouts/health.py).
CREATE TABLE health_signals (
    name         text PRIMARY KEY,
    level        text NOT NULL,
    value        double precision,
    slow_limit   double precision,
    stop_limit   double precision,
    since        timestamptz NOT NULL,
    better_since timestamptz,
    detail       text,
    measured_at  timestamptz NOT NULL,
    CONSTRAINT health_signals_level_is_known CHECK (level IN ('good', 'unknown', 'slow', 'stop'))
);

-- The worst level that was read within the last minute. A batched hop asks between two batches.
CREATE FUNCTION health_level() RETURNS text LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp AS $$
    SELECT coalesce((SELECT h.level FROM health_signals h
                     WHERE h.level IN ('slow', 'stop') AND h.measured_at > clock_timestamp() - interval '1 minute'
                     ORDER BY h.level DESC LIMIT 1), 'good')
$$;

-- ── what is recorded stays recorded ────────────────────────────────────────────────────────────────

CREATE TRIGGER rollouts_are_kept BEFORE DELETE ON rollouts FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER rollout_members_are_kept BEFORE DELETE ON rollout_members
    FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER rollout_changes_are_kept BEFORE DELETE OR UPDATE ON rollout_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_change('changed or deleted');
CREATE TRIGGER rollout_changes_are_not_truncated BEFORE TRUNCATE ON rollout_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('deleted');

-- The edges of core/rollouts/statuses.py; a test holds the two equal.
CREATE FUNCTION refuse_unknown_rollout_edge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.graph_type, OLD.to_version, OLD.direction) IS DISTINCT FROM (NEW.graph_type, NEW.to_version, NEW.direction)
    THEN
        RAISE EXCEPTION 'rollout %: type, target and direction are frozen', OLD.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF OLD.status <> NEW.status AND OLD.status || ' ' || NEW.status NOT IN (
        'running held', 'held running', 'running cancelling', 'held cancelling', 'cancelling cancelled',
        'running succeeded', 'running finished_with_failures', 'finished_with_failures running')
    THEN
        RAISE EXCEPTION 'rollout % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER rollouts_follow_their_states BEFORE UPDATE ON rollouts
    FOR EACH ROW EXECUTE FUNCTION refuse_unknown_rollout_edge();

CREATE TRIGGER packs_are_kept BEFORE DELETE ON packs FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
CREATE FUNCTION refuse_unknown_pack_edge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status <> NEW.status AND OLD.status || ' ' || NEW.status NOT IN (
        'sent running', 'sent left', 'running left', 'sent closed', 'running closed', 'left closed')
    THEN
        RAISE EXCEPTION 'pack % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER packs_follow_their_states BEFORE UPDATE ON packs
    FOR EACH ROW EXECUTE FUNCTION refuse_unknown_pack_edge();

-- F8: no member is added after the start. The stages are written last: once they exist, the start is over.
CREATE FUNCTION refuse_late_members() RETURNS trigger LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM rollout_stages s WHERE s.rollout_id IN (SELECT n.rollout_id FROM new_rows n)) THEN
        RAISE EXCEPTION 'the members of a rollout are frozen at its start' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER rollout_members_are_frozen AFTER INSERT ON rollout_members REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_late_members();

-- Edges (core/rollouts/statuses.py), counters (F6), and at a dispatch the bounds F1, F2 and F3, and that its packs are
-- the rollout's own (a foreign key would be checked for each member). One statement changes many members, so each bound
-- is checked once for all of them.
-- The controller turns joins by hash off for itself; here they join the rows of one statement with each other.
CREATE FUNCTION follow_members() RETURNS trigger LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off SET enable_hashjoin = on AS $$
DECLARE
    wrong record;
    sent record;
    rollout record;
BEGIN
    SELECT o.graph_id, o.status AS before, n.status AS after INTO wrong
        FROM old_rows o LEFT JOIN new_rows n ON n.rollout_id = o.rollout_id AND n.graph_id = o.graph_id
        WHERE n.graph_id IS NULL OR n.stage <> o.stage OR n.from_version <> o.from_version
            OR (n.pack_id IS DISTINCT FROM o.pack_id AND n.pack_id IS NOT NULL AND o.status <> 'pending')
            OR (o.status <> n.status
            AND o.status || ' ' || n.status NOT IN ('pending dispatched', 'pending skipped', 'dispatched skipped',
                'failed skipped', 'pending succeeded', 'dispatched succeeded', 'failed succeeded',
                'dispatched failed', 'dispatched pending', 'failed pending'))
        LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'member % cannot go from % to %', wrong.graph_id, wrong.before, coalesce(wrong.after, 'another place')
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    UPDATE rollout_stages s SET pending = s.pending + d.pending, dispatched = s.dispatched + d.dispatched,
           succeeded = s.succeeded + d.succeeded, failed = s.failed + d.failed, skipped = s.skipped + d.skipped
        FROM (SELECT c.rollout_id, c.stage,
                     coalesce(sum(c.by) FILTER (WHERE c.status = 'pending'), 0) AS pending,
                     coalesce(sum(c.by) FILTER (WHERE c.status = 'dispatched'), 0) AS dispatched,
                     coalesce(sum(c.by) FILTER (WHERE c.status = 'succeeded'), 0) AS succeeded,
                     coalesce(sum(c.by) FILTER (WHERE c.status = 'failed'), 0) AS failed,
                     coalesce(sum(c.by) FILTER (WHERE c.status = 'skipped'), 0) AS skipped
              FROM (SELECT n.rollout_id, n.stage, n.status, 1 AS by FROM new_rows n
                    UNION ALL SELECT o.rollout_id, o.stage, o.status, -1 FROM old_rows o) c
              GROUP BY c.rollout_id, c.stage) d
        WHERE s.rollout_id = d.rollout_id AND s.number = d.stage
          -- A worker whose graph leaves its pack does not wait for the controller, which holds the stage's row.
          AND (d.pending, d.dispatched, d.succeeded, d.failed, d.skipped) <> (0, 0, 0, 0, 0);
    FOR sent IN
        SELECT n.rollout_id, max(n.stage) AS stage
        FROM new_rows n JOIN old_rows o ON o.rollout_id = n.rollout_id AND o.graph_id = n.graph_id
        WHERE n.status = 'dispatched' AND o.status <> 'dispatched' GROUP BY n.rollout_id
    LOOP
        -- Locks both: a committed hold is seen here, and an uncommitted one waits for this transaction.
        SELECT r.status, r.stage, least(r.max_in_flight, r.pace) AS max_in_flight, f.held_at INTO rollout
            FROM rollouts r, rollout_fleet f WHERE r.id = sent.rollout_id FOR UPDATE OF r FOR SHARE OF f;
        IF rollout.status <> 'running' OR rollout.held_at IS NOT NULL THEN
            RAISE EXCEPTION 'rollout % is held: nothing is dispatched (F3)', sent.rollout_id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF sent.stage > rollout.stage THEN
            RAISE EXCEPTION 'stage % of rollout % is not open (F2)', sent.stage, sent.rollout_id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF EXISTS (SELECT FROM (SELECT DISTINCT n.pack_id FROM new_rows n WHERE n.rollout_id = sent.rollout_id) n
                   LEFT JOIN packs p ON p.id = n.pack_id AND p.rollout_id = sent.rollout_id
                   WHERE n.pack_id IS NOT NULL AND p.id IS NULL) THEN
            RAISE EXCEPTION 'a pack that is sent is not one of rollout %', sent.rollout_id
                USING ERRCODE = 'foreign_key_violation';
        END IF;
        -- A pack is one unit: it has a few graphs in hand at a time, for a moment.
        IF (SELECT count(*) FROM rollout_members m WHERE m.rollout_id = sent.rollout_id AND m.status = 'dispatched'
            AND m.pack_id IS NULL AND NOT m.paused)
           + (SELECT count(*) FROM packs p WHERE p.rollout_id = sent.rollout_id AND p.status IN ('sent', 'running'))
           > rollout.max_in_flight THEN
            RAISE EXCEPTION 'rollout % has % places (F1)', sent.rollout_id, rollout.max_in_flight
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER rollout_members_follow_their_states AFTER UPDATE ON rollout_members
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION follow_members();

-- begin_and_open for a graph of a pack. NULL also where this try of the member is over, the rollout does not run or was
-- resumed since p_since (perhaps with other code), all rollouts are held, or the controller has closed the pack.
CREATE FUNCTION begin_packed(p_migration uuid, p_graph uuid, p_graph_type text, p_from integer, p_to integer,
    p_plan jsonb, p_request text, p_by text, p_reason text, p_deadline_seconds double precision, p_next_to integer, p_hop text,
    p_fingerprint text, p_worker text, p_pid integer, p_task text,
    p_rollout uuid, p_pack uuid, p_number integer, p_since timestamptz,
    OUT attempt_id bigint, OUT slug text, OUT config jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    opened record;
BEGIN
    PERFORM FROM rollout_members m JOIN rollouts r ON r.id = m.rollout_id JOIN packs p ON p.id = m.pack_id, rollout_fleet f
        WHERE m.rollout_id = p_rollout AND m.graph_id = p_graph AND m.number = p_number AND m.pack_id = p_pack
          AND m.status = 'dispatched' AND p.status = 'running' AND r.status = 'running' AND r.failures_since = p_since
          AND f.held_at IS NULL;
    IF NOT FOUND THEN
        PERFORM set_config('graph_migrator.answer', '{"attempt_id": null, "slug": null, "config": null}', false);
        RETURN;
    END IF;
    opened := begin_and_open(p_migration, p_graph, p_graph_type, p_from, p_to, p_plan, p_request, p_by, p_reason,
                             p_deadline_seconds, p_next_to, p_hop, p_fingerprint, p_worker, p_pid, p_task);
    attempt_id := opened.attempt_id;
    slug := opened.slug;
    config := opened.config;
END $$;

-- begin_packed for several graphs with one plan, in one transaction: what each brings, in their order, NULL for one that
-- begin_packed would leave. From then on they share the transactions of their hops (turn_to). Without a rollout, what
-- begin_and_open looks at is all.
CREATE FUNCTION begin_together(p_migrations uuid[], p_graphs uuid[], p_requests text[], p_numbers integer[], p_graph_type text,
    p_from integer, p_to integer, p_plan jsonb, p_by text, p_reason text, p_deadline_seconds double precision, p_next_to integer,
    p_hop text, p_fingerprint text, p_worker text, p_pid integer, p_task text,
    p_rollout uuid, p_pack uuid, p_since timestamptz, OUT opened jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    due uuid[] := p_graphs;
    free uuid[];
    begun integer;
    nothing text := set_config('synchronous_commit', 'off', true);
BEGIN
    IF p_rollout IS NOT NULL THEN
        due := ARRAY(SELECT m.graph_id FROM unnest(p_graphs, p_numbers) x (graph_id, number)
            JOIN rollout_members m ON m.rollout_id = p_rollout AND m.graph_id = x.graph_id AND m.number = x.number
            WHERE m.pack_id = p_pack AND m.status = 'dispatched' AND EXISTS (
                SELECT FROM rollouts r, packs p, rollout_fleet f WHERE r.id = p_rollout AND r.status = 'running'
                AND r.failures_since = p_since AND p.id = p_pack AND p.status = 'running' AND f.held_at IS NULL));
    END IF;
    FOR i IN REVERSE cardinality(due) .. 1 LOOP
        IF NOT pg_try_advisory_lock(lock_key(due[i])) THEN
            due := due[:i - 1] || due[i + 1:];
        END IF;
    END LOOP;
    SELECT array_agg(g.id), jsonb_object_agg(g.id, jsonb_build_object('slug', g.slug, 'config', g.config)) INTO free, opened
        FROM unnest(p_graphs, p_requests) x (graph_id, request) JOIN graphs g ON g.id = x.graph_id
        WHERE g.id = ANY (due) AND g.graph_type = p_graph_type AND g.version = p_from AND g.migration_id IS NULL
          AND g.partially_migrated IS NULL AND NOT EXISTS (SELECT FROM requests r WHERE r.task_id = x.request);
    INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, task_id, plan,
            requested_by, reason, deadline, started_at)
        SELECT x.id, x.graph_id, p_graph_type, p_from, p_to, 'running', x.request, p_plan, p_by, p_reason,
               clock_timestamp() + make_interval(secs => p_deadline_seconds), clock_timestamp()
        FROM unnest(p_migrations, p_graphs, p_requests) x (id, graph_id, request) WHERE x.graph_id = ANY (free);
    FOR i IN 1 .. cardinality(p_graphs) LOOP
        IF p_graphs[i] = ANY (free) THEN
            nothing := set_config('graph_migrator.executor', p_migrations[i]::text, true);
            UPDATE graphs SET migration_id = p_migrations[i], updated_at = clock_timestamp()
                WHERE id = p_graphs[i] AND version = p_from AND migration_id IS NULL AND partially_migrated IS NULL;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'graph % is not free at version %', p_graphs[i], p_from USING ERRCODE = 'GM001';
            END IF;
        ELSIF p_graphs[i] = ANY (due) THEN
            nothing := pg_advisory_unlock(lock_key(p_graphs[i]));
        END IF;
    END LOOP;
    INSERT INTO requests (task_id, verb, graph_id, target, migration_id, requested_by)
        SELECT x.request, 'migrate', x.graph_id, p_to, x.id, p_by
        FROM unnest(p_migrations, p_graphs, p_requests) x (id, graph_id, request)
        WHERE x.graph_id = ANY (free) AND x.request IS NOT NULL ON CONFLICT (task_id) DO NOTHING;
    GET DIAGNOSTICS begun = ROW_COUNT;
    IF begun <> (SELECT count(*) FROM unnest(p_graphs, p_requests) x (graph_id, request)
                 WHERE x.graph_id = ANY (free) AND x.request IS NOT NULL) THEN
        nothing := answered_meanwhile('of one of several graphs');
    END IF;
    WITH attempts AS (
        INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt,
                dispatch, worker, pid, task_id)
            SELECT x.id, x.graph_id, p_from, p_next_to, p_hop, p_fingerprint, 1, 1, p_worker, p_pid, p_task
            FROM unnest(p_migrations, p_graphs) x (id, graph_id) WHERE x.graph_id = ANY (free) RETURNING id, graph_id)
    SELECT jsonb_agg(opened -> x.graph_id::text || jsonb_build_object('attempt_id', a.id) ORDER BY x.place) INTO opened
        FROM unnest(p_graphs) WITH ORDINALITY x (graph_id, place) LEFT JOIN attempts a ON a.graph_id = x.graph_id;
    nothing := set_config('graph_migrator.together', array_to_string(ARRAY(
        SELECT x.id FROM unnest(p_migrations, p_graphs) x (id, graph_id) WHERE x.graph_id = ANY (free)), ' '), false);
    nothing := set_config('graph_migrator.executor', '', false);
    nothing := set_config('graph_migrator.answer', jsonb_build_object('opened', opened)::text, false);
END $$;
