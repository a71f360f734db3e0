-- Sharded hops: docs/decisions/0014-sharded-hops.md. A shard is a range of the keys of the processed table, with a cursor,
-- attempts and an advisory lock of its own. Rows are there from the cut of a hop until the hop is committed.

CREATE TABLE shards (
    migration_id uuid NOT NULL REFERENCES migrations (id),
    to_version   integer NOT NULL,
    number       integer NOT NULL,
    table_name   text NOT NULL,
    key          jsonb NOT NULL,
    after        jsonb,
    upto         jsonb,
    cursor       jsonb,
    done         bigint NOT NULL DEFAULT 0,
    total        bigint NOT NULL,
    is_sent      boolean NOT NULL DEFAULT false,
    is_done      boolean NOT NULL DEFAULT false,
    digest_before text,
    rebuild_id   bigint,
    PRIMARY KEY (migration_id, to_version, number)
);
COMMENT ON COLUMN shards.table_name IS 'The table whose rows the hop processes, with its schema.';
COMMENT ON COLUMN shards.key IS 'The columns of its key, in order.';
COMMENT ON COLUMN shards.after IS 'Its rows have larger keys, each column as text; NULL for the first shard.';
COMMENT ON COLUMN shards.upto IS 'Its rows have this key at most; NULL for the last shard.';
COMMENT ON COLUMN shards.cursor IS 'The key of the last row that has the new shape; NULL before the first batch.';
COMMENT ON COLUMN shards.total IS 'Rows that it had when the hop was cut.';
COMMENT ON COLUMN shards.is_sent IS 'Its message was sent in this dispatch; with is_done false it counts against the limits.';
COMMENT ON COLUMN shards.digest_before IS 'Of the whole graph, at its first shard, where the type asks for digests.';
COMMENT ON COLUMN shards.rebuild_id IS 'Where its changes are staged, of a rebuild hop.';
CREATE INDEX shards_in_flight ON shards (migration_id) WHERE is_sent AND NOT is_done;

CREATE FUNCTION shard_key(p_migration uuid, p_to integer, p_shard integer) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended(p_migration::text || ':' || p_to::text || ':' || p_shard::text, 5716853094183207174);

-- Takes the locks of a shard's executor for the session: the graph's shared, the shard's own exclusively. Whoever takes
-- the graph's exclusively has thereby proved that no executor of any of its shards lives.
CREATE FUNCTION try_shard_lock(p_graph uuid, p_migration uuid, p_to integer, p_shard integer) RETURNS boolean
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF NOT pg_try_advisory_lock_shared(lock_key(p_graph)) THEN
        RETURN false;
    END IF;
    IF pg_try_advisory_lock(shard_key(p_migration, p_to, p_shard)) THEN
        RETURN true;
    END IF;
    PERFORM pg_advisory_unlock_shared(lock_key(p_graph));
    RETURN false;
END $$;

-- The same, waiting for a lost session of a shard to end; 55P03 where that takes too long.
CREATE FUNCTION take_shard_lock(p_graph uuid, p_migration uuid, p_to integer, p_shard integer, p_wait_ms integer)
RETURNS void LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    PERFORM set_config('lock_timeout', p_wait_ms::text, true);
    PERFORM pg_advisory_lock_shared(lock_key(p_graph));
    PERFORM pg_advisory_lock(shard_key(p_migration, p_to, p_shard));
END $$;

CREATE FUNCTION release_shard_lock() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('graph_migrator.executor', '', false), set_config('graph_migrator.shard', '', false),
            pg_advisory_unlock_all();
END $$;

