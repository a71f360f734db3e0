-- Least-privilege roles. Run it after `graph-migrator db upgrade`, and again after each, as a superuser or as
-- the role that owns the tables:   psql "$DATABASE_URL" -f docs/roles.sql
--
--   graph_migrator_owner        makes and changes tables; nothing runs as it but `db upgrade` and `guard install`
--   graph_migrator_worker       workers and operators: migrates; cannot drop, disable a trigger, delete an audit row
--   graph_migrator_application  services: read and write graphs' data through the write guard, import, export
--   graph_migrator_reader       dashboards: reads
--   graph_migrator_console      the console: reads, lets people in, carries operators' verbs out; no graph's data
--
-- They are groups without a login:   GRANT graph_migrator_worker TO my_worker_login;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['owner', 'worker', 'application', 'reader', 'console'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'graph_migrator_' || role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE graph_migrator_%s NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another run was quicker: roles belong to the whole server
            END;
        END IF;
    END LOOP;
END $$;

-- ── the owner has everything, and nobody else has anything that is not said below ──────────────────

ALTER SCHEMA graph_migrator OWNER TO graph_migrator_owner;
DO $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace = 'graph_migrator'::regnamespace AND c.relkind IN ('r', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO graph_migrator_owner', each.name);
    END LOOP;
    FOR each IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'graph_migrator'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO graph_migrator_owner', each.name);
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA graph_migrator FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA graph_migrator
    FROM PUBLIC, graph_migrator_worker, graph_migrator_application, graph_migrator_reader, graph_migrator_console;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA graph_migrator
    FROM PUBLIC, graph_migrator_worker, graph_migrator_application, graph_migrator_reader, graph_migrator_console;
GRANT USAGE ON SCHEMA graph_migrator
    TO graph_migrator_worker, graph_migrator_application, graph_migrator_reader, graph_migrator_console;
SET search_path = graph_migrator, pg_catalog;

-- ── the worker: rows of migrations are made and followed, never deleted ────────────────────────────

GRANT SELECT ON ALL TABLES IN SCHEMA graph_migrator TO graph_migrator_worker;
GRANT INSERT, UPDATE, DELETE ON nodes, edges, checkpoints, shards, rebuilds, rebuilt_rows, rebuild_changes TO graph_migrator_worker;
GRANT INSERT, UPDATE ON migrations, hop_attempts, requests, hop_totals, traces TO graph_migrator_worker;
GRANT INSERT, UPDATE ON graphs TO graph_migrator_worker;
GRANT INSERT, DELETE ON shared_transactions TO graph_migrator_worker;
GRANT UPDATE ON metrics_state, sweep_lease TO graph_migrator_worker;
GRANT INSERT, UPDATE ON rollouts, rollout_stages, rollout_members, packs TO graph_migrator_worker;
GRANT INSERT ON rollout_changes, policies TO graph_migrator_worker;
GRANT UPDATE ON rollout_fleet TO graph_migrator_worker;
GRANT INSERT, UPDATE, DELETE ON workers, waiting_calls TO graph_migrator_worker;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA graph_migrator TO graph_migrator_worker;
-- Archived audit rows are removed by the owner alone.
REVOKE EXECUTE ON FUNCTION remove_archived(uuid, text, timestamptz, jsonb, uuid[], text[]) FROM graph_migrator_worker;

-- ── the application: data through the guard; of a graph's row only what is its own ─────────────────

GRANT SELECT ON graphs, nodes, edges TO graph_migrator_application;
GRANT INSERT, UPDATE, DELETE ON nodes, edges TO graph_migrator_application;
GRANT INSERT (id, slug, graph_type, version, owner_read_only, config, changed_at) ON graphs
    TO graph_migrator_application;
GRANT UPDATE (slug, owner_read_only, config, updated_at), DELETE ON graphs TO graph_migrator_application;
GRANT EXECUTE ON FUNCTION write_guard(text, integer), graph_id_of(text) TO graph_migrator_application;
-- For `graph_migrator.current`: who moves a graph that is opened, and which rollout it waits in.
GRANT SELECT (id, status, to_version) ON migrations, rollouts TO graph_migrator_application;
GRANT SELECT (rollout_id, graph_id, status, number) ON rollout_members TO graph_migrator_application;
GRANT EXECUTE ON FUNCTION move_to_front(uuid, uuid) TO graph_migrator_application;

-- ── the reader ────────────────────────────────────────────────────────────────────────────────────

GRANT SELECT ON ALL TABLES IN SCHEMA graph_migrator TO graph_migrator_reader;
GRANT EXECUTE ON FUNCTION migration_report(uuid), lock_key(uuid), graph_id_of(text), shards_together(uuid, integer),
    undoable_down_to(uuid), undoable(bigint, integer, integer) TO graph_migrator_reader;

-- ── the console: verbs through functions that run as the owner; of tables only its own and rollouts' ──

GRANT SELECT ON ALL TABLES IN SCHEMA graph_migrator TO graph_migrator_console;
REVOKE SELECT ON nodes, edges FROM graph_migrator_console;
-- Labels and edge types are what a rollout chooses its canaries by.
GRANT SELECT (graph_id, label) ON nodes TO graph_migrator_console;
GRANT SELECT (graph_id, type) ON edges TO graph_migrator_console;
GRANT INSERT, UPDATE ON api_tokens, api_requests TO graph_migrator_console;
GRANT INSERT, DELETE ON api_sessions TO graph_migrator_console;
GRANT INSERT, UPDATE ON rollouts, rollout_stages, rollout_members TO graph_migrator_console;
GRANT INSERT ON rollout_changes, policies TO graph_migrator_console;
GRANT UPDATE ON rollout_fleet TO graph_migrator_console;
-- What is not made to run as the owner can do no more than the role itself.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA graph_migrator TO graph_migrator_console;
REVOKE EXECUTE ON FUNCTION remove_archived(uuid, text, timestamptz, jsonb, uuid[], text[]) FROM graph_migrator_console;
DO $$
DECLARE
    each record;
BEGIN
    FOR each IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'graph_migrator'::regnamespace AND p.proname IN (
            'load_operator_state', 'lock_and_load_graph', 'lock_and_load_stalled', 'follow_edge', 'stop_migration', 'release_migration',
            'declare_whole', 'set_owner_read_only', 'retry_migration', 'begin_migration', 'record_verb',
            'record_outcome', 'record_sent', 'fail_between_hops') LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER', each.name);
    END LOOP;
END $$;

RESET search_path;

-- ── optional: a role that imports large graphs ────────────────────────────────────────────────────

-- Edges are then checked by one query instead of row by row, which halves an import's time (docs/formats.md). The role
-- may suspend foreign keys and ordinary triggers in its own sessions; the write guard fires always. PostgreSQL 15 and
-- newer:   GRANT SET ON PARAMETER session_replication_role TO my_import_login;

-- ── optional, and not everywhere to be had: what `status` and `release --terminate` are better with ──

-- Who holds a lock, when it is another role: application, host, statement.
GRANT pg_read_all_stats TO graph_migrator_worker;
-- Ending a hung session of another role.
GRANT pg_signal_backend TO graph_migrator_worker;
