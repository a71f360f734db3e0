-- Proof that the audit is as it was written: docs/decisions/0013-proof-chain.md.

ALTER TABLE hop_attempts ADD link integer, ADD previous bytea, ADD hash bytea,
    ADD digest_before text, ADD digest_after text;
COMMENT ON COLUMN hop_attempts.link IS 'Its number among the finished attempts of its graph, from 1.';
COMMENT ON COLUMN hop_attempts.previous IS 'The hash of the link before it; NULL at the first one.';
COMMENT ON COLUMN hop_attempts.hash IS 'SHA-256 of the row as canonical JSON without this column; see link_attempt.';
COMMENT ON COLUMN hop_attempts.digest_before IS 'Digest of nodes and edges before the hop; where its type asks for it.';

-- A chain does not fork: no two links of a graph have one number.
CREATE UNIQUE INDEX hop_attempts_chain ON hop_attempts (graph_id, link) WHERE link IS NOT NULL;

-- Contiguous ranges of links that an archive holds. Only remove_archived writes here.
CREATE TABLE archived_links (
    graph_id   uuid NOT NULL,
    last_link  integer NOT NULL,
    first_link integer NOT NULL,
    previous   bytea,
    hash       bytea NOT NULL,
    archive_id uuid NOT NULL REFERENCES archives (id),
    PRIMARY KEY (graph_id, last_link)
);
COMMENT ON COLUMN archived_links.previous IS 'The hash before the first of them.';
COMMENT ON COLUMN archived_links.hash IS 'The hash of the last of them.';

-- The hash of a row, SHA-256 of jsonb's text, in which keys have one order; whatever the session's settings.
CREATE FUNCTION attempt_hash(a hop_attempts) RETURNS bytea LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp SET timezone = 'UTC' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
    SELECT sha256(convert_to(jsonb_strip_nulls(to_jsonb(a) - 'hash')::text, 'UTF8'))
$$;

-- Links an attempt that finishes to the chain of its graph. The caller holds the graph's lock, or that of a shard: those
-- that end together wait here for one another, until they are committed. Executors' sessions have
-- the settings of the text already; setting them for a call costs more than all the rest.
CREATE FUNCTION link_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.shard IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(uuid_hash_extended(NEW.graph_id, 5716853094183207176));
    END IF;
    SELECT x.link, x.hash INTO NEW.link, NEW.previous FROM (
        (SELECT a.link, a.hash FROM graph_migrator.hop_attempts a
            WHERE a.graph_id = NEW.graph_id AND a.link IS NOT NULL ORDER BY a.link DESC LIMIT 1)
        UNION ALL
        (SELECT l.last_link, l.hash FROM graph_migrator.archived_links l
            WHERE l.graph_id = NEW.graph_id ORDER BY l.last_link DESC LIMIT 1)) x
        ORDER BY x.link DESC LIMIT 1;
    NEW.link := coalesce(NEW.link, 0) + 1;
    NEW.hash := NULL;  -- and so it is not in the text
    IF current_setting('timezone') = 'UTC' AND current_setting('bytea_output') = 'hex'
       AND current_setting('extra_float_digits')::integer > 0 THEN
        NEW.hash := sha256(convert_to(jsonb_strip_nulls(to_jsonb(NEW))::text, 'UTF8'));
    ELSE
        NEW.hash := graph_migrator.attempt_hash(NEW);
    END IF;
    RETURN NEW;
END $$;

-- Rows that finished before the chain existed are linked in the order in which they began.
ALTER TABLE hop_attempts DISABLE TRIGGER hop_attempts_finish_once;
CREATE TRIGGER hop_attempts_link BEFORE UPDATE ON hop_attempts FOR EACH ROW EXECUTE FUNCTION link_attempt();
DO $$
DECLARE
    finished bigint;
BEGIN
    FOR finished IN SELECT a.id FROM hop_attempts a WHERE a.status <> 'running' ORDER BY a.id LOOP
        UPDATE hop_attempts SET link = NULL WHERE id = finished;
    END LOOP;
END $$;
DROP TRIGGER hop_attempts_link ON hop_attempts;
ALTER TABLE hop_attempts ENABLE TRIGGER hop_attempts_finish_once;

ALTER TABLE hop_attempts ADD CONSTRAINT hop_attempts_finished_is_linked
    CHECK ((status = 'running') = (hash IS NULL) AND (hash IS NULL) = (link IS NULL));
CREATE TRIGGER hop_attempts_link BEFORE UPDATE ON hop_attempts
    FOR EACH ROW WHEN (OLD.status = 'running' AND NEW.status <> 'running') EXECUTE FUNCTION link_attempt();
CREATE TRIGGER hop_attempts_link_finished BEFORE INSERT ON hop_attempts
    FOR EACH ROW WHEN (NEW.status <> 'running') EXECUTE FUNCTION link_attempt();

