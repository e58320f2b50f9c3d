-- The tables that every database of the worker has. schema_2.sql and the projections add more.
-- Times are UTC text of fixed width (2026-04-27T10:39:03.120000Z), so text order is time order.
BEGIN IMMEDIATE;

-- Streams are numbered in order of appearance, so rows that are written together are stored together.
CREATE TABLE streams (
    number   INTEGER NOT NULL PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE
);

-- Every accepted message, kept forever. Clustered by stream: finding a duplicate or reading a stream
-- takes a page or two, and there is no index on random ids that grows with the log.
CREATE TABLE log (
    stream      INTEGER NOT NULL REFERENCES streams (number),
    id          TEXT NOT NULL,     -- the message's identity, unique within its stream
    sequence    INTEGER NOT NULL,  -- position in the stream: (sequence, occurred_at, id)
    occurred_at TEXT NOT NULL,
    kind        TEXT NOT NULL,
    is_late     INTEGER NOT NULL,  -- 1: arrived after a message that follows it in the stream
    appended_at TEXT NOT NULL,     -- the worker's clock, for people; no projection reads it
    body        TEXT NOT NULL,     -- the whole message as it was published
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;

-- The log as people query it.
CREATE VIEW messages AS
SELECT event_id, id, sequence, occurred_at, kind, is_late, appended_at, body
FROM streams JOIN log ON log.stream = streams.number;

-- The version of each projection that folded the rows.
CREATE TABLE projections (
    table_name TEXT NOT NULL PRIMARY KEY,
    version    INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA application_id = 0x70726a77;  -- "prjw": identifies our files
PRAGMA user_version = 1;             -- the version of this schema
COMMIT;
