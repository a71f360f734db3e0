-- What recovery reads and writes, and the report that callers get.

-- Whether a graph's lock is free at this moment.
CREATE FUNCTION lock_is_free(p_graph uuid) RETURNS boolean LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    RETURN pg_try_advisory_lock(lock_key(p_graph)) AND pg_advisory_unlock(lock_key(p_graph));
END $$;

-- Migrations that may need recovery and that nobody executes: a running row whose executor is dead, an operator's
-- request that nobody has carried out yet, or a deadline that has passed (the oldest p_most_migrations). Each costs the sweep
-- some messages, so migrations with a live executor are left out here. Reads only indexes.
CREATE FUNCTION recovery_candidates(p_most_migrations integer) RETURNS SETOF uuid LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    found uuid[];
    late record;
    left_over integer := p_most_migrations;
BEGIN
    found := ARRAY(SELECT r.id FROM (
        SELECT a.migration_id AS id, a.graph_id FROM hop_attempts a WHERE a.status = 'running' AND a.shard IS NULL
        UNION SELECT m.id, m.graph_id FROM migrations m WHERE m.status IN ('pausing', 'cancelling')) r
        WHERE lock_is_free(r.graph_id));
    RETURN QUERY SELECT unnest(found);
    -- statement_timestamp() is stable, so the index ends the scan; clock_timestamp() would filter every waiting one.
    FOR late IN
        SELECT m.id, m.graph_id FROM migrations m
        WHERE m.status IN ('queued', 'running', 'pausing', 'cancelling') AND m.deadline < statement_timestamp()
        ORDER BY m.deadline
    LOOP
        EXIT WHEN left_over <= 0;
        IF late.id <> ALL (found) AND lock_is_free(late.graph_id) THEN
            RETURN NEXT late.id;
            left_over := left_over - 1;
        END IF;
    END LOOP;
END $$;

-- Tries the graph's lock for this transaction and reads what recovery decides on. NULL graph_id: not taken.
CREATE FUNCTION lock_and_load_stalled(p_migration uuid, OUT graph_id uuid, OUT status text, OUT overdue boolean,
    OUT dispatch integer, OUT running_id bigint, OUT running_batches integer, OUT running_crashed boolean,
    OUT hop_name text, OUT hop_to integer, OUT interruptions integer, OUT crashes integer, OUT how_crashed text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    forgiven bigint;
    graph uuid;
BEGIN
    SELECT m.graph_id INTO graph FROM migrations m WHERE m.id = p_migration;
    IF graph IS NULL OR NOT pg_try_advisory_xact_lock(lock_key(graph)) THEN
        RETURN;
    END IF;
    SELECT m.graph_id, m.status, m.deadline < clock_timestamp(), m.dispatch, m.retries_reset_after_id
        INTO graph_id, status, overdue, dispatch, forgiven
        FROM migrations m WHERE m.id = p_migration FOR UPDATE;
    SELECT a.id, a.batches, has_crashed(a.id), a.hop_name, a.to_version
        INTO running_id, running_batches, running_crashed, hop_name, hop_to
        FROM hop_attempts a WHERE a.migration_id = p_migration AND a.status = 'running' AND a.shard IS NULL;
    running_crashed := coalesce(running_crashed, false);
    SELECT l.interruptions, l.crashes, l.how_crashed INTO interruptions, crashes, how_crashed
        FROM count_losses(p_migration, hop_to, forgiven, NULL) l;
END $$;

-- Marks a dead executor's attempt and makes room for the next one.
CREATE FUNCTION record_redispatch(p_migration uuid, p_running bigint, p_deadline_seconds double precision) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE hop_attempts SET status = 'lost', finished_at = clock_timestamp()
        WHERE id = p_running AND status = 'running';
    UPDATE migrations SET dispatch = dispatch + 1, redeliveries = 0,
           deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds)
        WHERE id = p_migration AND status IN ('queued', 'running');
END $$;

-- The same dispatch, and a deadline twice as far away, up to p_most_seconds.
CREATE FUNCTION record_redelivery(p_migration uuid, p_deadline_seconds double precision, p_most_seconds double precision)
RETURNS void LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE migrations SET redeliveries = redeliveries + 1, deadline = clock_timestamp()
           + make_interval(secs => least(p_deadline_seconds * 2 ^ least(redeliveries + 1, 30), p_most_seconds))
        WHERE id = p_migration
$$;

