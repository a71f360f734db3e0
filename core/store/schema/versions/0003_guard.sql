-- The write guard. Whoever changes a graph's rows is either an ordinary writer, who holds the graph's lock
-- shared until its transaction ends, or the executor of the migration that owns the graph. What the guard
-- promises and what it does not cover is in docs/write-guard.md.
--
-- The functions that applications reach run as their owner, with a search_path of their own: the guard reads
-- and locks rows that a writer's role need not be allowed to see. Errors carry a JSON object as DETAIL.

-- Raises 55006: the graph is read-only, and why, by whom and since when. An owner's lock has no date of its own, so
-- the graph's last change stands for it: the lock is not newer.
CREATE FUNCTION refuse_read_only(g graphs) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    reason text := CASE WHEN g.migration_id IS NULL THEN 'owner' ELSE 'migrating' END;
    since timestamptz := g.updated_at;
    stamp text;
BEGIN
    IF g.migration_id IS NOT NULL THEN
        SELECT CASE m.status WHEN 'failed' THEN 'error' ELSE 'migrating' END, coalesce(m.finished_at, m.created_at)
            INTO reason, since FROM migrations m WHERE m.id = g.migration_id;
    END IF;
    stamp := to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"');
    RAISE EXCEPTION 'graph % is read-only (%) since %: %', g.slug, reason, stamp, CASE reason
            WHEN 'owner' THEN 'its owner locked it'
            WHEN 'error' THEN format('migration %s failed and keeps it', g.migration_id)
            ELSE format('migration %s is moving it', g.migration_id) END
        USING ERRCODE = 'object_in_use', DETAIL = jsonb_build_object(
            'graph', g.slug, 'reason', reason, 'migration_id', g.migration_id, 'since', stamp);
END $$;

-- Admits a writer to one graph and returns the graph, which stays as it is until the transaction ends; or raises.
-- p_written: rows of that graph exist after the statement. p_expected: the version that the writer was made
-- for; by default what the session declared, as in graph_migrator.versions = '{"knowledge": 2}'.
--
-- Look, lock, look again. The first look keeps writers off the lock of a claimed graph: between two hops
-- nobody holds it, and a shared lock there would turn the next executor away. The second one is what counts.
-- VOLATILE: in READ COMMITTED each look has a snapshot of its own, the second newer than the lock.
CREATE FUNCTION admit_writer(p_graph uuid, p_written boolean, p_expected integer) RETURNS graphs LANGUAGE plpgsql AS $$
DECLARE
    g graphs;
    old_snapshot boolean := current_setting('transaction_isolation') IN ('repeatable read', 'serializable');
    declared text := current_setting('graph_migrator.versions', true);
    expected integer;
    executor text := current_setting('graph_migrator.executor', true);
    turn text := coalesce(current_setting('graph_migrator.turn', true), '');  -- where graphs share the transaction
    executes boolean;
    is_shard boolean := coalesce(current_setting('graph_migrator.shard', true), '') <> '';
    rebuild text := coalesce(current_setting('graph_migrator.rebuild', true), '');
