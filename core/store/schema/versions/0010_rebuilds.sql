-- Rebuild hops: docs/decisions/0017-rebuild-hops.md. What such a hop changes is staged beside the graph, batch by batch,
-- until one commit exchanges it for the old values. These are kept for a while, so that going back is one commit, too.

CREATE TABLE rebuilds (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration_id uuid NOT NULL,
    graph_id     uuid NOT NULL,
    from_version integer NOT NULL,
    to_version   integer NOT NULL,
    table_name   text NOT NULL,
    fingerprint  text NOT NULL,
    status       text NOT NULL DEFAULT 'staging',
    cursor       jsonb,
    done         bigint NOT NULL DEFAULT 0,
    rows         bigint NOT NULL DEFAULT 0,
    below        bigint,
    swapped_at   timestamptz,
    undo_until   timestamptz,
    CONSTRAINT rebuilds_status_is_known CHECK (status IN ('staging', 'staged', 'kept', 'discarded')),
    CONSTRAINT rebuilds_table_is_known CHECK (table_name IN ('nodes', 'edges'))
);
COMMENT ON COLUMN rebuilds.table_name IS 'The table whose rows the hop processes.';
COMMENT ON COLUMN rebuilds.fingerprint IS 'The code that staged the rows.';
COMMENT ON COLUMN rebuilds.status IS
    'staging: batches are left. staged: all are there. kept: swapped in, old values kept. discarded: the sweep removes the rows.';
COMMENT ON COLUMN rebuilds.cursor IS 'The key of the last row that the hop has processed; NULL before the first batch.';
COMMENT ON COLUMN rebuilds.done IS 'Rows that it has processed.';
COMMENT ON COLUMN rebuilds.rows IS 'Rows that it has changed: so many are staged.';
COMMENT ON COLUMN rebuilds.below IS 'The swap before it that becomes the latest again when this one is taken back.';
COMMENT ON COLUMN rebuilds.undo_until IS 'The sweep discards kept rows after this time.';
CREATE UNIQUE INDEX rebuilds_one_open ON rebuilds (migration_id, to_version) WHERE status IN ('staging', 'staged');
CREATE INDEX rebuilds_by_graph ON rebuilds (graph_id);
CREATE INDEX rebuilds_to_discard ON rebuilds (undo_until) WHERE status = 'kept';
CREATE INDEX rebuilds_to_remove ON rebuilds (id) WHERE status = 'discarded';

-- NULL where the hop left a value as it was. kind is a node's label or an edge's type.
CREATE TABLE rebuilt_rows (
    rebuild_id     bigint NOT NULL,
    id             text NOT NULL,
    old_kind       text,
    old_source     text,
    old_target     text,
    old_properties jsonb,
    new_kind       text,
    new_source     text,
    new_target     text,
    new_properties jsonb,
    PRIMARY KEY (rebuild_id, id)
);

-- Whether a graph was changed since its latest swap, by whomever: a row here. Each transaction that changes it adds one,
-- until one of these is committed; so none waits for another.
CREATE TABLE rebuild_changes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rebuild_id bigint NOT NULL
);
CREATE INDEX rebuild_changes_by_rebuild ON rebuild_changes (rebuild_id);

-- Called by the write guard for every change of a graph that has such a swap.
CREATE FUNCTION note_change(p_rebuild bigint) RETURNS void LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM rebuilds r WHERE r.id = p_rebuild AND r.status = 'kept')
       AND NOT EXISTS (SELECT FROM rebuild_changes c WHERE c.rebuild_id = p_rebuild) THEN
        INSERT INTO rebuild_changes (rebuild_id) VALUES (p_rebuild);
    END IF;
END $$;

-- The swap that would be taken back by the hop from a graph's version to p_to; NULL where the hop's code has to run.
-- Only on the way back: who went back and comes again wants the code of today.
CREATE FUNCTION undoable(p_undo bigint, p_version integer, p_to integer) RETURNS bigint LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    SELECT r.id FROM rebuilds r
    WHERE r.id = p_undo AND r.status = 'kept' AND r.to_version = p_version AND r.from_version = p_to
      AND NOT EXISTS (SELECT FROM rebuild_changes c WHERE c.rebuild_id = r.id)
