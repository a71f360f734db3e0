-- The tables and what Postgres itself holds about them. The words are those of docs/glossary.md.

CREATE TABLE graphs (
    id              uuid PRIMARY KEY,
    slug            text NOT NULL UNIQUE,
    graph_type      text NOT NULL,
    version         integer NOT NULL,
    owner_read_only boolean NOT NULL DEFAULT false,
    migration_id    uuid,
    partially_migrated       jsonb,
    undo_id         bigint,
    config          jsonb NOT NULL DEFAULT '{}',
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    changed_at      timestamptz DEFAULT now(),
    CONSTRAINT graphs_version_is_positive CHECK (version > 0),
    -- A slug is never mistaken for a UUID and needs no quoting in a shell.
    -- Checked at every change of a row: the length apart, since `{0,99}` would take 20 times as long as `*`.
    CONSTRAINT graphs_slug_is_plain CHECK (slug ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' AND length(slug) <= 100
        AND slug !~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'),
    -- Only a graph that no migration owns can have been force-released.
    CONSTRAINT graphs_partially_migrated_is_unclaimed CHECK (partially_migrated IS NULL OR migration_id IS NULL)
);
COMMENT ON COLUMN graphs.migration_id IS 'The claim: the migration that owns this graph.';
COMMENT ON COLUMN graphs.changed_at IS
    'When the version last changed. NULL from the last commit of a migration until it is stamped after that commit.';
COMMENT ON COLUMN graphs.undo_id IS 'The latest swap of a rebuild hop whose old values were kept (revision 0010).';
-- Partial on purpose: a full unique index would make the claim a key update and block foreign-key checks.
CREATE UNIQUE INDEX graphs_one_claim_per_migration ON graphs (migration_id) WHERE migration_id IS NOT NULL;
CREATE INDEX graphs_to_stamp ON graphs (id) WHERE changed_at IS NULL;
CREATE INDEX graphs_by_version ON graphs (graph_type, version, slug);
CREATE INDEX graphs_by_type ON graphs (graph_type, slug);
CREATE INDEX graphs_of_owners ON graphs (slug) WHERE owner_read_only;
CREATE INDEX graphs_partially_migrated ON graphs (slug) WHERE partially_migrated IS NOT NULL;

CREATE TABLE nodes (
    graph_id   uuid NOT NULL REFERENCES graphs (id) ON DELETE CASCADE,
    id         text NOT NULL,
    label      text NOT NULL,
    properties jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (graph_id, id),
    CONSTRAINT nodes_properties_are_an_object CHECK (jsonb_typeof(properties) = 'object')
);
CREATE INDEX nodes_by_label ON nodes (graph_id, label, id);

CREATE TABLE edges (
    graph_id   uuid NOT NULL REFERENCES graphs (id) ON DELETE CASCADE,
    id         text NOT NULL,
    source     text NOT NULL,
    target     text NOT NULL,
    type       text NOT NULL,
    properties jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (graph_id, id),
    -- Deferrable: a hop may replace a node in two statements.
    CONSTRAINT edges_source_is_a_node FOREIGN KEY (graph_id, source) REFERENCES nodes (graph_id, id)
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT edges_target_is_a_node FOREIGN KEY (graph_id, target) REFERENCES nodes (graph_id, id)
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT edges_properties_are_an_object CHECK (jsonb_typeof(properties) = 'object')
);
CREATE INDEX edges_by_type ON edges (graph_id, type, id);
CREATE INDEX edges_by_source ON edges (graph_id, source);
CREATE INDEX edges_by_target ON edges (graph_id, target);

-- graph_id has no foreign key: audit rows outlive their graph.
CREATE TABLE migrations (
    id              uuid PRIMARY KEY,
    graph_id        uuid NOT NULL,
    graph_type      text NOT NULL,
    from_version    integer NOT NULL,
    to_version      integer NOT NULL,
    status          text NOT NULL,
    dispatch        integer NOT NULL DEFAULT 1,
    task_id         text,
    plan            jsonb NOT NULL,
    requested_by    text,
    reason          text,
    error_type      text,
    error_message   text,
    error_args      jsonb,
    deadline        timestamptz NOT NULL,
    redeliveries           integer NOT NULL DEFAULT 0,
    code_mismatches integer NOT NULL DEFAULT 0,
    code_mismatch_since timestamptz,
    retries_reset_after_id    bigint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    CONSTRAINT migrations_status_is_known CHECK (status IN ('queued', 'running', 'pausing', 'paused',
        'cancelling', 'cancelled', 'failed', 'succeeded', 'released')),
    CONSTRAINT migrations_move CHECK (from_version <> to_version),
    -- A failure says what failed. A migration that was cancelled or released after it keeps that error.
    CONSTRAINT migrations_failure_is_explained CHECK (status <> 'failed' OR error_type IS NOT NULL),
    CONSTRAINT migrations_end_is_dated CHECK (
        (status IN ('cancelled', 'failed', 'succeeded', 'released')) = (finished_at IS NOT NULL))
);
COMMENT ON COLUMN migrations.task_id IS 'The id of the latest migrate_graph call; the last task of every chain bears it.';
COMMENT ON COLUMN migrations.redeliveries IS 'How often recovery has redelivered since the last progress; the deadline backs off with it.';
COMMENT ON COLUMN migrations.retries_reset_after_id IS 'Attempts up to this id no longer count against the retry limits: they came before an operator''s retry.';
COMMENT ON COLUMN migrations.code_mismatch_since IS 'When a worker with other code first requeued its next hop.';
CREATE UNIQUE INDEX migrations_one_live_per_graph ON migrations (graph_id)
    WHERE status IN ('queued', 'running', 'pausing', 'paused', 'cancelling');
CREATE INDEX migrations_by_graph ON migrations (graph_id, created_at);
CREATE INDEX migrations_for_recovery ON migrations (deadline)
    WHERE status IN ('queued', 'running', 'pausing', 'cancelling');

-- Lists by state, and what recovery has to settle.
CREATE INDEX migrations_by_status ON migrations (status, graph_id)
    WHERE status IN ('queued', 'running', 'pausing', 'paused', 'cancelling', 'failed');

ALTER TABLE graphs ADD CONSTRAINT graphs_claim_is_a_migration
    FOREIGN KEY (migration_id) REFERENCES migrations (id);

CREATE TABLE hop_attempts (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    migration_id  uuid NOT NULL REFERENCES migrations (id),
    graph_id      uuid NOT NULL,
    from_version  integer NOT NULL,
    to_version    integer NOT NULL,
    hop_name      text NOT NULL,
    fingerprint   text NOT NULL,
    shard         integer,
    attempt       integer NOT NULL,
    dispatch      integer NOT NULL,
    status        text NOT NULL DEFAULT 'running',
    worker        text,
    pid           integer,
    task_id       text,
    rows_changed  bigint NOT NULL DEFAULT 0,
    done          bigint NOT NULL DEFAULT 0,
    total         bigint,
    batches       integer NOT NULL DEFAULT 0,
    rows_per_second double precision,
    progress_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    transient     boolean NOT NULL DEFAULT false,
    error_type    text,
    error_message text,
    error_rows    text,
    error_line    text,
    traceback     text,
    undid         uuid,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz,
    CONSTRAINT hop_attempts_status_is_known
        CHECK (status IN ('running', 'succeeded', 'skipped', 'failed', 'lost', 'stopped')),
    CONSTRAINT hop_attempts_end_is_dated CHECK ((status = 'running') = (finished_at IS NULL)),
    CONSTRAINT hop_attempts_failure_is_explained CHECK ((status = 'failed') = (error_type IS NOT NULL)),
    CONSTRAINT hop_attempts_number UNIQUE NULLS NOT DISTINCT (migration_id, to_version, shard, attempt)
);
COMMENT ON COLUMN hop_attempts.shard IS 'The shard that it processed; NULL for an attempt of the whole hop.';
COMMENT ON COLUMN hop_attempts.rows_per_second IS 'Rows processed by this attempt; the last half minute counts most.';
COMMENT ON COLUMN hop_attempts.undid IS 'The migration whose swap it took back, from the old values that were kept.';
COMMENT ON COLUMN hop_attempts.error_rows IS 'The row or the batch that the error is about. Contains ids only.';
COMMENT ON COLUMN hop_attempts.error_line IS 'The innermost line of the hop''s own code in the traceback.';
CREATE UNIQUE INDEX hop_attempts_one_running ON hop_attempts (migration_id, shard) NULLS NOT DISTINCT
    WHERE status = 'running';
CREATE UNIQUE INDEX hop_attempts_one_success ON hop_attempts (migration_id, to_version, shard) NULLS NOT DISTINCT
    WHERE status IN ('succeeded', 'skipped');
CREATE INDEX hop_attempts_by_graph ON hop_attempts (graph_id, id);
CREATE INDEX hop_attempts_lost ON hop_attempts (worker, pid) WHERE status = 'lost';

-- How executors were lost. Whoever saw the loss records it, sometimes after recovery has finished the attempt. A lost
-- attempt without a row here was seen by nobody: its whole worker is gone.
CREATE TABLE losses (
    attempt_id bigint PRIMARY KEY REFERENCES hop_attempts (id) ON DELETE CASCADE,
    because    text NOT NULL,
    how        text NOT NULL,
    reported_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT losses_because_is_known CHECK (because IN ('process', 'session', 'operator'))
);
COMMENT ON COLUMN losses.because IS
    'process: its process died and the worker lived on. session: its session was ended. operator: an operator ended it.';
COMMENT ON COLUMN losses.how IS 'The signal or exit code; the operator.';

CREATE TABLE checkpoints (
    migration_id uuid NOT NULL REFERENCES migrations (id),
    to_version   integer NOT NULL,
    cursor       jsonb NOT NULL,
    done         bigint NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (migration_id, to_version)
);

CREATE TABLE requests (
    task_id      text PRIMARY KEY,
    verb         text NOT NULL,
    graph_id     uuid,
    target       integer,
    migration_id uuid REFERENCES migrations (id),
    outcome      jsonb,
    requested_by text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    answered_at  timestamptz,
    answer_failures integer NOT NULL DEFAULT 0,
    next_answer_at timestamptz,
    unanswered_because text,
    CONSTRAINT requests_verb_is_known
        CHECK (verb IN ('migrate', 'retry', 'cancel', 'pause', 'resume', 'release', 'lock', 'unlock',
            'repair', 'replace'))
);
COMMENT ON COLUMN requests.settled_at IS 'When the migration of a migrate request ended; NULL while it is live. Set by a trigger on migrations.';
COMMENT ON COLUMN requests.answered_at IS 'When the caller had its result, or when recovery stopped trying; see unanswered_because.';
COMMENT ON COLUMN requests.next_answer_at IS 'After a failure to store the result: the time of the next try.';
COMMENT ON COLUMN requests.unanswered_because IS 'Why the latest try to store the result failed. NULL if no try failed.';
-- Requests with an outcome and no answer, in the order in which they are due. Requests of waiting migrations, perhaps
-- a million, are not in this index.
CREATE INDEX requests_to_answer ON requests (coalesce(next_answer_at, settled_at, created_at))
    WHERE answered_at IS NULL AND (settled_at IS NOT NULL OR outcome IS NOT NULL);
CREATE INDEX requests_by_migration ON requests (migration_id);
CREATE INDEX requests_refused ON requests (graph_id, created_at) WHERE migration_id IS NULL AND outcome ? 'error';
CREATE INDEX requests_of_data ON requests (graph_id, created_at) WHERE verb IN ('repair', 'replace');

-- Calls of migrate_graph that have no row in requests yet. They are known because a command sent them, or because a
-- worker could not carry them out and requeued them. The sweep removes calls that have begun or expired.
CREATE TABLE waiting_calls (
    task_id      text PRIMARY KEY,
    graph_id     uuid NOT NULL,
    target       integer,
    requested_by text,
    sent_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    tries        integer NOT NULL DEFAULT 0,
    refuse_after timestamptz,
    worker       text,
    because      text
);
COMMENT ON COLUMN waiting_calls.tries IS 'How often a worker has taken the message and requeued it.';
COMMENT ON COLUMN waiting_calls.refuse_after IS 'When workers stop requeueing it and refuse it. NULL if no worker has requeued it.';
COMMENT ON COLUMN waiting_calls.because IS 'Why the worker in column worker could not carry out the call.';
CREATE INDEX waiting_calls_by_graph ON waiting_calls (graph_id);

-- What monitoring reads. The sweep counts each finished attempt once, so a scrape need not count them again. hop_totals
-- covers the attempts up to metrics_state.counted_up_to, by outcome, in the buckets of core/inspection/metrics.py.
CREATE TABLE hop_totals (
    graph_type text NOT NULL,
    hop_name   text NOT NULL,
    status     text NOT NULL,
    buckets    bigint[] NOT NULL,
    seconds    double precision NOT NULL,
    rows_changed bigint NOT NULL,
    PRIMARY KEY (graph_type, hop_name, status)
);
CREATE TABLE metrics_state (
    only_row       boolean PRIMARY KEY DEFAULT true,
    counted_up_to  bigint NOT NULL DEFAULT 0,
    recovery_buckets bigint[] NOT NULL DEFAULT '{}',
    recovery_seconds double precision NOT NULL DEFAULT 0,
    counts         jsonb,
    counted_at     timestamptz,
    count_took     double precision NOT NULL DEFAULT 0,
    CONSTRAINT metrics_state_has_one_row CHECK (only_row)
);
COMMENT ON COLUMN metrics_state.counts IS 'Migrations by type and status, graphs by type and version. Recounted from time to time.';
COMMENT ON COLUMN metrics_state.count_took IS 'Seconds that the last count took. While this is short, a scrape counts for itself.';
INSERT INTO metrics_state DEFAULT VALUES;

-- The process that sweeps, and the time until which the others do not try. One row.
CREATE TABLE sweep_lease (
    only_row boolean PRIMARY KEY DEFAULT true,
    holder   text,
    ends_at  timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT sweep_lease_has_one_row CHECK (only_row)
);
INSERT INTO sweep_lease DEFAULT VALUES;

-- Archives of old audit rows. Only remove_archived (revision 0004) writes here.
CREATE TABLE archives (
    id           uuid PRIMARY KEY,
    location     text NOT NULL,
    before       timestamptz NOT NULL,
    manifest     jsonb NOT NULL,
    migrations   bigint NOT NULL DEFAULT 0,
    attempts     bigint NOT NULL DEFAULT 0,
    requests     bigint NOT NULL DEFAULT 0,
    archived_by  text NOT NULL DEFAULT session_user,
    archived_at  timestamptz NOT NULL DEFAULT now(),
    removing_xid text
);
COMMENT ON COLUMN archives.removing_xid IS 'The transaction that removes rows of this archive. Only this transaction can delete them.';
CREATE TABLE archived_graphs (
    graph_id   uuid NOT NULL,
    archive_id uuid NOT NULL REFERENCES archives (id),
    migrations bigint NOT NULL,
    PRIMARY KEY (graph_id, archive_id)
);

-- ── audit rows are immutable ──────────────────────────────────────────────────────────────────────

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = graph_migrator, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' AND EXISTS (SELECT FROM archives WHERE removing_xid = pg_current_xact_id()::text) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit rows in %.% are never %', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER hop_attempts_are_kept BEFORE DELETE ON hop_attempts
    FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER hop_attempts_finish_once BEFORE UPDATE ON hop_attempts
    FOR EACH ROW WHEN (OLD.status <> 'running') EXECUTE FUNCTION refuse_change('changed once finished');
CREATE TRIGGER hop_attempts_are_not_truncated BEFORE TRUNCATE ON hop_attempts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER losses_are_kept BEFORE DELETE ON losses
    FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER losses_do_not_change BEFORE UPDATE ON losses
    FOR EACH ROW EXECUTE FUNCTION refuse_change('changed');
CREATE TRIGGER losses_are_not_truncated BEFORE TRUNCATE ON losses
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('deleted');
CREATE TRIGGER migrations_are_kept BEFORE DELETE ON migrations
    FOR EACH ROW EXECUTE FUNCTION refuse_change('deleted');
-- `failed` is not an end: such a migration can be retried or released.
CREATE TRIGGER migrations_end_once BEFORE UPDATE ON migrations
    FOR EACH ROW WHEN (OLD.status IN ('cancelled', 'succeeded', 'released'))
    EXECUTE FUNCTION refuse_change('changed once ended');
-- A request is settled when its migration ends. If the migration is retried, the request is open again.
CREATE FUNCTION settle_requests() RETURNS trigger LANGUAGE plpgsql
SET search_path = graph_migrator, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE requests SET settled_at = NEW.finished_at WHERE migration_id = NEW.id AND verb = 'migrate';
    RETURN NULL;
END $$;
CREATE TRIGGER migrations_settle_their_requests AFTER UPDATE OF finished_at ON migrations
    FOR EACH ROW WHEN (OLD.finished_at IS DISTINCT FROM NEW.finished_at) EXECUTE FUNCTION settle_requests();
CREATE TRIGGER migrations_are_not_truncated BEFORE TRUNCATE ON migrations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change('deleted');

-- The edges of core/statuses.py; a test holds the two equal.
CREATE FUNCTION refuse_unknown_edge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status || ' ' || NEW.status NOT IN (
        'queued running', 'queued pausing', 'running pausing', 'pausing running', 'pausing paused',
        'paused running', 'queued cancelling', 'running cancelling', 'pausing cancelling',
        'paused cancelling', 'cancelling cancelled', 'cancelling failed', 'running succeeded',
        'pausing succeeded', 'cancelling succeeded', 'queued failed', 'running failed', 'pausing failed',
        'failed running', 'failed released', 'paused released', 'queued released', 'running released',
        'pausing released', 'cancelling released')
    THEN
        RAISE EXCEPTION 'migration % cannot go from % to %', OLD.id, OLD.status, NEW.status
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER migrations_follow_their_states BEFORE UPDATE OF status ON migrations
    FOR EACH ROW WHEN (OLD.status <> NEW.status) EXECUTE FUNCTION refuse_unknown_edge();