BEGIN
    FOR look IN 1..2 LOOP
        IF look = 2 AND old_snapshot THEN
            -- A plain SELECT would show the row as it was before a whole migration; FOR SHARE raises 40001 instead.
            SELECT * INTO g FROM graphs WHERE id = p_graph FOR SHARE;
        ELSE
            SELECT * INTO g FROM graphs WHERE id = p_graph;
        END IF;
        IF g.id IS NULL THEN
            IF NOT p_written THEN
                RETURN NULL;  -- the graph was deleted, and its rows go with it
            ELSIF old_snapshot THEN
                -- Since this transaction's snapshot it may have been created and claimed by a migration.
                RAISE EXCEPTION 'graph % is not in the snapshot of this transaction', p_graph
                    USING ERRCODE = 'serialization_failure';
            END IF;
            RAISE EXCEPTION 'there is no graph %', p_graph USING ERRCODE = 'foreign_key_violation',
                DETAIL = jsonb_build_object('graph', p_graph, 'reason', 'unknown');
        END IF;
        executes := coalesce(executor = g.migration_id::text AND turn IN (executor, ''), false);
        IF is_shard THEN
            IF look = 1 THEN  -- also of a graph that nobody owns: a shard has one range of one graph
                PERFORM require_shard(g.migration_id, g.id);
            END IF;
        ELSIF NOT executes THEN
            IF g.migration_id IS NOT NULL OR g.owner_read_only THEN
                PERFORM refuse_read_only(g);
            END IF;
            expected := p_expected;
            IF expected IS NULL AND declared <> '' THEN  -- a SET LOCAL that ended leaves the empty string
                expected := (declared::jsonb ->> g.graph_type)::integer;
            END IF;
            IF expected <> g.version THEN
                RAISE EXCEPTION 'graph % is at version %, this writer is made for version %',
                        g.slug, g.version, expected
                    USING ERRCODE = 'object_in_use', DETAIL = jsonb_build_object(
                        'graph', g.slug, 'reason', 'version', 'expected', expected, 'found', g.version);
            END IF;
        END IF;
        EXIT WHEN look = 2;

        IF is_shard THEN
            NULL;  -- `require_shard` has taken its locks for this transaction
        ELSIF executes THEN
            -- The setting alone proves nothing: a lost executor still has it. Nor does the lock alone: the
            -- executor of another graph may hold the same key.
            IF NOT pg_try_advisory_xact_lock(lock_key(g.id)) THEN
                RAISE EXCEPTION 'session % is not the executor of migration %', pg_backend_pid(), g.migration_id
                    USING ERRCODE = 'GM001';
            END IF;
        ELSIF NOT pg_try_advisory_xact_lock_shared(lock_key(g.id)) THEN
            -- An executor has it, or waits for it. This transaction may hold rows that the executor needs:
            -- with an old snapshot it is lost anyway, so it gives way instead of waiting into a deadlock.
            IF old_snapshot THEN
                RAISE EXCEPTION 'graph % is being taken by a migration', g.slug
                    USING ERRCODE = 'serialization_failure', HINT = 'Repeat the transaction.';
            END IF;
            PERFORM pg_advisory_xact_lock_shared(lock_key(g.id));
        END IF;
    END LOOP;

    -- A transaction that began before the last change of version may have read rows of the old shape and
    -- must not write them into the new one. NULL: that change is committed and not yet dated. Rows that
    -- follow a change made in this very transaction are new.
    IF NOT executes AND (g.changed_at IS NULL OR now() < g.changed_at)
       AND strpos(coalesce(current_setting('graph_migrator.moved_here', true), ''), g.id::text) = 0 THEN
        RAISE EXCEPTION 'graph % came to version % after this transaction began', g.slug, g.version
            USING ERRCODE = 'serialization_failure', HINT = 'Repeat the transaction.';
    END IF;
    IF executes AND rebuild = 'staging' THEN
        RAISE EXCEPTION 'a rebuild hop writes nothing but the rows that it is given; graph % stays as it is until they are '
                        'swapped in', g.slug
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF g.undo_id IS NOT NULL AND rebuild <> 'exchange' THEN
        PERFORM note_change(g.undo_id);
    END IF;
    RETURN g;
END $$;