$$;

-- To which version a graph can go back, swap by swap; its own version where there is nothing to take back.
CREATE FUNCTION undoable_down_to(p_graph uuid) RETURNS integer LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    WITH RECURSIVE way AS (
        SELECT g.version, g.undo_id FROM graphs g WHERE g.id = p_graph
        UNION ALL
        SELECT r.from_version, r.below FROM way w
        JOIN rebuilds r ON r.id = w.undo_id AND r.id = undoable(r.id, w.version, r.from_version)
    ) SELECT min(w.version) FROM way w
$$;

-- The rows that an attempt goes on with; a new set where there is none of this code: a retry, or a deploy in a rollout, may
-- have planned the hop anew.
CREATE FUNCTION open_rebuild(p_attempt bigint, p_migration uuid, p_graph uuid, p_from integer, p_to integer,
    p_table_name text, p_fingerprint text, OUT id bigint, OUT cursor jsonb, OUT done bigint, OUT is_staged boolean)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    PERFORM open_batch(p_attempt, p_migration, p_graph);
    UPDATE rebuilds r SET status = 'discarded'
        WHERE r.migration_id = p_migration AND r.to_version = p_to AND r.status IN ('staging', 'staged')
          AND r.fingerprint <> p_fingerprint;
    SELECT r.id, r.cursor, r.done, r.status = 'staged' INTO id, cursor, done, is_staged FROM rebuilds r
        WHERE r.migration_id = p_migration AND r.to_version = p_to AND r.status IN ('staging', 'staged');
    IF id IS NULL THEN
        INSERT INTO rebuilds AS r (migration_id, graph_id, from_version, to_version, table_name, fingerprint)
            VALUES (p_migration, p_graph, p_from, p_to, p_table_name, p_fingerprint) RETURNING r.id INTO id;
        done := 0;
        is_staged := false;
    END IF;
END $$;

-- Before a hop in shards is cut or its shards are sent, under the graph's lock. What other code has staged is discarded, or
-- a repair has discarded it: its shards go with it. Shards that change the graph itself go on as they began. p_table_name:
-- NULL where this process's code rebuilds nothing.
-- rebuild_id: where shards that are cut now stage. is_begun: it stages without shards already. shards: so many are left.
CREATE FUNCTION prepare_rebuild(p_migration uuid, p_graph uuid, p_from integer, p_to integer, p_table_name text,
    p_fingerprint text, OUT rebuild_id bigint, OUT is_begun boolean, OUT shards integer)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE rebuilds r SET status = 'discarded'
        WHERE r.migration_id = p_migration AND r.to_version = p_to AND r.status IN ('staging', 'staged')
          AND (p_table_name IS NULL OR r.fingerprint <> p_fingerprint);
    DELETE FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to AND s.rebuild_id IS NOT NULL
        AND NOT EXISTS (SELECT FROM rebuilds r WHERE r.id = s.rebuild_id AND r.status = 'staging');
    SELECT count(*) INTO shards FROM shards s WHERE s.migration_id = p_migration AND s.to_version = p_to;
    is_begun := false;
    IF p_table_name IS NOT NULL AND shards = 0 THEN
        SELECT r.id, r.cursor IS NOT NULL OR r.status = 'staged' INTO rebuild_id, is_begun FROM rebuilds r
            WHERE r.migration_id = p_migration AND r.to_version = p_to AND r.status IN ('staging', 'staged');
        IF rebuild_id IS NULL THEN
            INSERT INTO rebuilds AS r (migration_id, graph_id, from_version, to_version, table_name, fingerprint)
                VALUES (p_migration, p_graph, p_from, p_to, p_table_name, p_fingerprint) RETURNING r.id INTO rebuild_id;
            is_begun := false;
        END IF;
    END IF;
END $$;