-- Names this session the executor of a shard's attempt, as open_hop does.
CREATE FUNCTION become_shard_executor(p_migration uuid, p_attempt bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('graph_migrator.executor', p_migration::text, false),
            set_config('graph_migrator.shard', p_attempt::text, false);
END $$;

-- What a shard's session must prove before it writes: it names the migration and an attempt that is running, and holds
-- the graph's lock shared and the shard's exclusively. Returns the shard; raises GM001 where it cannot.
CREATE FUNCTION require_shard(p_migration uuid, p_graph uuid) RETURNS shards LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    named bigint := nullif(current_setting('graph_migrator.shard', true), '')::bigint;
    s shards;
BEGIN
    IF current_setting('graph_migrator.executor', true) = p_migration::text THEN
        -- The row lock also ends a transaction whose snapshot is older than what became of the attempt (40001).
        PERFORM FROM hop_attempts a WHERE a.id = named AND a.migration_id = p_migration AND a.status = 'running'
            FOR SHARE;
        IF FOUND THEN
            SELECT x.* INTO s FROM hop_attempts a
                JOIN shards x ON x.migration_id = p_migration AND x.to_version = a.to_version AND x.number = a.shard
                WHERE a.id = named;
            IF pg_try_advisory_xact_lock(shard_key(p_migration, s.to_version, s.number))
               AND pg_try_advisory_xact_lock_shared(lock_key(p_graph)) THEN
                RETURN s;
            END IF;
        END IF;
    END IF;
    RAISE EXCEPTION 'session % is not the executor of a shard of migration %', pg_backend_pid(), p_migration
        USING ERRCODE = 'GM001';
END $$;

-- Refuses nodes or edges of an admitted graph that do not belong to this session's shard; p_first and p_last are the
-- smallest and the largest id written.
CREATE FUNCTION require_range(g graphs, p_table regclass, p_first text, p_last text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s shards := require_shard(g.migration_id, g.id);
BEGIN
    IF p_table <> s.table_name::regclass OR p_first <= s.after ->> 0 OR p_last > s.upto ->> 0 THEN
        PERFORM refuse_range(p_table);
    END IF;
END $$;

-- Admits this session's shard to a table of a user's own, or raises. Returns the condition, in SQL, that the rows of the
-- shard fulfil; no row of any other table does.
CREATE FUNCTION admit_shard(p_table regclass, p_column text, p_written boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    g graphs := admit_writer((SELECT a.graph_id FROM hop_attempts a WHERE a.id = current_setting('graph_migrator.shard')::bigint),
                      p_written, NULL);
    s shards := require_shard(g.migration_id, g.id);
    columns text := (SELECT string_agg(quote_ident(k.name), ', ' ORDER BY k.n) FROM jsonb_array_elements_text(s.key) WITH ORDINALITY k (name, n));
BEGIN
    IF p_table <> s.table_name::regclass THEN
        RETURN 'false';
    END IF;
    RETURN concat_ws(' AND ', format('%I = %L::uuid', p_column, g.id),
        'ROW(' || columns || ') > ROW(' || key_as_sql(p_table, s.key, s.after) || ')',
        'ROW(' || columns || ') <= ROW(' || key_as_sql(p_table, s.key, s.upto) || ')');
END $$;

-- The values of a key in SQL, each cast to its column's type; NULL where there is no key.
CREATE FUNCTION key_as_sql(p_table regclass, p_columns jsonb, p_key jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(format('%L::%s', p_key ->> (k.n - 1)::integer, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY k.n)
    FROM jsonb_array_elements_text(p_columns) WITH ORDINALITY k (name, n) JOIN pg_attribute a ON a.attrelid = p_table AND a.attname = k.name
    WHERE p_key IS NOT NULL
$$;

-- Says which rows this session's shard may write.
CREATE FUNCTION refuse_range(p_table regclass) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s shards;
BEGIN
    SELECT x.* INTO s FROM hop_attempts a
        JOIN shards x ON x.migration_id = a.migration_id AND x.to_version = a.to_version AND x.number = a.shard
        WHERE a.id = current_setting('graph_migrator.shard')::bigint;
    IF p_table <> s.table_name::regclass THEN
        RAISE EXCEPTION 'shard % of the hop to v% writes rows of %; a shard writes nothing but rows of its own range of %',
                s.number, s.to_version, p_table, s.table_name
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RAISE EXCEPTION 'shard % of the hop to v% writes rows of %, which are not all of its range: after %, up to %',
            s.number, s.to_version, s.table_name,
            coalesce((SELECT string_agg(e, '/') FROM jsonb_array_elements_text(s.after) e), 'the start'),
            coalesce((SELECT string_agg(e, '/') FROM jsonb_array_elements_text(s.upto) e), 'the end')
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- Cuts a hop, under the graph's exclusive lock, in a transaction of its own. p_shards: for each, [upto, total], where
-- upto is a key, each of its columns as text.
-- False where the migration is not as it was looked at: nothing is written then, look again.
CREATE FUNCTION cut_shards(p_migration uuid, p_to integer, p_status text, p_dispatch integer, p_table_name text,
    p_key jsonb, p_rebuild bigint, p_shards jsonb, p_digest text, p_deadline_seconds double precision) RETURNS boolean
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    -- Numbers of an earlier cut are not used again: they have attempts.
    used integer := coalesce((SELECT max(a.shard) FROM hop_attempts a WHERE a.migration_id = p_migration AND a.to_version = p_to), 0);
BEGIN
    UPDATE migrations m SET status = 'running', started_at = coalesce(m.started_at, clock_timestamp()),
           deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0, code_mismatches = 0,
           code_mismatch_since = NULL
        WHERE m.id = p_migration AND m.status = p_status AND m.dispatch = p_dispatch;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO shards (migration_id, to_version, number, table_name, key, rebuild_id, after, upto, total, digest_before)
        SELECT p_migration, p_to, used + x.number, p_table_name, p_key, p_rebuild, lag(nullif(x.shard->0, 'null')) OVER (ORDER BY x.number),
               nullif(x.shard->0, 'null'), (x.shard->>1)::bigint, CASE WHEN x.number = 1 THEN p_digest END
        FROM jsonb_array_elements(p_shards) WITH ORDINALITY AS x (shard, number);
    RETURN true;
END $$;

-- Which shards to send now, and marks them sent. p_anew: by the coordinator under the graph's exclusive lock, so nobody
-- works on one; attempts that are still open are those of dead executors (lost_ids), and all that is not done is sent
-- again. Limits are kept across the cluster: a graph may always have one in flight, and more while there is room. No more
-- are in flight than live workers have processes: else they would queue in front of what others have called.
-- all_done: nothing is left but to close the hop.
CREATE FUNCTION next_shards(p_migration uuid, p_to integer, p_dispatch integer, p_most_of_graph integer,
    p_most_shards integer, p_anew boolean, OUT status text, OUT all_done boolean, OUT numbers integer[], OUT lost_ids bigint[])
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    mine integer;
    room integer;
    capacity integer := (SELECT sum(greatest(w.processes, 1)) FROM workers w
        WHERE w.seen_at > clock_timestamp() - interval '20 seconds');
BEGIN
    all_done := false;
    numbers := '{}';
    lost_ids := '{}';
    -- One at a time, or two would count the same room.
    PERFORM pg_advisory_xact_lock(5716853094183207175);
    IF p_anew THEN  -- a migration that takes over a hop which was released half-way
        UPDATE migrations m SET status = 'running', started_at = coalesce(m.started_at, clock_timestamp())
            WHERE m.id = p_migration AND m.dispatch = p_dispatch AND m.status = 'queued';
    END IF;
    SELECT m.status INTO status FROM migrations m WHERE m.id = p_migration AND m.dispatch = p_dispatch;
    IF status IS DISTINCT FROM 'running' THEN
        status := coalesce(status, 'stale');
        RETURN;
    END IF;
    IF p_anew THEN
        WITH dead AS (
            UPDATE hop_attempts a SET status = 'lost', finished_at = clock_timestamp()
            WHERE a.migration_id = p_migration AND a.to_version = p_to AND a.shard IS NOT NULL AND a.status = 'running'
            RETURNING a.id)
            SELECT coalesce(array_agg(d.id), '{}') INTO lost_ids FROM dead d;
        UPDATE shards s SET is_sent = false WHERE s.migration_id = p_migration AND s.to_version = p_to AND NOT s.is_done;
    END IF;
    SELECT bool_and(s.is_done), count(*) FILTER (WHERE s.is_sent AND NOT s.is_done) INTO all_done, mine
        FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to;
    room := least(p_most_shards, capacity) - mine - (SELECT count(*) FROM shards s JOIN migrations m ON m.id = s.migration_id
        WHERE s.is_sent AND NOT s.is_done AND s.migration_id <> p_migration AND m.status = 'running');
    room := greatest(least(room, p_most_of_graph - mine), CASE WHEN mine = 0 THEN 1 ELSE 0 END);
    WITH sent AS (
        UPDATE shards s SET is_sent = true WHERE s.migration_id = p_migration AND s.to_version = p_to AND s.number IN (
            SELECT x.number FROM shards x
            WHERE x.migration_id = p_migration AND x.to_version = p_to AND NOT x.is_sent AND NOT x.is_done
            ORDER BY x.number LIMIT room)
        RETURNING s.number)
        SELECT coalesce(array_agg(t.number ORDER BY t.number), '{}') INTO numbers FROM sent t;
END $$;

-- Opens a batch's transaction: the fences, and what the migration is about. Not FOR UPDATE of the claim, as a batch of
-- an unsharded hop does: shards would wait for one another. The claim changes only under the graph's exclusive lock.
CREATE FUNCTION open_shard_batch(p_attempt bigint, p_migration uuid, p_graph uuid, OUT status text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM FROM hop_attempts a WHERE a.id = p_attempt AND a.status = 'running' FOR UPDATE;
    PERFORM require_shard(p_migration, p_graph);
    SELECT m.status INTO status FROM migrations m WHERE m.id = p_migration;
END $$;

-- Commits with the batch's data. p_ends: it was the shard's last one.
-- Every writer takes the migration's row before the graph's link of the proof chain, so no two wait for each other.
CREATE FUNCTION save_shard_batch(p_attempt bigint, p_migration uuid, p_graph uuid, p_to integer, p_shard integer,
    p_cursor jsonb, p_done bigint, p_rows bigint, p_ends boolean, p_deadline_seconds double precision, OUT rate double precision)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    more bigint;
    staged bigint;
BEGIN
    PERFORM require_shard(p_migration, p_graph), require_transaction(p_attempt);
    SELECT p_done - s.done, s.rebuild_id INTO more, staged FROM shards s
        WHERE s.migration_id = p_migration AND s.to_version = p_to AND s.number = p_shard;
    UPDATE shards s SET cursor = coalesce(p_cursor, s.cursor), done = p_done, is_done = p_ends
        WHERE s.migration_id = p_migration AND s.to_version = p_to AND s.number = p_shard;
    IF staged IS NOT NULL THEN
        UPDATE rebuilds r SET done = r.done + more, rows = r.rows + p_rows WHERE r.id = staged AND r.status = 'staging';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the staged rows of migration % are not its own any more', p_migration USING ERRCODE = 'GM001';
        END IF;
    ELSIF more > 0 THEN
        INSERT INTO checkpoints AS c (migration_id, to_version, cursor, done) VALUES (p_migration, p_to, '{"shards": []}', more)
            ON CONFLICT (migration_id, to_version) DO UPDATE SET done = c.done + more, updated_at = clock_timestamp();
    END IF;
    -- All shards write this row: not oftener than needed.
    UPDATE migrations m SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
        WHERE m.id = p_migration AND m.deadline < clock_timestamp() + make_interval(secs => p_deadline_seconds * 0.75);
    UPDATE hop_attempts a SET batches = a.batches + 1, done = p_done,
           rows_changed = a.rows_changed + CASE WHEN staged IS NULL THEN p_rows ELSE 0 END, progress_at = clock_timestamp(), rows_per_second = paced(a.rows_per_second, p_done - a.done,
                extract(epoch FROM clock_timestamp() - a.progress_at)::double precision),
           status = CASE WHEN p_ends THEN 'succeeded' ELSE a.status END,
           finished_at = CASE WHEN p_ends THEN clock_timestamp() END
        WHERE a.id = p_attempt AND a.status = 'running' RETURNING a.rows_per_second INTO rate;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'attempt % of migration % is no longer running', p_attempt, p_migration
            USING ERRCODE = 'GM001';
    END IF;
END $$;

-- A shard's executor stops at a batch boundary: an operator or the failure of another shard asks for it.
CREATE FUNCTION stop_shard(p_attempt bigint) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE hop_attempts SET status = 'stopped', finished_at = clock_timestamp() WHERE id = p_attempt AND status = 'running'
$$;

-- fail_attempt for a shard, under its own locks. Another shard may have failed the migration already.
CREATE FUNCTION fail_shard(p_attempt bigint, p_migration uuid, p_graph uuid, p_transient boolean,
    p_final boolean, p_type text, p_message text, p_args jsonb, p_traceback text,
    p_deadline_seconds double precision, p_rows text DEFAULT NULL, p_line text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM require_shard(p_migration, p_graph);
    IF p_final THEN
        UPDATE migrations SET status = 'failed', finished_at = clock_timestamp(), error_type = p_type,
               error_message = p_message, error_args = p_args
            WHERE id = p_migration AND status IN ('running', 'pausing', 'cancelling');
        PERFORM notify_waiters(p_migration);
    ELSE
        UPDATE migrations SET deadline = clock_timestamp() + make_interval(secs => p_deadline_seconds), redeliveries = 0
            WHERE id = p_migration AND status IN ('running', 'pausing', 'cancelling');
    END IF;
    UPDATE hop_attempts SET status = 'failed', transient = p_transient, error_type = p_type, error_rows = p_rows,
           error_line = p_line, error_message = p_message, traceback = p_traceback, finished_at = clock_timestamp()
        WHERE id = p_attempt AND status = 'running';
    RETURN FOUND;
END $$;

-- Attempts of shards whose executors are dead, while other shards of their graph may live: running rows, free locks.
CREATE FUNCTION dead_shards() RETURNS SETOF bigint LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT a.id, a.graph_id, a.migration_id, a.to_version, a.shard FROM hop_attempts a
        WHERE a.status = 'running' AND a.shard IS NOT NULL
    LOOP
        IF pg_try_advisory_lock(shard_key(r.migration_id, r.to_version, r.shard)) THEN
            PERFORM pg_advisory_unlock(shard_key(r.migration_id, r.to_version, r.shard));
            RETURN NEXT r.id;
        END IF;
    END LOOP;
END $$;

-- Takes the locks of a dead shard for this transaction, and reads what recovery decides on, as lock_and_load_stalled does
-- for a hop. NULL graph_id: not taken, or not running any more.
CREATE FUNCTION lock_and_load_dead_shard(p_attempt bigint, OUT graph_id uuid, OUT status text, OUT overdue boolean,
    OUT dispatch integer, OUT running_id bigint, OUT running_batches integer, OUT running_crashed boolean,
    OUT hop_name text, OUT hop_to integer, OUT interruptions integer, OUT crashes integer, OUT how_crashed text,
    OUT migration_id uuid, OUT hop_from integer, OUT shard integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    a record;
    forgiven bigint;
BEGIN
    SELECT * INTO a FROM hop_attempts h WHERE h.id = p_attempt;
    IF NOT (pg_try_advisory_xact_lock_shared(lock_key(a.graph_id))
            AND pg_try_advisory_xact_lock(shard_key(a.migration_id, a.to_version, a.shard))) THEN
        RETURN;
    END IF;
    SELECT m.status, m.dispatch, m.retries_reset_after_id INTO status, dispatch, forgiven
        FROM migrations m WHERE m.id = a.migration_id FOR UPDATE;
    SELECT h.id, h.batches, has_crashed(h.id) INTO running_id, running_batches, running_crashed
        FROM hop_attempts h WHERE h.id = p_attempt AND h.status = 'running';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    graph_id := a.graph_id; migration_id := a.migration_id; shard := a.shard; overdue := false;
    hop_name := a.hop_name; hop_from := a.from_version; hop_to := a.to_version;
    SELECT l.interruptions, l.crashes, l.how_crashed INTO interruptions, crashes, how_crashed
        FROM count_losses(a.migration_id, a.to_version, forgiven, a.shard) l;
END $$;

-- The executor of a shard is dead; its message goes out again.
CREATE FUNCTION record_lost_shard(p_attempt bigint, p_migration uuid, p_deadline_seconds double precision) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE migrations m SET deadline = greatest(m.deadline, clock_timestamp() + make_interval(secs => p_deadline_seconds))
        WHERE m.id = p_migration AND m.status IN ('running', 'pausing', 'cancelling');
    UPDATE hop_attempts SET status = 'lost', finished_at = clock_timestamp()
        WHERE id = p_attempt AND status = 'running';
END $$;

-- The rows of all shards of a hop; NULL where it has none.
CREATE FUNCTION shards_together(p_migration uuid, p_to integer, OUT done bigint, OUT total bigint) LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT sum(s.done)::bigint, sum(s.total)::bigint FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to
$$;

-- The shards of a hop that was released half-way, as graphs.partially_migrated keeps them; and back, for the migration
-- that finishes it.
CREATE FUNCTION shards_as_json(p_migration uuid, p_to integer) RETURNS jsonb LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp AS $$
    SELECT jsonb_build_object('shards', jsonb_agg(to_jsonb(s) - 'migration_id' - 'is_sent' ORDER BY s.number))
    FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to HAVING count(*) > 0
$$;
CREATE FUNCTION restore_shards(p_migration uuid, p_shards jsonb) RETURNS void LANGUAGE sql
SET search_path = graph_migrator, pg_temp AS $$
    INSERT INTO shards (migration_id, to_version, number, table_name, key, after, upto, cursor, done, total, is_done,
                        digest_before)
        SELECT p_migration, s.to_version, s.number, s.table_name, s.key, s.after, s.upto, s.cursor, s.done, s.total, s.is_done,
               s.digest_before
        FROM jsonb_populate_recordset(NULL::shards, p_shards) s
$$;