-- The guard for code that asks before it writes (core/store/writers.py): one call, one round trip.
-- No row where there is no such graph.
CREATE FUNCTION write_guard(p_graph text, p_version integer)
RETURNS TABLE (id uuid, slug text, graph_type text, version integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    found_id uuid := graph_id_of(p_graph);
    g graphs;
BEGIN
    IF found_id IS NOT NULL THEN
        g := admit_writer(found_id, true, p_version);
        RETURN QUERY SELECT g.id, g.slug, g.graph_type, g.version;
    END IF;
END $$;

-- ── the guard for code that forgot to ask ──────────────────────────────────────────────────────────

-- Runs once after a statement, for every graph whose rows it inserted, changed or deleted. TG_ARGV[0] is the column
-- that holds the graph's id; a row where it is NULL belongs to no graph and is not guarded.
CREATE FUNCTION guard_writes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    most CONSTANT integer := 1000;  -- the lock table is finite, and a full one shuts new connections out
    one uuid;
    several boolean := true;
    written uuid[];
    removed uuid[];
    id uuid;
    admitted graphs;
    is_shard boolean := coalesce(current_setting('graph_migrator.shard', true), '') <> '';
    condition text;
    is_outside boolean := false;
    first text;
    last text;
BEGIN
    IF is_shard AND TG_RELID NOT IN ('graph_migrator.nodes'::regclass, 'graph_migrator.edges'::regclass) THEN
        condition := admit_shard(TG_RELID, TG_ARGV[0], TG_OP <> 'DELETE');
        IF TG_OP <> 'INSERT' THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM old_rows WHERE (%s) IS NOT TRUE)', condition) INTO is_outside;
        END IF;
        IF TG_OP <> 'DELETE' AND NOT is_outside THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM new_rows WHERE (%s) IS NOT TRUE)', condition) INTO is_outside;
        END IF;
        IF is_outside THEN
            PERFORM refuse_range(TG_RELID);
        END IF;
        RETURN NULL;
    END IF;
    -- Most statements change one graph, and the usual name is `graph_id`: plain scans, whose plans are kept and
    -- do not depend on the number of rows of the first statement.
    IF TG_ARGV[0] = 'graph_id' THEN
        IF TG_OP = 'INSERT' THEN
            SELECT x.id, EXISTS (SELECT FROM new_rows n WHERE n.graph_id IS DISTINCT FROM x.id)
                INTO one, several FROM (SELECT n.graph_id AS id FROM new_rows n LIMIT 1) x;
        ELSIF TG_OP = 'UPDATE' THEN
            SELECT x.id, EXISTS (SELECT FROM old_rows o WHERE o.graph_id IS DISTINCT FROM x.id)
                      OR EXISTS (SELECT FROM new_rows n WHERE n.graph_id IS DISTINCT FROM x.id)
                INTO one, several FROM (SELECT o.graph_id AS id FROM old_rows o LIMIT 1) x;
        ELSE
            SELECT x.id, EXISTS (SELECT FROM old_rows o WHERE o.graph_id IS DISTINCT FROM x.id)
                INTO one, several FROM (SELECT o.graph_id AS id FROM old_rows o LIMIT 1) x;
        END IF;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        IF NOT several THEN
            IF one IS NOT NULL THEN
                admitted := admit_writer(one, TG_OP <> 'DELETE', NULL);  -- PERFORM would make it a query
                IF is_shard THEN
                    IF TG_OP = 'INSERT' THEN
                        SELECT min(n.id), max(n.id) INTO first, last FROM new_rows n;
                    ELSIF TG_OP = 'UPDATE' THEN
                        SELECT min(x.first), max(x.last) INTO first, last FROM (
                            SELECT min(o.id) AS first, max(o.id) AS last FROM old_rows o
                            UNION ALL SELECT min(n.id), max(n.id) FROM new_rows n) x;
                    ELSE
                        SELECT min(o.id), max(o.id) INTO first, last FROM old_rows o;
                    END IF;
                    PERFORM require_range(admitted, TG_RELID, first, last);
                END IF;
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    IF is_shard THEN
        RAISE EXCEPTION 'a shard writes nothing but rows of its own range, not such a statement on %', TG_RELID::regclass
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;

    IF TG_OP <> 'DELETE' THEN
        EXECUTE format('SELECT array_agg(x.id) FROM (SELECT DISTINCT %I AS id FROM new_rows LIMIT %s) x '
                       'WHERE x.id IS NOT NULL', TG_ARGV[0], most + 2) INTO written;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        EXECUTE format('SELECT array_agg(x.id) FROM (SELECT DISTINCT %I AS id FROM old_rows LIMIT %s) x '
                       'WHERE x.id IS NOT NULL', TG_ARGV[0], most + 2) INTO removed;
    END IF;
    IF (SELECT count(*) FROM (SELECT unnest(written) UNION SELECT unnest(removed)) x) > most THEN
        RAISE EXCEPTION 'a statement on % touches more than % graphs', TG_RELID::regclass, most
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Cut it into several.';
    END IF;
    -- In order, so that two such statements cannot wait for each other.
    FOR id IN SELECT unnest(written) UNION SELECT unnest(removed) ORDER BY 1 LOOP
        PERFORM admit_writer(id, coalesce(id = ANY (written), false), NULL);
    END LOOP;
    RETURN NULL;