-- ── content digests ────────────────────────────────────────────────────────────────────────────────

-- The digest of a graph's nodes and edges: how many rows, and the sums modulo 2^64 of the first and the second eight bytes of
-- each row's SHA-256. So the order does not matter, and the digests of two halves add up.
CREATE FUNCTION graph_digest(p_graph uuid) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = graph_migrator, pg_temp AS $$
    SELECT concat_ws(':', count(h.high), mod(mod(coalesce(sum(h.high), 0), m) + m, m), mod(mod(coalesce(sum(h.low), 0), m) + m, m))
    FROM (SELECT 18446744073709551616::numeric) modulus (m) LEFT JOIN (
        SELECT ('x' || substr(d.hex, 1, 16))::bit(64)::bigint AS high, ('x' || substr(d.hex, 17, 16))::bit(64)::bigint AS low
        FROM (SELECT encode(sha256(convert_to(jsonb_build_array('node', n.id, n.label, n.properties)::text, 'UTF8')), 'hex')
              FROM nodes n WHERE n.graph_id = p_graph
              UNION ALL
              SELECT encode(sha256(convert_to(jsonb_build_array('edge', e.id, e.source, e.target, e.type, e.properties)::text,
                                              'UTF8')), 'hex')
              FROM edges e WHERE e.graph_id = p_graph) d (hex)) h ON true
    GROUP BY m
$$;

-- The digest of the data before a hop. p_resumed: an earlier attempt has committed batches of it, and has the digest.
CREATE FUNCTION digest_before(p_attempt bigint, p_graph uuid, p_to integer, p_resumed boolean) RETURNS text
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    IF NOT p_resumed THEN
        RETURN graph_digest(p_graph);
    END IF;
    RETURN (SELECT a.digest_before FROM hop_attempts a
            WHERE a.graph_id = p_graph AND a.id < p_attempt AND a.to_version = p_to AND a.digest_before IS NOT NULL
            ORDER BY a.id DESC LIMIT 1);
END $$;

-- Records digests with the attempt; NULL leaves what is there.
CREATE FUNCTION record_digests(p_attempt bigint, p_before text, p_after text) RETURNS void
LANGUAGE sql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
    UPDATE hop_attempts SET digest_before = coalesce(p_before, digest_before), digest_after = coalesce(p_after, digest_after)
        WHERE id = p_attempt AND status = 'running'
$$;

-- ── traces ─────────────────────────────────────────────────────────────────────────────────────────

-- The OpenTelemetry context in which a migration began, for what recovery sends. Only where tracing is on; no foreign key:
-- nothing depends on it.
CREATE TABLE traces (
    migration_id uuid PRIMARY KEY,
    context      jsonb NOT NULL
);

-- ── baseline and repair ────────────────────────────────────────────────────────────────────────────

ALTER TABLE requests DROP CONSTRAINT requests_verb_is_known;
ALTER TABLE requests ADD CONSTRAINT requests_verb_is_known
    CHECK (verb IN ('migrate', 'retry', 'cancel', 'pause', 'resume', 'release', 'lock', 'unlock',
        'repair', 'baseline', 'replace'));

-- Records something that was done to a graph or a table outside of a migration, with its outcome.
CREATE FUNCTION record_done(p_verb text, p_graph uuid, p_target integer, p_migration uuid, p_outcome jsonb, p_by text)
RETURNS void LANGUAGE sql SET search_path = graph_migrator, pg_temp AS $$
    INSERT INTO requests (task_id, verb, graph_id, target, migration_id, outcome, requested_by, answered_at)
        VALUES (p_verb || '-' || gen_random_uuid(), p_verb, p_graph, p_target, p_migration, p_outcome, p_by,
                clock_timestamp())
$$;

