-- The tables that every database of the worker has. The projections add theirs.
-- Texts compare by their bytes, as in Python and in SQLite.
-- Times are UTC text of fixed width (2026-04-27T10:39:03.120000Z), so text order is time order.

-- One row per event that has messages. Whoever adds to a stream locks its row first.
CREATE TABLE streams (
    event_id      text COLLATE "C" NOT NULL PRIMARY KEY,
    messages      bigint NOT NULL DEFAULT 0,  -- how many the log holds
    head_sequence bigint,                     -- the position of the last one in the stream
    head_at       text COLLATE "C",
    head_id       text COLLATE "C"
) WITH (fillfactor = 70);  -- each batch writes its rows twice; there is room for it on their pages

-- Every accepted message, kept forever.
CREATE TABLE log (
    event_id    text COLLATE "C" NOT NULL,
    id          text COLLATE "C" NOT NULL,  -- the message's identity, unique within its stream
    sequence    bigint NOT NULL,            -- position in the stream: (sequence, occurred_at, id)
    occurred_at text COLLATE "C" NOT NULL,
    kind        text COLLATE "C" NOT NULL,
    is_late     bigint NOT NULL,            -- 1: arrived after a message that follows it in the stream
    appended_at text COLLATE "C" NOT NULL,  -- the worker's clock, for people; no projection reads it
    body        text COLLATE "C" NOT NULL,  -- the whole message as it was published
    PRIMARY KEY (event_id, id)
);

-- The log as people query it, as in SQLite.
CREATE VIEW messages AS
SELECT event_id, id, sequence, occurred_at, kind, is_late, appended_at, body FROM log;

-- The version of each projection that folded the rows. Whoever replaces them locks this table.
CREATE TABLE projections (
    table_name text COLLATE "C" NOT NULL PRIMARY KEY,
    version    bigint NOT NULL
);

-- The kinds of the messages in the log: a release that does not know one of them must not fold it.
CREATE TABLE kinds (
    kind text COLLATE "C" NOT NULL PRIMARY KEY
);

-- The identity of this database, in one row.
CREATE TABLE store (
    id             text COLLATE "C" NOT NULL,  -- random; the broker's queues are bound to it
    schema_version bigint NOT NULL,            -- the version of these tables
    partitions     bigint                      -- how many queues the messages are spread over
);

-- What workers say about the partitions that they consume, for people; nothing depends on it.
CREATE TABLE consumption (
    partition   bigint NOT NULL PRIMARY KEY,
    worker      text COLLATE "C" NOT NULL,
    received_at timestamptz NOT NULL,  -- when it last received a message of the partition
    unsettled   bigint NOT NULL,       -- how many of them it has and has not settled
    oldest_at   timestamptz,           -- the publisher's time of the oldest of those
    reported_at timestamptz NOT NULL
);

-- Empty except while the worker proves that the database can commit.
CREATE TABLE filler (
    content bytea NOT NULL
);