END $$;

CREATE FUNCTION refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% holds rows of graphs and is never truncated', TG_RELID::regclass
        USING ERRCODE = 'feature_not_supported', HINT = 'Use DELETE, graph by graph.';
END $$;

-- Puts the guard on one table, not on its partitions or children (core/store/guard.py sees to those).
CREATE FUNCTION guard_table(p_table regclass, p_column name) RETURNS void LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event text;
BEGIN
    EXECUTE format($q$
        CREATE OR REPLACE TRIGGER graph_migrator_guard_insert AFTER INSERT ON %1$s
            REFERENCING NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION graph_migrator.guard_writes(%2$L);
        CREATE OR REPLACE TRIGGER graph_migrator_guard_update AFTER UPDATE ON %1$s
            REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
            FOR EACH STATEMENT EXECUTE FUNCTION graph_migrator.guard_writes(%2$L);
        CREATE OR REPLACE TRIGGER graph_migrator_guard_delete AFTER DELETE ON %1$s
            REFERENCING OLD TABLE AS old_rows
            FOR EACH STATEMENT EXECUTE FUNCTION graph_migrator.guard_writes(%2$L);
        CREATE OR REPLACE TRIGGER graph_migrator_guard_truncate BEFORE TRUNCATE ON %1$s
            FOR EACH STATEMENT EXECUTE FUNCTION graph_migrator.refuse_truncate();
        $q$, p_table, p_column);
    FOREACH event IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        -- ALWAYS: also if session_replication_role is replica.
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER graph_migrator_guard_%s', p_table, event);
    END LOOP;
END $$;

SELECT guard_table('graph_migrator.nodes', 'graph_id'), guard_table('graph_migrator.edges', 'graph_id');

-- ── the graphs themselves ──────────────────────────────────────────────────────────────────────────