-- One migration as its callers see it. NULL where there is none.
CREATE FUNCTION migration_report(p_migration uuid) RETURNS jsonb LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT jsonb_build_object(
        'migration_id', m.id, 'graph_id', m.graph_id, 'graph', coalesce(g.slug, m.graph_id::text),
        'graph_type', m.graph_type, 'status', m.status, 'from_version', m.from_version,
        'to_version', m.to_version, 'version', g.version, 'dispatch', m.dispatch,
        'requested_by', m.requested_by, 'reason', m.reason, 'created_at', m.created_at,
        'started_at', m.started_at, 'finished_at', m.finished_at,
        'error_type', m.error_type, 'error_message', m.error_message, 'error_args', m.error_args,
        'error_rows', (SELECT a.error_rows FROM hop_attempts a WHERE m.status = 'failed' AND a.migration_id = m.id
                       AND a.error_type = m.error_type ORDER BY a.id DESC LIMIT 1),
        'last_applied', (SELECT a.hop_name FROM hop_attempts a WHERE a.migration_id = m.id AND a.shard IS NULL
                         AND a.status IN ('succeeded', 'skipped') ORDER BY a.id DESC LIMIT 1),
        'hops', (SELECT coalesce(jsonb_agg(h.hop ORDER BY h.place), '[]') FROM (
            SELECT min(a.id) AS place, jsonb_build_object(
                'name', (array_agg(a.hop_name ORDER BY a.id DESC))[1],
                'from_version', min(a.from_version), 'to_version', a.to_version,
                -- Of the latest attempt; of a hop's shards, the one that says most about the hop.
                'status', CASE
                    WHEN count(a.shard) = 0 OR bool_or(a.shard IS NULL AND a.status IN ('succeeded', 'skipped'))
                        THEN (array_agg(a.status ORDER BY a.id DESC))[1]
                    WHEN bool_or(a.status = 'running') OR m.status = 'running' THEN 'running'
                    WHEN m.status = 'failed' AND bool_or(a.status = 'failed') THEN 'failed'
                    ELSE (array_agg(a.status ORDER BY a.id DESC))[1] END,
                'attempts', count(*), 'shards', nullif(count(DISTINCT a.shard), 0),
                'rows_changed', coalesce(sum(a.rows_changed) FILTER (WHERE a.batches > 0
                                         OR a.status IN ('succeeded', 'skipped')), 0),
                -- Those of shards overlap.
                'seconds', round(extract(epoch FROM CASE WHEN count(a.shard) > 0
                    THEN max(coalesce(a.finished_at, clock_timestamp())) - min(a.started_at)
                    ELSE sum(coalesce(a.finished_at, clock_timestamp()) - a.started_at) END)::numeric, 4)) AS hop
            FROM hop_attempts a WHERE a.migration_id = m.id GROUP BY a.to_version) h))
    FROM migrations m LEFT JOIN graphs g ON g.id = m.graph_id WHERE m.id = p_migration
$$;

-- The rest of a live migration's chain.
CREATE FUNCTION remaining_chain(p_migration uuid, OUT graph text, OUT graph_type text, OUT number integer,
    OUT task_id text, OUT steps jsonb)
LANGUAGE sql STABLE SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT g.slug, m.graph_type, m.dispatch, m.task_id,
           (SELECT coalesce(jsonb_agg(s.step ORDER BY s.place), '[]')
            FROM jsonb_array_elements(m.plan) WITH ORDINALITY AS s (step, place)
            WHERE ((s.step->>'to_version')::integer - g.version) * sign(m.to_version - m.from_version) > 0)
    FROM migrations m JOIN graphs g ON g.migration_id = m.id
    WHERE m.id = p_migration AND m.status IN ('queued', 'running', 'pausing', 'cancelling')
$$;

-- Records the outcome of a call that began nothing. The first outcome stays: a duplicate of the same message that came
-- to another outcome reads again, and answers as the first did.
CREATE FUNCTION record_outcome(p_task text, p_verb text, p_graph text, p_target integer, p_outcome jsonb,
    p_by text) RETURNS void LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO requests (task_id, verb, graph_id, target, outcome, requested_by)
        VALUES (p_task, p_verb, graph_id_of(p_graph),
                p_target, p_outcome, p_by)
        ON CONFLICT (task_id) DO NOTHING;
    IF NOT FOUND AND EXISTS (SELECT FROM requests r WHERE r.task_id = p_task AND r.verb = p_verb
                             AND r.outcome IS DISTINCT FROM p_outcome) THEN
        PERFORM answered_meanwhile(p_task);
    END IF;
END $$;

