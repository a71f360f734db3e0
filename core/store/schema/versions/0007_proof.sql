-- Proof that the audit is as it was written: docs/decisions/0013-proof-chain.md.

ALTER TABLE hop_attempts ADD link integer, ADD previous bytea, ADD hash bytea,
    ADD digest_before text, ADD digest_after text;
COMMENT ON COLUMN hop_attempts.link IS 'Its number among the finished attempts of its graph, from 1.';
COMMENT ON COLUMN hop_attempts.previous IS 'The hash of the link before it; NULL at the first one.';
COMMENT ON COLUMN hop_attempts.hash IS 'SHA-256 of the row as canonical JSON without this column; see link_attempt.';
COMMENT ON COLUMN hop_attempts.digest_before IS 'Digest of nodes and edges before the hop; where its type asks for it.';

-- A chain never forks.
CREATE UNIQUE INDEX hop_attempts_chain ON hop_attempts (graph_id, link) WHERE link IS NOT NULL;

-- Neighbouring links that an archive holds. Written by remove_archived alone.
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

-- Links an attempt that finishes to the chain of its graph. The caller holds the graph's lock. Executors' sessions have
-- the settings of the text already; setting them for a call costs more than all the rest.
CREATE FUNCTION link_attempt() RETURNS trigger LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
DECLARE
    archived archived_links;
BEGIN
    SELECT a.link, a.hash INTO NEW.link, NEW.previous FROM hop_attempts a
        WHERE a.graph_id = NEW.graph_id AND a.link IS NOT NULL ORDER BY a.link DESC LIMIT 1;
    SELECT * INTO archived FROM archived_links l
        WHERE l.graph_id = NEW.graph_id ORDER BY l.last_link DESC LIMIT 1;
    IF archived.last_link > coalesce(NEW.link, 0) THEN
        NEW.link := archived.last_link;
        NEW.previous := archived.hash;
    END IF;
    NEW.link := coalesce(NEW.link, 0) + 1;
    IF current_setting('timezone') = 'UTC' AND current_setting('bytea_output') = 'hex'
       AND current_setting('extra_float_digits')::integer > 0 THEN
        NEW.hash := sha256(convert_to((jsonb_strip_nulls(to_jsonb(NEW) - 'hash'))::text, 'UTF8'));
    ELSE
        NEW.hash := attempt_hash(NEW);
    END IF;
    RETURN NEW;
END $$;

-- Rows that finished before there was a chain are linked in the order in which they began.
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
    FROM (SELECT 2::numeric ^ 64) modulus (m) LEFT JOIN (
        SELECT ('x' || substr(d.hex, 1, 16))::bit(64)::bigint AS high, ('x' || substr(d.hex, 17, 16))::bit(64)::bigint AS low
        FROM (SELECT encode(sha256(convert_to(jsonb_build_array('node', n.id, n.label, n.properties)::text, 'UTF8')), 'hex')
              FROM nodes n WHERE n.graph_id = p_graph
              UNION ALL
              SELECT encode(sha256(convert_to(jsonb_build_array('edge', e.id, e.source, e.target, e.type, e.properties)::text,
                                              'UTF8')), 'hex')
              FROM edges e WHERE e.graph_id = p_graph) d (hex)) h ON true
    GROUP BY m
$$;