-- Only the executor that the claim names may change version, type, claim and what belongs to them. Nobody else may
-- change a claimed graph, except for the owner's lock.
CREATE FUNCTION guard_graphs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    owner uuid;
    token text := current_setting('graph_migrator.executor', true);
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.migration_id IS NOT NULL THEN
            RAISE EXCEPTION 'graph %: a migration claims a graph that is there', NEW.slug
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        -- A date in the future would refuse all writers until then. A graph that replaces one of this transaction is
        -- dated after the commit, like a migrated one.
        IF NEW.changed_at IS NOT NULL
           OR strpos(coalesce(current_setting('graph_migrator.moved_here', true), ''), NEW.id::text) = 0 THEN
            NEW.changed_at := least(NEW.changed_at, now());
        END IF;
        NEW.undo_id := NULL;
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' THEN
        IF OLD.migration_id IS NOT NULL OR OLD.owner_read_only THEN
            PERFORM refuse_read_only(OLD);
        END IF;
        RETURN OLD;
    END IF;

    owner := coalesce(OLD.migration_id, NEW.migration_id);
    IF token IS DISTINCT FROM owner::text THEN  -- an executor has to show its lock for each of its changes
        IF (OLD.id, OLD.graph_type, OLD.version, OLD.migration_id, OLD.partially_migrated, OLD.changed_at, OLD.undo_id)
           IS NOT DISTINCT FROM
           (NEW.id, NEW.graph_type, NEW.version, NEW.migration_id, NEW.partially_migrated, NEW.changed_at, NEW.undo_id)
           AND (OLD.migration_id IS NULL
                OR (OLD.slug, OLD.config, OLD.created_at) = (NEW.slug, NEW.config, NEW.created_at)) THEN
            IF OLD.owner_read_only <> NEW.owner_read_only THEN
                NEW.updated_at := clock_timestamp();
            END IF;
            RETURN NEW;
        END IF;
    END IF;

    IF owner IS NULL THEN
        -- No migration owns it: its last change may be dated, and the record of a force-released graph changed.
        IF (OLD.id, OLD.graph_type, OLD.version) <> (NEW.id, NEW.graph_type, NEW.version)
           OR OLD.undo_id IS DISTINCT FROM NEW.undo_id
           OR (OLD.changed_at IS DISTINCT FROM NEW.changed_at AND OLD.changed_at IS NOT NULL)
           OR (OLD.partially_migrated IS DISTINCT FROM NEW.partially_migrated AND NOT EXISTS (
               SELECT FROM migrations m WHERE m.id::text = token AND m.graph_id = OLD.id)) THEN
            RAISE EXCEPTION 'graph %: only migrations change id, type, version, changed_at, partially_migrated and undo_id', OLD.slug
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    ELSIF token IS DISTINCT FROM owner::text THEN
        IF OLD.migration_id IS NOT NULL THEN
            PERFORM refuse_read_only(OLD);
        END IF;
        RAISE EXCEPTION 'graph %: only a migration that begins may claim it', OLD.slug
            USING ERRCODE = 'integrity_constraint_violation';
    ELSIF current_setting('graph_migrator.repairing', true) = owner::text THEN
        RAISE EXCEPTION 'graph %: a repair corrects data; it changes neither id, type, version nor claim', OLD.slug
            USING ERRCODE = 'integrity_constraint_violation';
    ELSIF current_setting('graph_migrator.rebuild', true) = 'staging'
          AND (OLD.slug, OLD.config, OLD.created_at) <> (NEW.slug, NEW.config, NEW.created_at) THEN
        RAISE EXCEPTION 'graph %: a rebuild hop writes nothing but the rows that it is given', OLD.slug
            USING ERRCODE = 'integrity_constraint_violation';
    ELSIF OLD.migration_id <> NEW.migration_id THEN
        RAISE EXCEPTION 'graph %: a claim is released, not passed on', OLD.slug
            USING ERRCODE = 'integrity_constraint_violation';
    ELSIF OLD.migration_id IS NULL THEN
        IF NOT EXISTS (SELECT FROM migrations m WHERE m.id = owner AND m.graph_id = NEW.id) THEN
            RAISE EXCEPTION 'graph %: migration % is not one of this graph', OLD.slug, owner
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END IF;
    IF current_setting('graph_migrator.shard', true) <> '' OR NOT pg_try_advisory_xact_lock(lock_key(OLD.id)) THEN
        RAISE EXCEPTION 'session % does not hold the lock of graph %', pg_backend_pid(), OLD.slug
            USING ERRCODE = 'GM001';
    END IF;
    IF OLD.version <> NEW.version THEN
        -- From here on this transaction writes rows of the new shape.
        token := set_config('graph_migrator.moved_here',
            concat(current_setting('graph_migrator.moved_here', true), ' ', NEW.id), true);
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER graph_migrator_guard BEFORE INSERT OR UPDATE OR DELETE ON graphs
    FOR EACH ROW EXECUTE FUNCTION guard_graphs();
CREATE TRIGGER graph_migrator_guard_truncate BEFORE TRUNCATE ON graphs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard;
ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard_truncate;