CREATE FUNCTION count_mismatch(p_migration uuid, p_deadline_seconds double precision) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE migrations SET code_mismatches = code_mismatches + 1,
           code_mismatch_since = coalesce(code_mismatch_since, clock_timestamp()),
           deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds)
        WHERE id = p_migration AND status IN ('queued', 'running')
$$;

CREATE FUNCTION load_attempt_status(p_attempt bigint) RETURNS text LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$ SELECT status FROM hop_attempts WHERE id = p_attempt $$;

CREATE FUNCTION become_executor(p_migration uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('graph_migrator.executor', p_migration::text, false);
END $$;

CREATE FUNCTION take_lock(p_graph uuid, p_wait_ms integer) RETURNS void LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM set_config('lock_timeout', p_wait_ms::text, true);
    PERFORM pg_advisory_lock(lock_key(p_graph));
END $$;

-- ── batches ────────────────────────────────────────────────────────────────────────────────────────

-- Opens the transaction of one batch: checks both fences, and returns what an operator has requested meanwhile.
CREATE FUNCTION open_batch(p_attempt bigint, p_migration uuid, p_graph uuid, OUT status text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM require_executor(p_migration, p_graph);
    PERFORM FROM hop_attempts WHERE id = p_attempt AND hop_attempts.status = 'running' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % of migration % is no longer running', p_attempt, p_migration
            USING ERRCODE = 'GM001';
    END IF;
    PERFORM FROM graphs WHERE id = p_graph AND migration_id = p_migration FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'graph % is not owned by migration %', p_graph, p_migration USING ERRCODE = 'GM001';
    END IF;
    -- Not FOR UPDATE, or an operator would wait for the batch to end. `stop_migration` checks again before it acts, and a
    -- request that comes during the batch takes effect at the next one.
    SELECT m.status INTO status FROM migrations m WHERE m.id = p_migration;
END $$;

-- A hop's rate, given how many rows it has processed in how many seconds; the last half minute counts most. Without
-- rows the rate stays as it is.
CREATE FUNCTION paced(p_before double precision, p_rows bigint, p_seconds double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_rows <= 0 OR p_seconds <= 0 THEN p_before
                WHEN p_before IS NULL THEN p_rows / p_seconds
                ELSE p_rows / p_seconds + (p_before - p_rows / p_seconds) * exp(-least(p_seconds, 3000) / 30) END
$$;

-- What every batch records, in the transaction of its data: the attempt's progress, and the migration's deadline.
CREATE FUNCTION note_batch(p_attempt bigint, p_migration uuid, p_done bigint, p_rows bigint, p_deadline_seconds double precision,
    OUT rate double precision)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE hop_attempts a SET batches = a.batches + 1, done = p_done, rows_changed = a.rows_changed + p_rows,
           progress_at = clock_timestamp(), rows_per_second = paced(a.rows_per_second, p_done - a.done,
                extract(epoch FROM clock_timestamp() - a.progress_at)::double precision)
        WHERE a.id = p_attempt AND a.status = 'running' RETURNING a.rows_per_second INTO rate;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % of migration % is no longer running', p_attempt, p_migration
            USING ERRCODE = 'GM001';
    END IF;
    PERFORM require_transaction(p_attempt);
    UPDATE migrations SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
        WHERE id = p_migration;
END $$;

-- Saves the hop's cursor and progress, in the transaction of the batch's data.
CREATE FUNCTION save_batch(p_attempt bigint, p_migration uuid, p_to integer, p_cursor jsonb, p_done bigint,
    p_rows bigint, p_deadline_seconds double precision, OUT rate double precision)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    rate := note_batch(p_attempt, p_migration, p_done, p_rows, p_deadline_seconds);
    INSERT INTO checkpoints AS c (migration_id, to_version, cursor, done)
        VALUES (p_migration, p_to, p_cursor, p_done)
        ON CONFLICT (migration_id, to_version) DO UPDATE
            SET cursor = excluded.cursor, done = excluded.done, updated_at = clock_timestamp();
END $$;

-- Progress of a hop that is one transaction: written beside it, so that others can see it.
CREATE FUNCTION save_progress(p_attempt bigint, p_done bigint, p_total bigint) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE hop_attempts SET done = coalesce(p_done, done), total = coalesce(p_total, total),
           progress_at = clock_timestamp(), rows_per_second = paced(rows_per_second, p_done - done,
                extract(epoch FROM clock_timestamp() - progress_at)::double precision)
        WHERE id = p_attempt AND status = 'running'
$$;

-- Sets the statement timeout for the session, until it is set to 0 again: a batched hop has many transactions. In the
-- caller's transaction (p_callers): for that transaction.
CREATE FUNCTION set_timeout(p_ms integer, p_callers boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('statement_timeout', p_ms::text, p_callers);
END $$;

-- An operator releases a graph from its migration; under the graph's lock. p_partially_migrated is what stays
-- as the record of the unfinished hop of a graph that is partially migrated.
-- p_terminated_by: who ended its executor for this. Recovery may have finished the attempt already.
CREATE FUNCTION release_migration(p_migration uuid, p_graph uuid, p_partially_migrated jsonb, p_terminated_by text DEFAULT NULL)
RETURNS text
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    before text;
BEGIN
    SELECT status INTO before FROM migrations WHERE id = p_migration FOR UPDATE;
    IF p_partially_migrated IS NOT NULL THEN
        p_partially_migrated := jsonb_set(p_partially_migrated, '{cursor}', coalesce(
            shards_as_json(p_migration, (p_partially_migrated->>'to_version')::integer), p_partially_migrated->'cursor'));
    END IF;
    DELETE FROM shards WHERE migration_id = p_migration;
    UPDATE hop_attempts SET status = 'lost', finished_at = clock_timestamp()
        WHERE migration_id = p_migration AND status = 'running';
    IF p_terminated_by IS NOT NULL THEN
        INSERT INTO losses (attempt_id, because, how)
            SELECT a.id, 'operator', p_terminated_by FROM hop_attempts a
            WHERE a.id = (SELECT max(b.id) FROM hop_attempts b WHERE b.migration_id = p_migration) AND a.status = 'lost'
            ON CONFLICT DO NOTHING;
    END IF;
    UPDATE migrations SET status = 'released', finished_at = coalesce(finished_at, clock_timestamp())
        WHERE id = p_migration;
    PERFORM release_claim(p_migration, p_graph);
    IF p_partially_migrated IS NOT NULL THEN
        PERFORM set_config('graph_migrator.executor', p_migration::text, true);
        UPDATE graphs SET partially_migrated = p_partially_migrated WHERE id = p_graph AND migration_id IS NULL;
        PERFORM set_config('graph_migrator.executor', '', true);
    END IF;
    PERFORM notify_waiters(p_migration);
    RETURN before;
END $$;

-- Dates the last change of graphs whose executor died between its last commit and the stamp.
CREATE FUNCTION stamp_graphs() RETURNS integer LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    graph uuid;
    stamped integer := 0;
BEGIN
    -- If the next migration has claimed the graph already, that migration dates it.
    FOR graph IN SELECT g.id FROM graphs g WHERE g.changed_at IS NULL AND g.migration_id IS NULL LOOP
        IF pg_try_advisory_xact_lock(lock_key(graph)) THEN
            UPDATE graphs SET changed_at = clock_timestamp()
                WHERE id = graph AND changed_at IS NULL AND migration_id IS NULL;
            stamped := stamped + 1;
        END IF;
    END LOOP;
    RETURN stamped;
END $$;

-- Requests that have an outcome and whose caller may have no answer yet, in the order in which they are due.
-- The worker that settled a request gets p_grace_seconds to answer its caller. A request that could not be answered is
-- due again after a pause, so that the oldest ones do not fill every sweep.
CREATE FUNCTION unanswered_calls(p_grace_seconds double precision, p_most_calls integer)
RETURNS TABLE (task_id text, succeeded boolean, migration_id uuid, recorded jsonb, ended timestamptz)
LANGUAGE sql STABLE SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT r.task_id, CASE WHEN r.outcome IS NULL THEN m.status = 'succeeded' ELSE NOT r.outcome ? 'error' END,
           r.migration_id, r.outcome, r.settled_at
    FROM requests r LEFT JOIN migrations m ON m.id = r.migration_id
    WHERE r.answered_at IS NULL AND (r.settled_at IS NOT NULL OR r.outcome IS NOT NULL)
      AND coalesce(r.next_answer_at, r.settled_at, r.created_at) <= statement_timestamp()
      AND (r.next_answer_at IS NOT NULL
           OR coalesce(r.settled_at, r.created_at) < statement_timestamp() - make_interval(secs => p_grace_seconds))
    ORDER BY coalesce(r.next_answer_at, r.settled_at, r.created_at) LIMIT p_most_calls
$$;

-- p_ended: when the migration ended that each caller was answered for. One that was resumed meanwhile has
-- another answer to come.
CREATE FUNCTION mark_answered(p_tasks text[], p_ended timestamptz[]) RETURNS void LANGUAGE sql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE requests r SET answered_at = clock_timestamp()
        FROM unnest(p_tasks, p_ended) AS answered (task_id, ended)
        WHERE r.task_id = answered.task_id
          AND (answered.ended IS NULL
               OR EXISTS (SELECT FROM migrations m WHERE m.id = r.migration_id AND m.finished_at = answered.ended))
$$;

-- These callers could not be answered. The next try comes after a pause that doubles, from one second to ten minutes.
-- There is none p_most_seconds after the outcome: no backend would keep the answer any longer.
CREATE FUNCTION answers_failed(p_tasks text[], p_reasons text[], p_most_seconds double precision) RETURNS void LANGUAGE sql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE requests r SET answer_failures = r.answer_failures + 1, unanswered_because = failed.reason,
           next_answer_at = clock_timestamp() + make_interval(secs => least(600, 2 ^ least(r.answer_failures, 20))),
           answered_at = CASE WHEN coalesce((SELECT m.finished_at FROM migrations m WHERE m.id = r.migration_id
                                             AND r.verb = 'migrate'), r.created_at)
                                   < clock_timestamp() - make_interval(secs => p_most_seconds) THEN clock_timestamp() END
        FROM unnest(p_tasks, p_reasons) AS failed (task_id, reason)
        WHERE r.task_id = failed.task_id AND r.answered_at IS NULL
$$;

-- Whether this session may sweep now. With p_holder: only while that process has the lease, which is taken or extended
-- by p_seconds; so a fleet makes as many sweeps as one worker. Without p_holder: whenever nobody else sweeps.
CREATE FUNCTION try_sweep(p_holder text, p_seconds double precision) RETURNS boolean LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF p_holder IS NOT NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);  -- a lease that a crash of Postgres takes back is over
        UPDATE sweep_lease SET holder = p_holder, ends_at = clock_timestamp() + make_interval(secs => p_seconds)
            WHERE holder = p_holder OR ends_at < clock_timestamp();
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    RETURN pg_try_advisory_lock(5716853094183207171);
END $$;

CREATE FUNCTION end_sweep() RETURNS boolean LANGUAGE sql AS $$
    SELECT pg_advisory_unlock(5716853094183207171)
$$;

-- ── operators ──────────────────────────────────────────────────────────────────────────────────────

-- Reads what an operator's verb decides on. The migration's row stays locked until the verb has written.
CREATE FUNCTION load_operator_state(p_graph text, p_request text, OUT graph_id uuid, OUT slug text,
    OUT graph_type text, OUT version integer, OUT partially_migrated jsonb, OUT migration_id uuid, OUT status text,
    OUT dispatch integer, OUT to_version integer, OUT plan jsonb, OUT checkpoint jsonb,
    OUT known boolean, OUT known_outcome jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    SELECT g.migration_id INTO migration_id FROM graphs g
        WHERE g.id = graph_id_of(p_graph);
    PERFORM FROM migrations m WHERE m.id = load_operator_state.migration_id FOR UPDATE;
    SELECT g.id, g.slug, g.graph_type, g.version, g.partially_migrated, m.id, m.status, m.dispatch, m.to_version, m.plan,
           (SELECT to_jsonb(c) FROM checkpoints c WHERE c.migration_id = m.id LIMIT 1)
        INTO graph_id, slug, graph_type, version, partially_migrated, migration_id, status, dispatch, to_version, plan,
             checkpoint
        FROM graphs g LEFT JOIN migrations m ON m.id = g.migration_id
        WHERE g.id = graph_id_of(p_graph);
    SELECT true, r.outcome INTO known, known_outcome FROM requests r WHERE r.task_id = p_request;
    known := coalesce(known, false);
END $$;

-- Follows one edge. p_again: a new dispatch number, so that late messages of the old chain do nothing.
CREATE FUNCTION follow_edge(p_migration uuid, p_from text, p_to text, p_again boolean,
    p_deadline_seconds double precision, OUT dispatch integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE migrations m SET status = p_to, dispatch = m.dispatch + p_again::integer, redeliveries = 0,
           deadline = CASE WHEN p_again THEN clock_timestamp() + make_interval(secs => p_deadline_seconds)
                           ELSE m.deadline END
        WHERE m.id = p_migration AND m.status = p_from RETURNING m.dispatch INTO dispatch;
    IF dispatch IS NULL THEN
        RAISE EXCEPTION 'migration % is not %', p_migration, p_from USING ERRCODE = 'GM001';
    END IF;
END $$;

CREATE FUNCTION record_verb(p_task text, p_verb text, p_graph uuid, p_migration uuid, p_outcome jsonb, p_by text)
RETURNS void LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    INSERT INTO requests (task_id, verb, graph_id, migration_id, outcome, requested_by)
        VALUES (p_task, p_verb, p_graph, p_migration, p_outcome, p_by)
        ON CONFLICT (task_id) DO UPDATE SET outcome = excluded.outcome WHERE requests.outcome IS NULL
$$;

CREATE FUNCTION declare_whole(p_graph uuid) RETURNS void LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM set_config('graph_migrator.executor',
                       (SELECT partially_migrated->>'migration_id' FROM graphs WHERE id = p_graph), true);
    UPDATE graphs SET partially_migrated = NULL, updated_at = clock_timestamp() WHERE id = p_graph;
    PERFORM set_config('graph_migrator.executor', '', true);
END $$;

CREATE FUNCTION set_owner_read_only(p_graph text, p_on boolean, OUT graph_id uuid, OUT slug text, OUT was boolean)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    SELECT g.id, g.slug, g.owner_read_only INTO graph_id, slug, was FROM graphs g
        WHERE g.id = graph_id_of(p_graph) FOR NO KEY UPDATE;
    UPDATE graphs g SET owner_read_only = p_on, updated_at = clock_timestamp()
        WHERE g.id = set_owner_read_only.graph_id AND g.owner_read_only <> p_on;
END $$;

CREATE FUNCTION terminate_holders(p_graph uuid) RETURNS integer LANGUAGE sql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT count(pg_terminate_backend(l.pid))::integer FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
      AND l.classid::bigint = (lock_key(p_graph) >> 32) & 4294967295
      AND l.objid::bigint = lock_key(p_graph) & 4294967295
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
$$;

-- How many rows this transaction has written, by table: tables of graphs, and users' own.
CREATE FUNCTION rows_written() RETURNS jsonb LANGUAGE sql AS $$
    SELECT coalesce(jsonb_object_agg(CASE s.schemaname WHEN 'graph_migrator' THEN s.relname
                                     ELSE s.schemaname || '.' || s.relname END, s.n_tup_ins + s.n_tup_upd + s.n_tup_del), '{}')
    FROM pg_catalog.pg_stat_xact_user_tables s
    WHERE s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0
      AND (s.schemaname <> 'graph_migrator' OR s.relname IN ('nodes', 'edges'))
$$;

-- Lets this transaction write the data of a graph whose migration failed or is paused, as that migration's executor,
-- and records who does it and why. Lock and token end with the transaction; a rollback removes the record. The row of
-- the migration stays locked, so retry, resume and release wait. Raises 55P03 if somebody holds the graph's lock.
CREATE FUNCTION open_repair(p_graph text, p_by text, p_reason text, OUT id uuid, OUT slug text, OUT graph_type text,
    OUT version integer, OUT migration_id uuid, OUT status text, OUT request text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    SELECT g.id, g.slug, g.graph_type, g.version, g.migration_id INTO id, slug, graph_type, version, migration_id
        FROM graphs g WHERE g.id = graph_id_of(p_graph);
    SELECT m.status INTO status FROM migrations m WHERE m.id = open_repair.migration_id FOR UPDATE;
    IF id IS NULL OR status IS NULL OR status NOT IN ('failed', 'paused') THEN
        RETURN;
    END IF;
    IF NOT pg_try_advisory_xact_lock(lock_key(id)) THEN
        RAISE EXCEPTION 'the lock of graph % is held', slug USING ERRCODE = 'lock_not_available';
    END IF;
    -- They were made of what the repair is about to change.
    UPDATE rebuilds r SET status = 'discarded'
        WHERE r.migration_id = open_repair.migration_id AND r.status IN ('staging', 'staged');
    request := 'repair-' || gen_random_uuid();
    INSERT INTO requests (task_id, verb, graph_id, migration_id, requested_by, outcome, answered_at)
        VALUES (request, 'repair', id, migration_id, p_by,
                jsonb_build_object('reason', p_reason, 'before', rows_written()), clock_timestamp());
    PERFORM set_config('graph_migrator.executor', migration_id::text, true),
            set_config('graph_migrator.repairing', migration_id::text, true);
END $$;

-- Ends what open_repair began, and records how many rows of which tables were written in between.
CREATE FUNCTION close_repair(p_request text) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE requests r SET outcome = jsonb_build_object('reason', r.outcome->'reason', 'rows', (
            SELECT coalesce(jsonb_object_agg(w.key, w.value::bigint - coalesce((r.outcome->'before'->>w.key)::bigint, 0)), '{}')
            FROM jsonb_each_text(rows_written()) w
            WHERE w.value::bigint > coalesce((r.outcome->'before'->>w.key)::bigint, 0)))
        WHERE r.task_id = p_request;
    PERFORM set_config('graph_migrator.executor', '', true), set_config('graph_migrator.repairing', '', true);
END $$;

-- ── replacing a graph's data ───────────────────────────────────────────────────────────────────────

-- Removes all data of a graph in the caller's transaction, which then writes the new data; id, slug and history stay.
-- Waits p_wait_ms for open write transactions (55P03) and refuses all others until the end. A partially migrated graph
-- is whole again afterwards. Returns no row if there is no such graph; if it has another type, nothing is removed.
-- Writers are refused until stamp_graphs has dated the change: they may have read what was replaced.
CREATE FUNCTION open_replacement(p_graph text, p_type text, p_version integer, p_by text, p_wait_ms integer,
    OUT id uuid, OUT slug text, OUT graph_type text, OUT version integer, OUT nodes bigint, OUT edges bigint)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    g graphs;
BEGIN
    PERFORM set_config('lock_timeout', p_wait_ms::text, true);
    PERFORM pg_advisory_xact_lock(lock_key(graph_id_of(p_graph)));
    PERFORM set_config('lock_timeout', '0', true);
    SELECT * INTO g FROM graphs WHERE graphs.id = graph_id_of(p_graph) FOR UPDATE;
    id := g.id; slug := g.slug; graph_type := g.graph_type; version := g.version;
    IF id IS NULL OR graph_type <> p_type THEN
        RETURN;
    END IF;
    IF g.migration_id IS NOT NULL OR g.owner_read_only THEN
        PERFORM refuse_read_only(g);
    END IF;
    -- This transaction may write although it began before the change: it writes nothing that it has read.
    PERFORM set_config('graph_migrator.moved_here', concat(current_setting('graph_migrator.moved_here', true), ' ', id), true);
    DELETE FROM edges e WHERE e.graph_id = g.id;
    GET DIAGNOSTICS edges = ROW_COUNT;
    DELETE FROM nodes n WHERE n.graph_id = g.id;
    GET DIAGNOSTICS nodes = ROW_COUNT;
    DELETE FROM graphs WHERE graphs.id = g.id;
    INSERT INTO graphs (id, slug, graph_type, version, created_at, changed_at)
        VALUES (g.id, g.slug, g.graph_type, p_version, g.created_at, NULL);
    INSERT INTO requests (task_id, verb, graph_id, target, requested_by, outcome, answered_at)
        VALUES ('replace-' || gen_random_uuid(), 'replace', g.id, p_version, p_by,
                jsonb_build_object('from_version', g.version, 'nodes', nodes, 'edges', edges,
                                   'partially_migrated', g.partially_migrated IS NOT NULL), clock_timestamp());
END $$;

-- ── calls on their way ─────────────────────────────────────────────────────────────────────────────

-- Records a call after it was sent: a call that the broker has refused leaves no record. A worker may be quicker.
CREATE FUNCTION record_sent(p_call text, p_graph uuid, p_target integer, p_by text) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp AS $$
    INSERT INTO waiting_calls (task_id, graph_id, target, requested_by) SELECT p_call, p_graph, p_target, p_by
        WHERE NOT EXISTS (SELECT FROM requests r WHERE r.task_id = p_call)
        ON CONFLICT DO NOTHING
$$;

-- A worker could not carry out the call and has requeued its message. Workers requeue it for p_most_seconds from the
-- first time on; NULL: without a limit. Calls for an unknown graph are not recorded.
CREATE FUNCTION record_requeue(p_call text, p_graph text, p_target integer, p_by text, p_worker text, p_because text,
    p_most_seconds double precision)
RETURNS void LANGUAGE sql SET search_path = graph_migrator, pg_temp AS $$
    INSERT INTO waiting_calls AS w (task_id, graph_id, target, requested_by, tries, refuse_after, worker, because)
        SELECT p_call, g.id, p_target, p_by, 1, clock_timestamp() + make_interval(secs => p_most_seconds), p_worker,
               p_because
        FROM graphs g WHERE g.id = graph_id_of(p_graph)
        ON CONFLICT (task_id) DO UPDATE SET tries = w.tries + 1, worker = excluded.worker, because = excluded.because,
            refuse_after = coalesce(w.refuse_after, excluded.refuse_after)
$$;

-- Removes calls that have their row in requests, and those that no worker has taken for p_most_seconds.
CREATE FUNCTION forget_calls(p_most_seconds double precision) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp AS $$
    DELETE FROM waiting_calls w WHERE w.sent_at < clock_timestamp() - make_interval(secs => p_most_seconds)
        OR EXISTS (SELECT FROM requests r WHERE r.task_id = w.task_id)
$$;

-- ── archiving ──────────────────────────────────────────────────────────────────────────────────────

-- Whether a migration's rows may be archived. It has ended for good, no caller waits for its outcome, no graph
-- refers to it, and monitoring has counted its attempts.
CREATE FUNCTION is_archivable(m migrations, p_before timestamptz) RETURNS boolean LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp AS $$
    SELECT m.status IN ('succeeded', 'cancelled', 'released') AND m.finished_at < p_before
       AND NOT EXISTS (SELECT FROM graphs g WHERE g.migration_id = m.id)
       AND NOT EXISTS (SELECT FROM graphs g WHERE g.id = m.graph_id
                       AND g.partially_migrated->>'migration_id' = m.id::text)
       AND NOT EXISTS (SELECT FROM requests r WHERE r.migration_id = m.id AND r.answered_at IS NULL)
       AND NOT EXISTS (SELECT FROM hop_attempts a WHERE a.migration_id = m.id
                       AND a.id > (SELECT counted_up_to FROM metrics_state))
$$;

-- Removes rows that an archive holds, and records the removal. Audit rows cannot be deleted in any other way. Only the
-- tables' owner may call it. Rows that are gone already are skipped, so a call can be repeated.
CREATE FUNCTION remove_archived(p_archive uuid, p_location text, p_before timestamptz, p_manifest jsonb,
    p_migrations uuid[], p_requests text[], OUT migrations bigint, OUT attempts bigint, OUT requests bigint)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
DECLARE
    kept uuid;
BEGIN
    SELECT m.id INTO kept FROM migrations m WHERE m.id = ANY (p_migrations) AND NOT is_archivable(m, p_before) LIMIT 1;
    IF kept IS NOT NULL THEN
        RAISE EXCEPTION 'migration % cannot be archived: it has not ended before %, or something refers to it', kept, p_before
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    INSERT INTO archives (id, location, before, manifest, removing_xid)
        VALUES (p_archive, p_location, p_before, p_manifest, pg_current_xact_id()::text)
        ON CONFLICT (id) DO UPDATE SET removing_xid = excluded.removing_xid;
    INSERT INTO archived_graphs AS known (graph_id, archive_id, migrations)
        SELECT m.graph_id, p_archive, count(*) FROM migrations m WHERE m.id = ANY (p_migrations) GROUP BY 1
        ON CONFLICT (graph_id, archive_id) DO UPDATE SET migrations = known.migrations + excluded.migrations;
    -- The attempts' place in the proof chain: one row per contiguous range of links.
    INSERT INTO archived_links (graph_id, last_link, first_link, previous, hash, archive_id)
        SELECT x.graph_id, max(x.link), min(x.link), (array_agg(x.previous ORDER BY x.link))[1],
               (array_agg(x.hash ORDER BY x.link DESC))[1], p_archive
        FROM (SELECT a.graph_id, a.link, a.previous, a.hash,
                     a.link - row_number() OVER (PARTITION BY a.graph_id ORDER BY a.link) AS run
              FROM hop_attempts a WHERE a.migration_id = ANY (p_migrations)) x
        GROUP BY x.graph_id, x.run;
    DELETE FROM requests r WHERE (r.migration_id = ANY (p_migrations) OR r.task_id = ANY (p_requests))
        AND r.answered_at IS NOT NULL AND r.created_at < p_before;
    GET DIAGNOSTICS requests = ROW_COUNT;
    DELETE FROM checkpoints c WHERE c.migration_id = ANY (p_migrations);
    DELETE FROM shards s WHERE s.migration_id = ANY (p_migrations);
    DELETE FROM traces t WHERE t.migration_id = ANY (p_migrations);
    DELETE FROM hop_attempts a WHERE a.migration_id = ANY (p_migrations);
    GET DIAGNOSTICS attempts = ROW_COUNT;
    DELETE FROM migrations m WHERE m.id = ANY (p_migrations);
    GET DIAGNOSTICS migrations = ROW_COUNT;
    UPDATE archives a SET removing_xid = NULL, migrations = a.migrations + remove_archived.migrations,
           attempts = a.attempts + remove_archived.attempts, requests = a.requests + remove_archived.requests
        WHERE a.id = p_archive;
END $$;
REVOKE EXECUTE ON FUNCTION remove_archived(uuid, text, timestamptz, jsonb, uuid[], text[]) FROM PUBLIC;
