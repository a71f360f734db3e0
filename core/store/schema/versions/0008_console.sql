-- The console: tokens and sessions (core/access), requests that were made to it, and the changes that its stream sends
-- (core/events/tail.py).

CREATE TABLE api_tokens (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    role       text NOT NULL,
    digest     text NOT NULL,
    created_by text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    revoked_by text,
    used_at    timestamptz,
    CONSTRAINT api_tokens_role_is_known CHECK (role IN ('viewer', 'operator'))
);
COMMENT ON COLUMN api_tokens.digest IS 'SHA-256 of the token, which has 256 random bits and is stored nowhere.';
CREATE UNIQUE INDEX api_tokens_by_digest ON api_tokens (digest);
-- A name stands for one token in `requested_by`.
CREATE UNIQUE INDEX api_tokens_one_of_a_name ON api_tokens (name) WHERE revoked_at IS NULL;

CREATE TABLE api_sessions (
    digest     text PRIMARY KEY,
    token_id   uuid NOT NULL REFERENCES api_tokens (id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX api_sessions_by_end ON api_sessions (expires_at);

-- Requests for rollouts and for many graphs at once: a repeated one gets the answer of the first.
CREATE TABLE api_requests (
    id           uuid PRIMARY KEY,
    verb         text NOT NULL,
    subject      text NOT NULL,
    requested_by text,
    outcome      jsonb,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX api_requests_by_time ON api_requests (created_at, id);
CREATE INDEX requests_by_time ON requests (created_at, task_id);
CREATE INDEX rollout_changes_by_time ON rollout_changes (at, id);

-- ── what changes, for whoever follows it ────────────────────────────────────────────────────────────

CREATE TABLE change_events (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    xid          bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    kind         text NOT NULL,
    graph_id     uuid,
    migration_id uuid,
    rollout_id   uuid,
    change       jsonb NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- One index, since migrations pay for it: readers and the removal of old ones go along it.
    PRIMARY KEY (xid, id),
    CONSTRAINT change_events_kind_is_known CHECK (kind IN ('migration', 'attempt', 'rollout'))
);
COMMENT ON COLUMN change_events.xid IS 'The transaction that made the change. Numbers are given out in another order than commits come in, so a reader asks for what its last snapshot did not see.';

-- Changes are recorded only while somebody follows them: each console renews this row from time to time. One row.
CREATE TABLE change_followers (
    only_row       boolean PRIMARY KEY DEFAULT true,
    followed_until timestamptz NOT NULL DEFAULT '-infinity',
    removed_up_to  bigint NOT NULL DEFAULT 0,
    CONSTRAINT change_followers_has_one_row CHECK (only_row)
);
COMMENT ON COLUMN change_followers.removed_up_to IS 'Changes of this transaction and older ones may be missing: not recorded, or removed.';
INSERT INTO change_followers DEFAULT VALUES;

CREATE FUNCTION follow_migration() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF (SELECT f.followed_until < clock_timestamp() FROM change_followers f) THEN
        RETURN NULL;
    END IF;
    INSERT INTO change_events (kind, graph_id, migration_id, change) VALUES ('migration', NEW.graph_id, NEW.id, jsonb_build_object(
        'status', NEW.status, 'from_version', NEW.from_version, 'to_version', NEW.to_version,
        'requested_by', NEW.requested_by, 'error_type', NEW.error_type, 'error_message', NEW.error_message));
    RETURN NULL;
END $$;
CREATE TRIGGER migrations_are_followed_from_the_start AFTER INSERT ON migrations
    FOR EACH ROW EXECUTE FUNCTION follow_migration();
CREATE TRIGGER migrations_are_followed AFTER UPDATE OF status ON migrations
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION follow_migration();

CREATE FUNCTION follow_attempt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF (SELECT f.followed_until < clock_timestamp() FROM change_followers f) THEN
        RETURN NULL;
    END IF;
    INSERT INTO change_events (kind, graph_id, migration_id, change) VALUES ('attempt', NEW.graph_id, NEW.migration_id, jsonb_build_object(
        'attempt_id', NEW.id, 'hop', NEW.hop_name, 'from_version', NEW.from_version, 'to_version', NEW.to_version,
        'shard', NEW.shard, 'attempt', NEW.attempt, 'status', NEW.status, 'worker', NEW.worker, 'done', NEW.done, 'total', NEW.total,
        'rows_per_second', NEW.rows_per_second, 'error_type', NEW.error_type, 'error_message', NEW.error_message));
    RETURN NULL;
END $$;
CREATE TRIGGER hop_attempts_are_followed_from_the_start AFTER INSERT ON hop_attempts
    FOR EACH ROW EXECUTE FUNCTION follow_attempt();
CREATE TRIGGER hop_attempts_are_followed AFTER UPDATE OF status, done ON hop_attempts
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.done IS DISTINCT FROM NEW.done)
    EXECUTE FUNCTION follow_attempt();

CREATE FUNCTION follow_rollout() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF (SELECT f.followed_until < clock_timestamp() FROM change_followers f) THEN
        RETURN NULL;
    END IF;
    INSERT INTO change_events (kind, rollout_id, change) VALUES ('rollout', NEW.id, jsonb_build_object(
        'status', NEW.status, 'stage', NEW.stage, 'graph_type', NEW.graph_type, 'to_version', NEW.to_version,
        'hold', NEW.hold->>'reason'));
    RETURN NULL;
END $$;
CREATE TRIGGER rollouts_are_followed_from_the_start AFTER INSERT ON rollouts
    FOR EACH ROW EXECUTE FUNCTION follow_rollout();
CREATE TRIGGER rollouts_are_followed AFTER UPDATE ON rollouts FOR EACH ROW
    WHEN ((OLD.status, OLD.stage, OLD.hold, OLD.progress_at) IS DISTINCT FROM (NEW.status, NEW.stage, NEW.hold, NEW.progress_at))
    EXECUTE FUNCTION follow_rollout();

-- A console follows changes for the next p_seconds. Removes changes that are older than p_keep seconds. Returns whether
-- changes were recorded until now; if not, transactions that are open now may have made some without a record.
CREATE FUNCTION follow_changes(p_seconds double precision, p_keep double precision) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = graph_migrator, pg_temp AS $$
DECLARE
    was boolean;
    removed bigint;
BEGIN
    SELECT f.followed_until >= clock_timestamp() INTO was FROM change_followers f FOR UPDATE;
    WITH oldest AS (SELECT c.xid, c.id, c.at FROM change_events c ORDER BY c.xid, c.id LIMIT 50000),
         gone AS (DELETE FROM change_events e USING oldest o
                  WHERE o.xid = e.xid AND o.id = e.id AND o.at < clock_timestamp() - make_interval(secs => p_keep) RETURNING e.xid)
        SELECT max(g.xid) INTO removed FROM gone g;
    UPDATE change_followers f SET followed_until = clock_timestamp() + make_interval(secs => p_seconds),
        removed_up_to = greatest(f.removed_up_to, removed,
            CASE WHEN NOT was THEN pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1 END);
    RETURN was;
END $$;