-- open_batch for a rebuild hop: until finish_hop its transaction writes no row of a graph but by its swap.
CREATE FUNCTION open_rebuild_batch(p_attempt bigint, p_migration uuid, p_graph uuid, OUT status text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    status := open_batch(p_attempt, p_migration, p_graph);
    PERFORM set_config('graph_migrator.rebuild', 'staging', true);
END $$;

-- The same for a shard.
CREATE FUNCTION open_rebuild_shard_batch(p_attempt bigint, p_migration uuid, p_graph uuid, OUT status text)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    status := open_shard_batch(p_attempt, p_migration, p_graph);
    PERFORM set_config('graph_migrator.rebuild', 'staging', true);
END $$;

-- Commits with what the batch has staged. p_ends: it was the last one.
CREATE FUNCTION save_rebuild_batch(p_attempt bigint, p_migration uuid, p_rebuild bigint, p_cursor jsonb, p_done bigint,
    p_rows bigint, p_ends boolean, p_deadline_seconds double precision, OUT rate double precision)
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    rate := note_batch(p_attempt, p_migration, p_done, 0, p_deadline_seconds);
    UPDATE rebuilds r SET cursor = coalesce(p_cursor, r.cursor), done = p_done, rows = r.rows + p_rows,
           status = CASE WHEN p_ends THEN 'staged' ELSE 'staging' END
        WHERE r.id = p_rebuild AND r.migration_id = p_migration AND r.status = 'staging';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the staged rows of migration % are not its own any more', p_migration USING ERRCODE = 'GM001';
    END IF;
END $$;

-- Writes the new values of a rebuild into its graph, or the old ones; returns how many rows. Both sides are read in the order
-- of their keys. Rows just staged have no statistics; by these a plan would look each row up, or hash too many (2x the time).
CREATE FUNCTION exchange_rows(r rebuilds, p_new boolean) RETURNS bigint LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_nestloop = off SET enable_hashjoin = off SET enable_sort = off AS $$
DECLARE
    touched bigint;
BEGIN
    PERFORM set_config('graph_migrator.rebuild', 'exchange', true);
    IF r.table_name = 'nodes' THEN
        UPDATE nodes n SET label = coalesce(CASE WHEN p_new THEN x.new_kind ELSE x.old_kind END, n.label),
               properties = coalesce(CASE WHEN p_new THEN x.new_properties ELSE x.old_properties END, n.properties)
            FROM rebuilt_rows x WHERE x.rebuild_id = r.id AND n.graph_id = r.graph_id AND n.id = x.id;
    ELSE
        UPDATE edges e SET type = coalesce(CASE WHEN p_new THEN x.new_kind ELSE x.old_kind END, e.type),
               source = coalesce(CASE WHEN p_new THEN x.new_source ELSE x.old_source END, e.source),
               target = coalesce(CASE WHEN p_new THEN x.new_target ELSE x.old_target END, e.target),
               properties = coalesce(CASE WHEN p_new THEN x.new_properties ELSE x.old_properties END, e.properties)
            FROM rebuilt_rows x WHERE x.rebuild_id = r.id AND e.graph_id = r.graph_id AND e.id = x.id;
    END IF;
    GET DIAGNOSTICS touched = ROW_COUNT;
    PERFORM set_config('graph_migrator.rebuild', 'staging', true);
    IF touched <> r.rows THEN
        RAISE EXCEPTION 'of % staged rows of migration % the graph has %: somebody has written it meanwhile',
                r.rows, r.migration_id, touched
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN touched;
END $$;

-- The swap, in the hop's last transaction. Returns how many rows it changed. p_undo_seconds: how long the old values are
-- kept; 0 or less: not at all.
CREATE FUNCTION swap_rebuild(p_attempt bigint, p_migration uuid, p_graph uuid, p_rebuild bigint,
    p_undo_seconds double precision) RETURNS bigint
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    r rebuilds;
    g graphs;
    is_kept boolean := p_undo_seconds > 0;
BEGIN
    PERFORM require_executor(p_migration, p_graph), require_transaction(p_attempt);
    SELECT * INTO r FROM rebuilds WHERE id = p_rebuild AND migration_id = p_migration AND graph_id = p_graph
        AND (status = 'staged' OR (status = 'staging'
             AND (SELECT bool_and(s.is_done) FROM shards s WHERE s.migration_id = p_migration AND s.rebuild_id = p_rebuild)))
        FOR UPDATE;
    SELECT * INTO g FROM graphs WHERE id = p_graph AND version = r.from_version;
    IF g.id IS NULL THEN
        RAISE EXCEPTION 'migration % has no staged rows for a graph at this version', p_migration USING ERRCODE = 'GM001';
    END IF;
    UPDATE rebuilds SET status = CASE WHEN is_kept THEN 'kept' ELSE 'discarded' END, swapped_at = clock_timestamp(),
           undo_until = CASE WHEN is_kept THEN clock_timestamp() + make_interval(secs => p_undo_seconds) END,
           below = g.undo_id
        WHERE id = r.id;
    UPDATE graphs SET undo_id = CASE WHEN is_kept THEN r.id END WHERE id = p_graph;
    RETURN exchange_rows(r, true);
END $$;

-- Takes a swap back, in the only transaction of a hop; returns how many rows it changed. NULL where it cannot be taken back.
CREATE FUNCTION undo_rebuild(p_attempt bigint, p_migration uuid, p_graph uuid, p_rebuild bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    r rebuilds;
BEGIN
    PERFORM require_executor(p_migration, p_graph), require_transaction(p_attempt);
    SELECT x.* INTO r FROM graphs g JOIN rebuilds x ON x.id = g.undo_id AND x.graph_id = g.id
        WHERE g.id = p_graph AND x.id = p_rebuild AND x.id = undoable(x.id, g.version, x.from_version) FOR UPDATE OF x;
    IF r.id IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE rebuilds SET status = 'discarded' WHERE id = r.id;
    UPDATE graphs SET undo_id = r.below WHERE id = p_graph;
    UPDATE hop_attempts SET undid = r.migration_id WHERE id = p_attempt AND status = 'running';
    RETURN exchange_rows(r, false);
END $$;

-- Part of a sweep: discards what no migration will go on with, and kept rows whose time is over; then removes at most
-- p_most_rows discarded rows. Kept rows are discarded under the graph's lock, and never of a claimed graph: a migration that
-- has begun because of them finds them. Returns how many rows were removed.
CREATE FUNCTION sweep_rebuilds(p_most_rows integer) RETURNS bigint LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    r record;
    gone bigint;
    removed bigint := 0;
    left_over bigint := p_most_rows;
BEGIN
    UPDATE rebuilds x SET status = 'discarded'
        WHERE x.status IN ('staging', 'staged') AND NOT EXISTS (SELECT FROM migrations m WHERE m.id = x.migration_id
            AND m.status NOT IN ('succeeded', 'cancelled', 'released'));
    FOR r IN SELECT x.id, x.graph_id FROM rebuilds x WHERE x.status = 'kept' AND x.undo_until < statement_timestamp()
            ORDER BY x.undo_until LIMIT p_most_rows LOOP
        IF pg_try_advisory_xact_lock(lock_key(r.graph_id))
           AND NOT EXISTS (SELECT FROM graphs g WHERE g.id = r.graph_id AND g.migration_id IS NOT NULL) THEN
            UPDATE rebuilds SET status = 'discarded' WHERE id = r.id;
        END IF;
    END LOOP;
    FOR r IN SELECT x.id FROM rebuilds x WHERE x.status = 'discarded' ORDER BY x.id LOOP
        DELETE FROM rebuilt_rows
            WHERE ctid = ANY (ARRAY(SELECT ctid FROM rebuilt_rows WHERE rebuild_id = r.id LIMIT left_over));
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        EXIT WHEN gone >= left_over;
        DELETE FROM rebuild_changes WHERE rebuild_id = r.id;
        DELETE FROM rebuilds WHERE id = r.id;
        left_over := left_over - gone - 1;
        EXIT WHEN left_over <= 0;
    END LOOP;
    RETURN removed;
END $$;