-- Moves a graph's version without a hop: its data was migrated by other means. It is a migration without a plan, whose one
-- attempt was skipped: history, proof chain and the audit's account of versions know it. The caller holds the graph's
-- lock, and dates the change after the commit.
CREATE FUNCTION baseline(p_migration uuid, p_graph uuid, p_graph_type text, p_from integer, p_to integer, p_worker text,
    p_by text, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO migrations (id, graph_id, graph_type, from_version, to_version, status, plan, requested_by, reason, deadline)
        VALUES (p_migration, p_graph, p_graph_type, p_from, p_to, 'queued', '[]', p_by, p_reason, clock_timestamp());
    PERFORM set_config('graph_migrator.executor', p_migration::text, true);
    UPDATE graphs SET migration_id = p_migration
        WHERE id = p_graph AND version = p_from AND migration_id IS NULL AND partially_migrated IS NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'graph % is not free at version %', p_graph, p_from USING ERRCODE = 'GM001';
    END IF;
    UPDATE migrations SET status = 'running', started_at = clock_timestamp() WHERE id = p_migration;
    INSERT INTO hop_attempts (migration_id, graph_id, from_version, to_version, hop_name, fingerprint, attempt, dispatch, worker)
        VALUES (p_migration, p_graph, p_from, p_to, 'baseline', '', 1, 1, p_worker);
    UPDATE hop_attempts SET status = 'skipped', finished_at = clock_timestamp() WHERE migration_id = p_migration;
    UPDATE graphs SET version = p_to, migration_id = NULL, updated_at = clock_timestamp(), changed_at = NULL
        WHERE id = p_graph;
    UPDATE migrations SET status = 'succeeded', finished_at = clock_timestamp() WHERE id = p_migration;
    PERFORM record_done('baseline', p_graph, p_to, p_migration,
                        jsonb_build_object('from_version', p_from, 'to_version', p_to, 'reason', p_reason), p_by);
    PERFORM set_config('graph_migrator.executor', '', true);
END $$;

-- Whether a graph is claimed by a migration that will never release it, and all its rows are of one version.
CREATE FUNCTION is_orphaned(g graphs, m migrations) RETURNS boolean LANGUAGE sql STABLE
SET search_path = graph_migrator, pg_temp AS $$
    SELECT g.migration_id = m.id AND (m.graph_id <> g.id OR m.status IN ('succeeded', 'cancelled', 'released')
           AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.migration_id = m.id))
$$;

-- Clears such a claim; NULL if there is none (any more).
CREATE FUNCTION mend_claim(p_graph uuid, p_by text) RETURNS uuid
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    owner uuid;
BEGIN
    IF NOT pg_try_advisory_xact_lock(lock_key(p_graph)) THEN
        RAISE EXCEPTION 'the lock of graph % is held', p_graph USING ERRCODE = 'lock_not_available';
    END IF;
    SELECT m.id INTO owner FROM graphs g JOIN migrations m ON m.id = g.migration_id
        WHERE g.id = p_graph AND is_orphaned(g, m) FOR UPDATE OF g;
    IF owner IS NOT NULL THEN
        PERFORM release_claim(owner, p_graph);
        PERFORM record_done('repair', p_graph, NULL, NULL, jsonb_build_object('check', 'claims', 'cleared', owner), p_by);
    END IF;
    RETURN owner;
END $$;

-- Checkpoints of migrations that will not continue, by graph. A graph that was released partially migrated keeps its
-- checkpoint.
CREATE FUNCTION ownerless_checkpoints() RETURNS TABLE (migration_id uuid, to_version integer, graph_id uuid, graph text)
LANGUAGE sql STABLE SET search_path = graph_migrator, pg_temp AS $$
    SELECT c.migration_id, c.to_version, m.graph_id, coalesce(g.slug, m.graph_id::text)
    FROM checkpoints c JOIN migrations m ON m.id = c.migration_id LEFT JOIN graphs g ON g.id = m.graph_id
    WHERE m.status IN ('succeeded', 'cancelled')
       OR m.status = 'released' AND (g.partially_migrated ->> 'migration_id') IS DISTINCT FROM m.id::text
$$;

-- Deletes those of one graph; returns how many.
CREATE FUNCTION mend_checkpoints(p_graph uuid, p_by text) RETURNS integer
LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
DECLARE
    deleted jsonb;
BEGIN
    WITH gone AS (
        DELETE FROM checkpoints c USING ownerless_checkpoints() o
        WHERE o.graph_id = p_graph AND c.migration_id = o.migration_id AND c.to_version = o.to_version
        RETURNING jsonb_build_object('migration_id', c.migration_id, 'to_version', c.to_version, 'cursor', c.cursor,
                                     'done', c.done) AS row)
    SELECT coalesce(jsonb_agg(row), '[]') INTO deleted FROM gone;
    IF deleted <> '[]' THEN
        PERFORM record_done('repair', p_graph, NULL, NULL,
                            jsonb_build_object('check', 'checkpoints', 'deleted', deleted), p_by);
    END IF;
    RETURN jsonb_array_length(deleted);
END $$;

-- Restores the triggers of the table of graphs, as revision 0003 made them.
CREATE FUNCTION guard_graphs_table() RETURNS void LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    CREATE OR REPLACE TRIGGER graph_migrator_guard BEFORE INSERT OR UPDATE OR DELETE ON graphs
        FOR EACH ROW EXECUTE FUNCTION guard_graphs();
    CREATE OR REPLACE TRIGGER graph_migrator_guard_truncate BEFORE TRUNCATE ON graphs
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncate();
    ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard;
    ALTER TABLE graphs ENABLE ALWAYS TRIGGER graph_migrator_guard_truncate;
END $$;
