-- The steps of the protocol that must be one round trip. They read and write; what to do is decided in
-- Python (core/decisions.py). All are VOLATILE: in READ COMMITTED each statement inside takes a snapshot
-- of its own, so what is read after a lock is at least as new as the lock. (One plain statement that
-- locks and reads is wrong: its snapshot is older than its lock.)
--
-- A session keeps the plans of these functions. A plan that was made while the tables were nearly empty would use
-- sequential scans for as long as the session lives. So each function turns these off: it needs few rows, by an index.
--
-- PERFORM makes a query of a call; an assignment to `nothing` does not, and costs a fifth. What is called by every hop and
-- has no SET clause names our functions and tables with their schema.

-- One 64-bit key per graph. The seed is ours, because applications and Alembic use advisory locks too.
CREATE FUNCTION lock_key(p_graph uuid) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN uuid_hash_extended(p_graph, 5716853094183207169);

-- Everybody who waits for a migration holds this key shared (core/inspection/waiting.py).
CREATE FUNCTION wait_key(p_migration uuid) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN uuid_hash_extended(p_migration, 5716853094183207173);

-- Notifies whoever waits for the migration; called in the transaction in which a hop or the migration ends. A commit
-- with a NOTIFY holds a server-wide lock until it is on disk, so a NOTIFY is sent only if somebody waits. A waiter that
-- comes after this check gets the key when this transaction is over, and then reads what it has written.
CREATE FUNCTION notify_waiters(p_migration uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(graph_migrator.wait_key(p_migration)) THEN
        PERFORM pg_notify('graph_migrator', p_migration::text);
    END IF;
END $$;

-- The id of the graph with this id or slug; NULL if there is none. A slug never has the form of a UUID, so each call
-- needs one index lookup. `slug = x OR id::text = x` would read every graph.
CREATE FUNCTION graph_id_of(p_graph text) RETURNS uuid LANGUAGE plpgsql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF p_graph ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN
        RETURN (SELECT g.id FROM graphs g WHERE g.id = p_graph::uuid);
    END IF;
    RETURN (SELECT g.id FROM graphs g WHERE g.slug = p_graph);
END $$;

-- Everything that begin_migration decides on, read under the graph's exclusive session lock.
-- A graph that a live migration owns is not waited for: the caller is refused at once, unlocked.
-- Raises 55P03 when writers in flight keep the lock longer than p_wait_ms.
CREATE FUNCTION lock_and_load_graph(p_graph text, p_request text, p_wait_ms integer, p_session boolean,
    OUT graph_id uuid, OUT slug text, OUT graph_type text, OUT version integer, OUT claim uuid,
    OUT partially_migrated jsonb, OUT status text, OUT dispatch integer, OUT from_version integer,
    OUT to_version integer, OUT plan jsonb, OUT started boolean, OUT checkpoint jsonb,
    OUT request_known boolean, OUT request_migration uuid, OUT request_outcome jsonb, OUT locked boolean,
    OUT undoable_to integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    nothing text;
BEGIN
    locked := false;
    graph_id := graph_id_of(p_graph);
    SELECT g.migration_id INTO claim FROM graphs g WHERE g.id = lock_and_load_graph.graph_id;
    IF claim IS NOT NULL THEN
        SELECT m.status INTO status FROM migrations m WHERE m.id = claim;
    END IF;
    IF graph_id IS NOT NULL AND (claim IS NULL OR status = 'failed') THEN
        nothing := set_config('lock_timeout', p_wait_ms::text, true);
        -- In the caller's transaction the lock must be released with that transaction, however it ends.
        IF p_session THEN
            nothing := pg_advisory_lock(lock_key(graph_id));
        ELSE
            nothing := pg_advisory_xact_lock(lock_key(graph_id));
        END IF;
        locked := true;
    END IF;
    SELECT g.slug, g.graph_type, g.version, g.migration_id, g.partially_migrated, m.status, m.dispatch,
           m.from_version, m.to_version, m.plan, m.started_at IS NOT NULL,
           (SELECT to_jsonb(c) FROM checkpoints c WHERE c.migration_id = m.id LIMIT 1),
           CASE WHEN g.undo_id IS NOT NULL THEN undoable_down_to(g.id) END
        INTO slug, graph_type, version, claim, partially_migrated, status, dispatch,
             from_version, to_version, plan, started, checkpoint, undoable_to
        FROM graphs g LEFT JOIN migrations m ON m.id = g.migration_id WHERE g.id = lock_and_load_graph.graph_id;
    SELECT true, r.migration_id, r.outcome INTO request_known, request_migration, request_outcome
        FROM requests r WHERE r.task_id = p_request;
    request_known := coalesce(request_known, false);
END $$;

-- How often a hop was interrupted without an error of its own, since its last progress and the last retry. Lost: its
-- worker or its session is gone, as far as is known. Crashed: its process died and the worker lived on. p_shard: of
-- one shard.
CREATE FUNCTION count_losses(p_migration uuid, p_to integer, p_forgiven bigint, p_shard integer, OUT interruptions integer,
    OUT crashes integer, OUT how_crashed text, OUT tries integer)
LANGUAGE sql STABLE SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT count(*) FILTER (WHERE a.status = 'lost' AND l.because IS DISTINCT FROM 'process'),
           count(*) FILTER (WHERE l.because = 'process'),
           string_agg(DISTINCT l.how, ', ') FILTER (WHERE l.because = 'process'),
           count(*) FILTER (WHERE a.transient)
    FROM hop_attempts a LEFT JOIN losses l ON l.attempt_id = a.id
    WHERE a.migration_id = p_migration AND a.to_version = p_to AND a.shard IS NOT DISTINCT FROM p_shard
      AND a.id > p_forgiven
      AND a.id > coalesce((SELECT max(b.id) FROM hop_attempts b WHERE b.migration_id = p_migration
                           AND b.to_version = p_to AND b.shard IS NOT DISTINCT FROM p_shard AND b.batches > 0), 0)
$$;

CREATE FUNCTION has_crashed(p_attempt bigint) RETURNS boolean LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT EXISTS (SELECT FROM losses l WHERE l.attempt_id = p_attempt AND l.because = 'process')
$$;

-- Records that a worker saw one of its processes die, p_alive_seconds seconds after it first saw that process: an earlier process
-- may have had the same pid. Returns the attempt that the process was executing; of several that it had open, the last one.
-- All that were open when that one began share the death.
CREATE FUNCTION report_death(p_worker text, p_pid integer, p_how text, p_alive_seconds double precision) RETURNS bigint
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    WITH its AS (
        SELECT x.* FROM (
            SELECT a.id, a.started_at, a.finished_at FROM hop_attempts a
                WHERE a.status = 'running' AND a.worker = p_worker AND a.pid = p_pid
            UNION ALL
            SELECT a.id, a.started_at, a.finished_at FROM hop_attempts a
                WHERE a.status = 'lost' AND a.worker = p_worker AND a.pid = p_pid) x
        WHERE x.started_at > clock_timestamp() - make_interval(secs => p_alive_seconds + 5)),
    latest AS (SELECT i.id, i.started_at FROM its i ORDER BY i.id DESC LIMIT 1),
    recorded AS (
        INSERT INTO losses (attempt_id, because, how) SELECT i.id, 'process', p_how FROM its i, latest l
            WHERE i.finished_at IS NULL OR i.finished_at >= l.started_at
            ON CONFLICT DO NOTHING)
    SELECT l.id FROM latest l
$$;

-- Called by the executor of a lost attempt, if it is alive: its session was ended.
CREATE FUNCTION explain_loss(p_attempt bigint, p_how text) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    INSERT INTO losses (attempt_id, because, how) SELECT a.id, 'session', p_how FROM hop_attempts a
        WHERE a.id = p_attempt AND a.status = 'lost' ON CONFLICT DO NOTHING
$$;

-- Everything that a delivered run_hop decides on. Tries the graph's lock where the message is not stale. With p_shard,
-- the message is that of a shard (revision 0009): its own attempts and cursor, and the locks of its executor.
CREATE FUNCTION lock_and_load_hop(p_migration uuid, p_to integer, p_dispatch integer, p_shard integer DEFAULT NULL,
    OUT graph_id uuid, OUT slug text, OUT graph_type text, OUT config jsonb, OUT version integer,
    OUT claim uuid, OUT status text, OUT dispatch integer, OUT from_version integer, OUT to_version integer,
    OUT task_id text, OUT hop jsonb, OUT locked boolean, OUT running_id bigint, OUT running_to integer,
    OUT running_dispatch integer, OUT running_batches integer, OUT running_crashed boolean, OUT next_hop_started boolean,
    OUT interruptions integer, OUT crashes integer, OUT how_crashed text, OUT tries integer,
    OUT mismatches integer, OUT mismatch_seconds double precision, OUT cursor jsonb, OUT done bigint,
    OUT error_type text, OUT error_message text, OUT error_args jsonb, OUT shards integer, OUT shard jsonb,
    OUT undo bigint)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    forgiven bigint;
    latest bigint;
BEGIN
    locked := false;
    SELECT m.graph_id, m.status, m.dispatch INTO graph_id, status, dispatch
        FROM migrations m WHERE m.id = p_migration;
    IF graph_id IS NULL THEN
        RETURN;
    END IF;
    IF status IN ('queued', 'running', 'pausing', 'cancelling') AND dispatch = p_dispatch THEN
        IF p_shard IS NULL THEN
            locked := pg_try_advisory_lock(lock_key(graph_id));
        ELSE
            locked := try_shard_lock(graph_id, p_migration, p_to, p_shard);
        END IF;
    END IF;
    SELECT m.status, m.dispatch, m.from_version, m.to_version, m.task_id, m.code_mismatches,
           coalesce(extract(epoch FROM clock_timestamp() - m.code_mismatch_since), 0), m.error_type,
           m.error_message, m.error_args, m.retries_reset_after_id, g.slug, m.graph_type, g.config, g.version,
           g.undo_id, g.migration_id, jsonb_path_query_first(m.plan, '$[*] ? (@.to_version == $v)',
                                                  jsonb_build_object('v', p_to)), c.cursor, c.done
        INTO status, dispatch, from_version, to_version, task_id, mismatches, mismatch_seconds, error_type,
             error_message, error_args, forgiven, slug, graph_type, config, version, latest, claim, hop, cursor, done
        FROM migrations m LEFT JOIN graphs g ON g.id = m.graph_id
        LEFT JOIN checkpoints c ON c.migration_id = m.id AND c.to_version = p_to WHERE m.id = p_migration;
    IF latest IS NOT NULL AND p_to < version THEN
        undo := undoable(latest, version, p_to);
    END IF;
    SELECT (SELECT count(*) FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to),
           (SELECT count(*) FROM hop_attempts a WHERE a.migration_id = p_migration AND a.to_version = p_to
                AND a.shard IS NOT DISTINCT FROM p_shard AND (a.status = 'lost' OR a.transient))
        INTO shards, interruptions;
    IF p_shard IS NOT NULL THEN
        SELECT to_jsonb(s), s.cursor, s.done INTO shard, cursor, done FROM shards s
            WHERE s.migration_id = p_migration AND s.to_version = p_to AND s.number = p_shard;
    ELSIF shards > 0 THEN
        SELECT to_jsonb(s) INTO shard FROM shards s
            WHERE s.migration_id = p_migration AND s.to_version = p_to ORDER BY s.number LIMIT 1;
    END IF;
    -- At most one attempt is running, of the hop or of this shard of it.
    SELECT a.id, a.to_version, a.dispatch, a.batches INTO running_id, running_to, running_dispatch, running_batches
        FROM hop_attempts a
        WHERE a.migration_id = p_migration AND a.status = 'running' AND a.shard IS NOT DISTINCT FROM p_shard;
    next_hop_started := false;
    IF (version - p_to) * sign(to_version - from_version) >= 0 THEN  -- only then can a later hop have begun
        next_hop_started := EXISTS (
            SELECT FROM hop_attempts a WHERE a.migration_id = p_migration AND a.dispatch = p_dispatch
                AND (a.to_version - p_to) * sign(lock_and_load_hop.to_version - lock_and_load_hop.from_version) > 0);
    END IF;
    tries := 0;
    crashes := 0;
    running_crashed := running_id IS NOT NULL AND has_crashed(running_id);
    IF interruptions > 0 OR running_crashed THEN
        SELECT l.interruptions, l.crashes, l.how_crashed, l.tries INTO interruptions, crashes, how_crashed, tries
            FROM count_losses(p_migration, p_to, forgiven, p_shard) l;
    END IF;
END $$;

-- Opens a hop attempt and makes this session the migration's executor. NULL if the migration has changed since it
-- was read (an operator was quicker): then nothing is written, and the caller reads again.
-- Its commit need not wait for the disk: whatever the hop commits later flushes it too, and if Postgres
-- goes down before that, the executor's lock and data go down with it.
CREATE FUNCTION open_hop(p_migration uuid, p_graph uuid, p_status text, p_dispatch integer, p_lost bigint,
    p_from integer, p_to integer, p_hop text, p_fingerprint text, p_worker text, p_pid integer,
    p_task text, p_done bigint, p_deadline_seconds double precision, p_shard integer DEFAULT NULL,
    OUT attempt_id bigint, OUT attempt integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    is_ahead boolean;
    nothing text := set_config('synchronous_commit', 'off', true);
BEGIN
    -- A deadline that was moved a moment ago is not moved again.
    IF p_status = 'running' THEN
        SELECT m.redeliveries = 0 AND m.code_mismatches = 0
               AND m.deadline > clock_timestamp() + make_interval(secs => p_deadline_seconds * 0.75) INTO is_ahead
            FROM migrations m WHERE m.id = p_migration AND m.status = p_status AND m.dispatch = p_dispatch
            FOR NO KEY UPDATE;
    END IF;
    IF is_ahead IS NOT TRUE THEN
        UPDATE migrations m SET status = 'running', started_at = coalesce(m.started_at, clock_timestamp()),
               deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0, code_mismatches = 0,
               code_mismatch_since = NULL
            WHERE m.id = p_migration AND m.status = p_status AND m.dispatch = p_dispatch;
        IF NOT FOUND THEN
            nothing := set_config('graph_migrator.answer', '{"attempt_id": null, "attempt": null}', false);
            RETURN;
        END IF;
    END IF;
    IF p_lost IS NOT NULL THEN
        UPDATE hop_attempts a SET status = 'lost', finished_at = clock_timestamp()
            WHERE a.id = p_lost AND a.status = 'running';
    END IF;
    INSERT INTO hop_attempts AS a (migration_id, graph_id, from_version, to_version, hop_name, fingerprint,
            shard, attempt, dispatch, worker, pid, task_id, done)
        SELECT p_migration, p_graph, p_from, p_to, p_hop, p_fingerprint, p_shard, 1 + count(*), p_dispatch,
               p_worker, p_pid, p_task, p_done
        FROM hop_attempts b WHERE b.migration_id = p_migration AND b.to_version = p_to
            AND b.shard IS NOT DISTINCT FROM p_shard
        RETURNING a.id, a.attempt INTO attempt_id, attempt;
    nothing := set_config('graph_migrator.executor', p_migration::text, false);
    nothing := set_config('graph_migrator.shard', CASE WHEN p_shard IS NULL THEN '' ELSE attempt_id::text END, false);
    nothing := set_config('graph_migrator.answer', format('{"attempt_id": %s, "attempt": %s}', attempt_id, attempt), false);
END $$;

-- lock_and_load_hop, and open_hop in the same transaction in the plain case: the one in which decide_hop surely says `Run`.
-- p_steps: what this process would plan for the hop, by graph type; only hops that may be opened before the facts are known.
-- Every other case is decided on in Python, and nothing is written. A test holds the condition and decide_hop equal.
-- The answer also goes to a setting, as that of open_hop.
CREATE FUNCTION lock_and_open_hop(p_migration uuid, p_to integer, p_dispatch integer, p_steps jsonb, p_worker text,
    p_pid integer, p_task text, p_deadline_seconds double precision,
    OUT facts json, OUT attempt_id bigint, OUT attempt integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    f record;
    o record;
    nothing text;
BEGIN
    f := lock_and_load_hop(p_migration, p_to, p_dispatch);
    facts := row_to_json(f);
    IF f.locked AND f.status IN ('queued', 'running') AND f.claim = p_migration AND f.hop = p_steps -> f.graph_type
       AND f.version = (f.hop ->> 'from_version')::integer AND f.running_id IS NULL AND f.interruptions = 0
       AND f.crashes = 0 AND f.shards = 0 THEN
        o := open_hop(p_migration, f.graph_id, f.status, p_dispatch, NULL, f.version, p_to, f.hop ->> 'name',
                      f.hop ->> 'fingerprint', p_worker, p_pid, p_task, coalesce(f.done, 0), p_deadline_seconds);
        attempt_id := o.attempt_id;
        attempt := o.attempt;
    END IF;
    nothing := set_config('graph_migrator.answer', json_build_object('facts', facts, 'attempt_id', attempt_id,
                                                                     'attempt', attempt)::text, false);
END $$;

-- Raises GM001 unless this very session is the migration's executor and holds the graph's lock.
CREATE FUNCTION require_executor(p_migration uuid, p_graph uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('graph_migrator.executor', true) IS DISTINCT FROM p_migration::text
       OR current_setting('graph_migrator.shard', true) <> ''
       OR NOT pg_try_advisory_xact_lock(graph_migrator.lock_key(p_graph)) THEN
        RAISE EXCEPTION 'session % is not the executor of migration %', pg_backend_pid(), p_migration
            USING ERRCODE = 'GM001';
    END IF;
END $$;

-- Raises GM002 if this is not the transaction that the executor opened for a hop's data: then the hop's own code has
-- ended that one.
CREATE FUNCTION require_transaction(p_attempt bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('graph_migrator.transaction', true) IS DISTINCT FROM 'open' THEN
        RAISE EXCEPTION 'attempt % ended its own transaction', p_attempt USING ERRCODE = 'GM002';
    END IF;
END $$;

-- The end of a hop, in the transaction of its data: attempt, version and, at the target, the migration.
-- In the caller's transaction (p_callers) nothing of ours follows, so there the change is dated at once.
-- If no batch was ever committed for the hop, there is no checkpoint to delete (p_checkpoint).
-- The fence has taken the graph's lock for this transaction as well. So before the target the session gives its
-- own hold back here, and the commit itself lets the next hop in. If the commit fails, the token comes back with
-- the rollback, and whoever has taken the graph meanwhile finds the attempt still running, and settles it.
-- p_keep: this session goes on with the next hop, and keeps its hold.
CREATE FUNCTION finish_hop(p_attempt bigint, p_migration uuid, p_graph uuid, p_from integer, p_to integer,
    p_status text, p_rows bigint, p_done bigint, p_last boolean, p_callers boolean,
    p_deadline_seconds double precision DEFAULT 30, p_checkpoint boolean DEFAULT true, p_keep boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    started timestamptz;
    nothing text := require_executor(p_migration, p_graph);
BEGIN
    UPDATE hop_attempts SET status = p_status, rows_changed = rows_changed + p_rows,
           done = coalesce(p_done, done), finished_at = clock_timestamp()
        WHERE id = p_attempt AND status = 'running' RETURNING started_at INTO started;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % of migration % is no longer running', p_attempt, p_migration
            USING ERRCODE = 'GM001';
    END IF;
    UPDATE graphs SET version = p_to, updated_at = clock_timestamp(),
           changed_at = CASE WHEN p_last AND NOT p_callers THEN NULL ELSE clock_timestamp() END,
           migration_id = CASE WHEN p_last THEN NULL ELSE migration_id END
        WHERE id = p_graph AND version = p_from AND migration_id = p_migration;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'graph % is not at version % under migration %', p_graph, p_from, p_migration
            USING ERRCODE = 'GM001';
    END IF;
    IF p_checkpoint THEN
        DELETE FROM checkpoints WHERE migration_id = p_migration AND to_version = p_to;
        IF EXISTS (SELECT FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to AND NOT s.is_done) THEN
            RAISE EXCEPTION 'the hop to v% of migration % has shards that are not done', p_to, p_migration
                USING ERRCODE = 'GM001';
        END IF;
        DELETE FROM shards WHERE migration_id = p_migration AND to_version = p_to;
        IF p_status = 'succeeded' AND EXISTS (SELECT FROM rebuilds r WHERE r.migration_id = p_migration
                AND r.to_version = p_to AND r.status IN ('staging', 'staged')
                AND r.fingerprint = (SELECT a.fingerprint FROM hop_attempts a WHERE a.id = p_attempt)) THEN
            RAISE EXCEPTION 'the hop to v% of migration % has staged rows that are not swapped in', p_to, p_migration
                USING ERRCODE = 'GM001';
        END IF;
        PERFORM set_config('graph_migrator.rebuild', '', true);
    END IF;
    IF p_last THEN
        UPDATE migrations SET status = 'succeeded', finished_at = clock_timestamp(),
               error_type = NULL, error_message = NULL, error_args = NULL
            WHERE id = p_migration AND to_version = p_to AND status IN ('running', 'pausing', 'cancelling');
        IF NOT FOUND THEN
            RAISE EXCEPTION 'migration % cannot succeed', p_migration USING ERRCODE = 'GM001';
        END IF;
    ELSE
        IF started < clock_timestamp() - make_interval(secs => p_deadline_seconds * 0.25) THEN
            -- After a long hop the deadline has passed; the next hop gets the full time to be started.
            UPDATE migrations SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
                WHERE id = p_migration;
        END IF;
        IF NOT (p_callers OR p_keep) THEN
            nothing := unlock(p_graph);
        END IF;
    END IF;
    nothing := notify_waiters(p_migration);
    nothing := require_transaction(p_attempt);
END $$;

-- The row of a hop's first attempt, opened by a session that has held the graph's lock since the migration began: nobody
-- else can have begun this hop. If that were wrong, the row's number would be taken.
CREATE FUNCTION open_first_attempt(p_migration uuid, p_graph uuid, p_from integer, p_to integer, p_hop text,
    p_fingerprint text, p_worker text, p_pid integer, p_task text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    opened bigint;
BEGIN
    INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt,
            dispatch, worker, pid, task_id)
        VALUES (p_migration, p_graph, p_from, p_to, p_hop, p_fingerprint, 1, 1, p_worker, p_pid, p_task)
        RETURNING id INTO opened;
    RETURN opened;
END $$;

-- The end of a hop and the opening of the next one in the same transaction, for a session that keeps the graph's lock in
-- between (core/execution/straight.py). Under that lock an operator's wish is all that can have changed since the
-- migration began: where there is one, the hop ends as ever and nothing is opened.
-- Where it goes on, the commit need not wait for the disk: the migration's last one does, and makes all before it durable.
-- If Postgres goes down in between, the hop's data, version and row are gone together, with all that came after them.
CREATE FUNCTION finish_and_open(p_attempt bigint, p_migration uuid, p_graph uuid, p_from integer, p_to integer,
    p_status text, p_rows bigint, p_deadline_seconds double precision, p_next_to integer, p_hop text, p_fingerprint text,
    p_worker text, p_pid integer, p_task text) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    goes_on boolean;
    nothing text;
BEGIN
    SELECT m.status = 'running' AND m.dispatch = 1 INTO goes_on FROM migrations m WHERE m.id = p_migration FOR NO KEY UPDATE;
    IF goes_on THEN
        nothing := set_config('synchronous_commit', 'off', true);
    END IF;
    nothing := finish_hop(p_attempt, p_migration, p_graph, p_from, p_to, p_status, p_rows, NULL, false, false,
                          p_deadline_seconds, false, goes_on);
    IF goes_on THEN
        nothing := open_first_attempt(p_migration, p_graph, p_to, p_next_to, p_hop, p_fingerprint, p_worker, p_pid, p_task);
    END IF;
END $$;

-- Makes this session the executor of the attempt that it has opened by finish_and_open, after the session was reset, and
-- releases what other locks the hop before took for its session: while it holds the graph's for this transaction as well.
-- NULL where nothing was opened.
CREATE FUNCTION resume_executor(p_migration uuid, p_graph uuid, OUT attempt_id bigint)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    key bigint := lock_key(p_graph);
    nothing text;
BEGIN
    SELECT a.id INTO attempt_id FROM hop_attempts a WHERE a.migration_id = p_migration AND a.status = 'running';
    IF attempt_id IS NOT NULL THEN
        nothing := pg_advisory_xact_lock(key);
        nothing := pg_advisory_unlock_all();
        nothing := pg_advisory_lock(key);
        nothing := set_config('graph_migrator.executor', p_migration::text, false);
    ELSE
        nothing := pg_advisory_unlock_all();
    END IF;
    nothing := set_config('graph_migrator.answer', format('{"attempt_id": %s}', coalesce(attempt_id::text, 'null')), false);
END $$;

-- This session is no longer an executor. If the transaction holds the lock as well, that lock ends with it.
CREATE FUNCTION unlock(p_graph uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    nothing text := set_config('graph_migrator.executor', '', false);
BEGIN
    nothing := pg_advisory_unlock(graph_migrator.lock_key(p_graph));
END $$;

-- Releases the lock. p_stamp dates the last change *after* its commit: a writer whose transaction began
-- between the change and its commit has read old rows and must not write them into the new version.
-- Returns the report of p_migration, if that is asked for.
CREATE FUNCTION release_lock(p_graph uuid, p_stamp boolean, p_migration uuid DEFAULT NULL, OUT report jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    nothing text;
BEGIN
    IF p_stamp THEN
        nothing := set_config('synchronous_commit', 'off', true);
        UPDATE graphs SET changed_at = clock_timestamp()
            WHERE id = p_graph AND changed_at IS NULL AND migration_id IS NULL;
    END IF;
    IF p_migration IS NOT NULL THEN
        report := migration_report(p_migration);
    END IF;
    -- Also the locks that a hop took for its session.
    nothing := unlock(p_graph);
    nothing := pg_advisory_unlock_all();
END $$;

-- Removes what a hop has left in its session, and sets again what is ours. DISCARD ALL would also remove our prepared
-- statements. Without a SET clause: that would undo what it sets. First the role, whatever the hop has made of it.
CREATE FUNCTION reset_session() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    left_over text[];
    statement text;
    setting text;
BEGIN
    SET SESSION AUTHORIZATION DEFAULT;
    RESET ALL;
    EXECUTE 'CLOSE ALL';  -- plpgsql's own CLOSE is for one cursor
    UNLISTEN *;
    DISCARD TEMP;
    DISCARD SEQUENCES;
    left_over := ARRAY(SELECT s.name FROM pg_catalog.pg_prepared_statements s WHERE s.name NOT LIKE 'graph\_migrator.%');
    FOREACH statement IN ARRAY left_over LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', statement);
    END LOOP;
    setting := pg_catalog.set_config('search_path', 'graph_migrator,public', false);
    setting := pg_catalog.set_config('client_connection_check_interval', '500ms', false);
    setting := pg_catalog.set_config('default_transaction_isolation', 'read committed', false);
    setting := pg_catalog.set_config('timezone', 'UTC', false);
    setting := pg_catalog.set_config('datestyle', 'ISO', false);  -- psycopg2 needs it
END $$;

-- A duplicate of the same message was refused while this one took the graph, and the caller has its answer.
-- Transient: the retry finds that the request is known, and answers as the first one did.
CREATE FUNCTION answered_meanwhile(p_request text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'request % was answered meanwhile', p_request USING ERRCODE = 'serialization_failure';
END $$;

-- Writes what begin_migration decided: the request, the migration and the claim, in one transaction. With p_unlock the
-- graph's lock is released at its end.
-- p_release names a failed migration that this one replaces. Where the graph was force-released in the middle of a hop,
-- the new migration takes over its cursor.
CREATE FUNCTION begin_migration(p_migration uuid, p_graph uuid, p_graph_type text, p_from integer,
    p_to integer, p_plan jsonb, p_release uuid, p_request text, p_target integer, p_by text, p_reason text,
    p_deadline_seconds double precision, p_unlock boolean DEFAULT false, p_status text DEFAULT 'queued') RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    half jsonb;
    nothing text;
BEGIN
    IF p_release IS NOT NULL THEN
        PERFORM set_config('graph_migrator.executor', p_release::text, true);
        UPDATE graphs SET migration_id = NULL WHERE id = p_graph AND migration_id = p_release;
        UPDATE migrations SET status = 'released' WHERE id = p_release AND status = 'failed';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'migration % is not failed', p_release USING ERRCODE = 'GM001';
        END IF;
        DELETE FROM shards WHERE migration_id = p_release;
    END IF;
    INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, task_id, plan,
            requested_by, reason, deadline, started_at)
        VALUES (p_migration, p_graph, p_graph_type, p_from, p_to, p_status, p_request, p_plan,
            p_by, p_reason, clock_timestamp() + make_interval(secs => p_deadline_seconds),
            CASE WHEN p_status = 'running' THEN clock_timestamp() END);
    nothing := set_config('graph_migrator.executor', p_migration::text, true);
    UPDATE graphs SET migration_id = p_migration, updated_at = clock_timestamp()
        WHERE id = p_graph AND version = p_from AND migration_id IS NULL AND partially_migrated IS NULL;
    IF NOT FOUND THEN
        SELECT partially_migrated INTO half FROM graphs WHERE id = p_graph;
        UPDATE graphs SET migration_id = p_migration, partially_migrated = NULL, updated_at = clock_timestamp()
            WHERE id = p_graph AND version = p_from AND migration_id IS NULL;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'graph % is not free at version %', p_graph, p_from USING ERRCODE = 'GM001';
        END IF;
        INSERT INTO checkpoints (migration_id, to_version, cursor, done)
            VALUES (p_migration, (half->>'to_version')::integer, half->'cursor', (half->>'done')::bigint);
        IF jsonb_typeof(half->'cursor') = 'object' THEN
            PERFORM restore_shards(p_migration, half->'cursor'->'shards');
        END IF;
    END IF;
    IF p_request IS NOT NULL THEN
        INSERT INTO requests (task_id, verb, graph_id, target, migration_id, requested_by)
            VALUES (p_request, 'migrate', p_graph, p_target, p_migration, p_by)
            ON CONFLICT (task_id) DO NOTHING;
        IF NOT FOUND THEN
            PERFORM answered_meanwhile(p_request);
        END IF;
    END IF;
    IF p_unlock THEN
        nothing := pg_advisory_xact_lock(lock_key(p_graph));
        nothing := unlock(p_graph);
    END IF;
END $$;

-- Begins a migration and opens its first hop in the same transaction, for a session that keeps the graph's lock until the
-- migration ends (core/execution/straight.py). What was decided rests on facts that were read without the lock. NULL, and
-- nothing is written, where they are no longer so, or where the lock is not free at once: then it is decided anew.
-- Its commit need not wait for the disk, as that of open_hop: nobody has an answer before the hop's own commit.
CREATE FUNCTION begin_and_open(p_migration uuid, p_graph uuid, p_graph_type text, p_from integer, p_to integer,
    p_plan jsonb, p_request text, p_by text, p_reason text, p_deadline_seconds double precision, p_next_to integer, p_hop text,
    p_fingerprint text, p_worker text, p_pid integer, p_task text,
    OUT attempt_id bigint, OUT slug text, OUT config jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    nothing text := set_config('synchronous_commit', 'off', true);
BEGIN
    nothing := set_config('graph_migrator.answer', '{"attempt_id": null, "slug": null, "config": null}', false);
    IF NOT pg_try_advisory_lock(lock_key(p_graph)) THEN
        RETURN;
    END IF;
    SELECT g.slug, g.config INTO slug, config FROM graphs g
        WHERE g.id = p_graph AND g.graph_type = p_graph_type AND g.version = p_from AND g.migration_id IS NULL
          AND g.partially_migrated IS NULL
          AND NOT EXISTS (SELECT FROM requests r WHERE r.task_id = p_request);
    IF NOT FOUND THEN
        nothing := pg_advisory_unlock(lock_key(p_graph));
        RETURN;
    END IF;
    nothing := begin_migration(p_migration, p_graph, p_graph_type, p_from, p_to, p_plan, NULL, p_request, p_to, p_by,
                               p_reason, p_deadline_seconds, p_status => 'running');
    attempt_id := open_first_attempt(p_migration, p_graph, p_from, p_next_to, p_hop, p_fingerprint, p_worker, p_pid, p_task);
    nothing := set_config('graph_migrator.executor', p_migration::text, false);
    nothing := set_config('graph_migrator.answer',
        jsonb_build_object('attempt_id', attempt_id, 'slug', slug, 'config', config)::text, false);
END $$;

-- ── several graphs in one transaction ───────────────────────────────────────────────────────────────

-- A transaction that graphs share, from its first turn to finish_together. So it is always empty: with a row in it nothing can
-- be committed. A hop that ends the transaction by itself would commit what its neighbours have done without their versions.
CREATE UNLOGGED TABLE shared_transactions (
    id bigint PRIMARY KEY DEFAULT txid_current()
);

CREATE FUNCTION refuse_to_share_on() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM shared_transactions s WHERE s.id = NEW.id) THEN
        RAISE EXCEPTION 'a hop ends a transaction that several graphs share' USING ERRCODE = 'GM002';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER shared_transactions_end AFTER INSERT ON shared_transactions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse_to_share_on();
ALTER TABLE shared_transactions ENABLE ALWAYS TRIGGER shared_transactions_end;

-- Gives the open transaction to the next of the graphs that share it (core/execution/together.py): what the hop before has
-- left in the session goes first. Only a migration that this session has begun with others can have it, from the one that had
-- it before; NULL: from nobody. A hop that goes back to a savepoint of another one's gives the turn back with it. A statement
-- that takes longer than p_ms ends the turn: the others are read-only meanwhile.
-- Without a SET clause: that would undo what it sets.
CREATE FUNCTION turn_to(p_before uuid, p_migration uuid, p_ms integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    together text := coalesce(pg_catalog.current_setting('graph_migrator.together', true), '');
    nothing text := graph_migrator.require_turn(p_before);
BEGIN
    IF pg_catalog.strpos(together, p_migration::text) = 0 THEN
        RAISE EXCEPTION 'session % has not begun migration % together with others', pg_backend_pid(), p_migration
            USING ERRCODE = 'GM001';
    END IF;
    IF p_before IS NULL THEN
        INSERT INTO graph_migrator.shared_transactions DEFAULT VALUES;
    END IF;
    nothing := graph_migrator.reset_session();
    nothing := set_config('graph_migrator.together', together, false);
    nothing := set_config('graph_migrator.executor', p_migration::text, false);
    nothing := set_config('graph_migrator.turn', p_migration::text, true);
    nothing := set_config('graph_migrator.transaction', 'open', true);
    nothing := set_config('statement_timeout', p_ms::text, true);
END $$;

-- Raises GM002 unless this is the transaction that graphs share, and this migration has its turn; NULL: none has.
CREATE FUNCTION require_turn(p_migration uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.current_setting('graph_migrator.transaction', true) IS DISTINCT FROM 'open'
       OR coalesce(pg_catalog.current_setting('graph_migrator.executor', true), '') <> coalesce(p_migration::text, '') THEN
        RAISE EXCEPTION 'migration % has not its turn in an open transaction', p_migration USING ERRCODE = 'GM002';
    END IF;
END $$;

-- finish_and_open for several graphs, in the transaction that they share; without p_next_to the end of their migrations. All
-- or none: where an operator asks one of them for something, it raises, and they part.
CREATE FUNCTION finish_together(p_attempts bigint[], p_migrations uuid[], p_graphs uuid[], p_statuses text[], p_rows bigint[],
    p_from integer, p_to integer, p_deadline_seconds double precision, p_next_to integer, p_hop text, p_fingerprint text,
    p_worker text, p_pid integer, p_task text) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    together text := coalesce(current_setting('graph_migrator.together', true), '');
    size integer := cardinality(p_graphs);
    is_last boolean := p_next_to IS NULL;
    ready integer;
    soonest timestamptz;
    nothing text := require_turn(p_migrations[size]);
BEGIN
    DELETE FROM shared_transactions WHERE id = txid_current();
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this is not the transaction that the graphs share' USING ERRCODE = 'GM002';
    END IF;
    FOR i IN 1 .. size LOOP
        IF strpos(together, p_migrations[i]::text) = 0 OR NOT pg_try_advisory_xact_lock(lock_key(p_graphs[i])) THEN
            RAISE EXCEPTION 'session % is not the executor of migration %', pg_backend_pid(), p_migrations[i]
                USING ERRCODE = 'GM001';
        END IF;
    END LOOP;
    IF NOT is_last THEN
        nothing := set_config('synchronous_commit', 'off', true);
        SELECT count(*), min(x.deadline) INTO ready, soonest FROM (SELECT m.deadline FROM migrations m
            WHERE m.id = ANY (p_migrations) AND m.status = 'running' AND m.dispatch = 1 FOR NO KEY UPDATE) x;
        IF ready <> size THEN
            RAISE EXCEPTION 'a migration that shares this transaction is to stop' USING ERRCODE = 'serialization_failure';
        END IF;
        IF soonest < clock_timestamp() + make_interval(secs => p_deadline_seconds * 0.75) THEN  -- as of finish_hop
            UPDATE migrations SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
                WHERE id = ANY (p_migrations);
        END IF;
    END IF;
    UPDATE hop_attempts a SET status = x.status, rows_changed = a.rows_changed + x.rows, finished_at = clock_timestamp()
        FROM unnest(p_attempts, p_migrations, p_statuses, p_rows) x (id, migration_id, status, rows)
        WHERE a.id = x.id AND a.migration_id = x.migration_id AND a.to_version = p_to AND a.status = 'running';
    GET DIAGNOSTICS ready = ROW_COUNT;
    IF ready <> size THEN
        RAISE EXCEPTION 'an attempt that shares this transaction is no longer running' USING ERRCODE = 'GM001';
    END IF;
    FOR i IN 1 .. size LOOP
        nothing := set_config('graph_migrator.executor', p_migrations[i]::text, false);
        UPDATE graphs SET version = p_to, updated_at = clock_timestamp(),
               changed_at = CASE WHEN is_last THEN NULL ELSE clock_timestamp() END,
               migration_id = CASE WHEN is_last THEN NULL ELSE migration_id END
            WHERE id = p_graphs[i] AND version = p_from AND migration_id = p_migrations[i];
        IF NOT FOUND THEN
            RAISE EXCEPTION 'graph % is not at version % under migration %', p_graphs[i], p_from, p_migrations[i]
                USING ERRCODE = 'GM001';
        END IF;
        nothing := notify_waiters(p_migrations[i]);
    END LOOP;
    nothing := set_config('graph_migrator.executor', '', false);
    IF is_last THEN
        UPDATE migrations SET status = 'succeeded', finished_at = clock_timestamp()
            WHERE id = ANY (p_migrations) AND to_version = p_to AND status IN ('running', 'pausing', 'cancelling');
        GET DIAGNOSTICS ready = ROW_COUNT;
        IF ready <> size THEN
            RAISE EXCEPTION 'a migration that shares this transaction cannot succeed' USING ERRCODE = 'GM001';
        END IF;
    ELSE
        INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt,
                dispatch, worker, pid, task_id)
            SELECT x.migration_id, x.graph_id, p_to, p_next_to, p_hop, p_fingerprint, 1, 1, p_worker, p_pid, p_task
            FROM unnest(p_migrations, p_graphs) x (migration_id, graph_id);
    END IF;
END $$;

-- resume_executor for each of them.
CREATE FUNCTION resume_together(p_migrations uuid[], p_graphs uuid[], OUT attempts jsonb)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    keys bigint[] := ARRAY(SELECT lock_key(x.id) FROM unnest(p_graphs) x (id));
    key bigint;
    nothing text;
BEGIN
    SELECT jsonb_agg(a.id ORDER BY x.place) INTO attempts FROM unnest(p_migrations) WITH ORDINALITY x (id, place)
        JOIN hop_attempts a ON a.migration_id = x.id AND a.status = 'running' AND a.shard IS NULL;
    IF jsonb_array_length(attempts) IS DISTINCT FROM cardinality(p_migrations) THEN
        RAISE EXCEPTION 'an attempt that was opened together with others is no longer running' USING ERRCODE = 'GM001';
    END IF;
    FOREACH key IN ARRAY keys LOOP
        nothing := pg_advisory_xact_lock(key);
    END LOOP;
    nothing := pg_advisory_unlock_all();
    FOREACH key IN ARRAY keys LOOP
        nothing := pg_advisory_lock(key);
    END LOOP;
    nothing := set_config('graph_migrator.together', array_to_string(p_migrations, ' '), false);
    nothing := set_config('graph_migrator.answer', json_build_object('attempts', attempts)::text, false);
END $$;

-- release_lock for each of them, after the end of their migrations.
CREATE FUNCTION release_together(p_graphs uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    nothing text := set_config('synchronous_commit', 'off', true);
BEGIN
    UPDATE graphs SET changed_at = clock_timestamp()
        WHERE id = ANY (p_graphs) AND changed_at IS NULL AND migration_id IS NULL;
    nothing := set_config('graph_migrator.together', '', false);
    nothing := pg_advisory_unlock_all();
END $$;

-- Ends the attempts of graphs that share their transactions, where one was rolled back, and says why; releases the graphs:
-- each hop is to run again by itself. An attempt that somebody else has settled stays as it is.
CREATE FUNCTION part_company(p_migrations uuid[], p_why text) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    nothing text;
BEGIN
    UPDATE hop_attempts SET status = 'stopped', error_message = p_why, finished_at = clock_timestamp()
        WHERE migration_id = ANY (p_migrations) AND status = 'running' AND shard IS NULL AND dispatch = 1;
    nothing := pg_advisory_unlock_all();
END $$;

-- Resumes a failed migration: a new dispatch, the current plan, counters at zero.
CREATE FUNCTION retry_migration(p_migration uuid, p_plan jsonb, p_request text, p_verb text, p_target integer,
    p_by text, p_deadline_seconds double precision, OUT dispatch integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE migrations m SET status = 'running', dispatch = m.dispatch + 1, plan = p_plan,
           error_type = NULL, error_message = NULL, error_args = NULL, finished_at = NULL,
           redeliveries = 0, code_mismatches = 0, code_mismatch_since = NULL, deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds),
           retries_reset_after_id = coalesce((SELECT max(a.id) FROM hop_attempts a WHERE a.migration_id = m.id), 0),
           task_id = CASE WHEN p_verb = 'migrate' AND p_request IS NOT NULL THEN p_request ELSE m.task_id END
        WHERE m.id = p_migration AND m.status = 'failed'
        RETURNING m.dispatch INTO dispatch;
    IF dispatch IS NULL THEN
        RAISE EXCEPTION 'migration % is not failed', p_migration USING ERRCODE = 'GM001';
    END IF;
    -- Nothing of the hop is committed: it is cut anew, by the code of today. (Of a rebuild hop: prepare_rebuild.)
    DELETE FROM shards s WHERE s.migration_id = p_migration AND s.rebuild_id IS NULL
        AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.migration_id = p_migration);
    -- The caller whose id the chain has is answered again: the result of this run replaces FAILURE.
    UPDATE requests r SET answered_at = NULL, answer_failures = 0, next_answer_at = NULL, unanswered_because = NULL
        FROM migrations m
        WHERE m.id = p_migration AND r.task_id = m.task_id;
    IF p_request IS NOT NULL THEN
        INSERT INTO requests (task_id, verb, graph_id, target, migration_id, requested_by)
            SELECT p_request, p_verb, m.graph_id, p_target, m.id, p_by FROM migrations m WHERE m.id = p_migration
            ON CONFLICT (task_id) DO NOTHING;
        IF NOT FOUND THEN
            PERFORM answered_meanwhile(p_request);
        END IF;
    END IF;
END $$;

-- Ends an attempt that raised, in a transaction of its own. p_final: the migration fails as well.
-- False if somebody else has settled the attempt or the migration: then nothing is written.
CREATE FUNCTION fail_attempt(p_attempt bigint, p_migration uuid, p_graph uuid, p_transient boolean,
    p_final boolean, p_type text, p_message text, p_args jsonb, p_traceback text,
    p_deadline_seconds double precision, p_rows text DEFAULT NULL, p_line text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM require_executor(p_migration, p_graph);
    UPDATE hop_attempts SET status = 'failed', transient = p_transient, error_type = p_type, error_rows = p_rows,
           error_line = p_line, error_message = p_message, traceback = p_traceback, finished_at = clock_timestamp()
        WHERE id = p_attempt AND status = 'running';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF p_final THEN
        UPDATE migrations SET status = 'failed', finished_at = clock_timestamp(), error_type = p_type,
               error_message = p_message, error_args = p_args
            WHERE id = p_migration AND status IN ('running', 'pausing', 'cancelling');
        IF NOT FOUND THEN
            RAISE EXCEPTION 'migration % cannot fail', p_migration USING ERRCODE = 'GM001';
        END IF;
    ELSE
        UPDATE migrations SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
            WHERE id = p_migration;
    END IF;
    PERFORM notify_waiters(p_migration);
    RETURN true;
END $$;

-- Fails a migration between two hops: its hop crashed too often, or its code differs. Under the lock, with no hop running.
CREATE FUNCTION fail_between_hops(p_migration uuid, p_dispatch integer, p_lost bigint, p_type text, p_message text,
    p_args jsonb) RETURNS boolean
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE migrations SET status = 'failed', finished_at = clock_timestamp(), error_type = p_type,
           error_message = p_message, error_args = p_args
        WHERE id = p_migration AND dispatch = p_dispatch AND status IN ('queued', 'running');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE hop_attempts SET status = 'lost', finished_at = clock_timestamp()
        WHERE id = p_lost AND status = 'running';
    PERFORM notify_waiters(p_migration);
    RETURN true;
END $$;

-- Pauses or cancels as an operator requested, between two hops or while nobody executes; under the graph's lock.
-- Returns the new status, or NULL if there is no such request any more.
CREATE FUNCTION stop_migration(p_migration uuid, p_attempt_becomes text, OUT status text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    m migrations;
    half checkpoints;
    hop text;
BEGIN
    SELECT * INTO m FROM migrations WHERE id = p_migration FOR UPDATE;
    IF m.status NOT IN ('pausing', 'cancelling') THEN
        RETURN;
    END IF;
    UPDATE hop_attempts a SET status = p_attempt_becomes, finished_at = clock_timestamp()
        WHERE a.migration_id = p_migration AND a.status = 'running';
    SELECT * INTO half FROM checkpoints c WHERE c.migration_id = p_migration LIMIT 1;
    status := CASE WHEN m.status = 'pausing' THEN 'paused'
                   WHEN half.migration_id IS NULL THEN 'cancelled' ELSE 'failed' END;
    IF status = 'failed' THEN
        hop := coalesce(jsonb_path_query_first(m.plan, '$[*] ? (@.to_version == $v)',
                        jsonb_build_object('v', half.to_version)) ->> 'name', '?');
        UPDATE migrations SET status = 'failed', finished_at = clock_timestamp(),
               error_type = 'graph_migrator.PartiallyMigrated', error_message = '', error_args = jsonb_build_array(
                   (SELECT slug FROM graphs g WHERE g.id = m.graph_id), hop, half.done)
            WHERE id = p_migration;
    ELSE
        UPDATE migrations mm SET status = stop_migration.status,
               finished_at = CASE WHEN stop_migration.status = 'cancelled' THEN clock_timestamp() END
            WHERE id = p_migration;
    END IF;
    IF status = 'cancelled' THEN
        DELETE FROM shards WHERE migration_id = p_migration;
        PERFORM release_claim(p_migration, m.graph_id);
    END IF;
    PERFORM notify_waiters(p_migration);
END $$;

-- Clears the claim. Every commit that changed data came before this transaction, so its time dates them.
CREATE FUNCTION release_claim(p_migration uuid, p_graph uuid) RETURNS void LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    token text := current_setting('graph_migrator.executor', true);
BEGIN
    PERFORM set_config('graph_migrator.executor', p_migration::text, true);
    UPDATE graphs SET migration_id = NULL, updated_at = clock_timestamp(), changed_at = clock_timestamp()
        WHERE id = p_graph AND migration_id = p_migration;
    PERFORM set_config('graph_migrator.executor', coalesce(token, ''), true);
END $$;
