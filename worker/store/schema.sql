-- The tables that every database of the worker has; schema_2.sql adds to them, and so does each
-- projection.
-- Times are UTC text of fixed width (2026-04-27T10:39:03.120000Z), so text order is time order.
BEGIN IMMEDIATE;

-- Every stream has a number, in the order of appearance: what is written together lies together.
CREATE TABLE streams (
    number   INTEGER NOT NULL PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE
);

-- Every accepted message, for good. Clustered by stream: a duplicate is found, and a stream is
-- read, within a page or two, and no index on random ids grows with the log.
CREATE TABLE log (
    stream      INTEGER NOT NULL REFERENCES streams (number),
    id          TEXT NOT NULL,     -- the message's identity, unique within its stream
    sequence    INTEGER NOT NULL,  -- position in the stream: (sequence, occurred_at, id)
    occurred_at TEXT NOT NULL,
    kind        TEXT NOT NULL,
    is_late     INTEGER NOT NULL,  -- 1: arrived after a message that comes after it in the stream
    appended_at TEXT NOT NULL,     -- the worker's clock, for people; no projection reads it
    body        TEXT NOT NULL,     -- the whole message as it was published
    PRIMARY KEY (stream, id)
) WITHOUT ROWID;

-- The log as people ask it.
CREATE VIEW messages AS
SELECT event_id, id, sequence, occurred_at, kind, is_late, appended_at, body
FROM streams JOIN log ON log.stream = streams.number;

-- By which version of each projection the rows were folded.
CREATE TABLE projections (
    table_name TEXT NOT NULL PRIMARY KEY,
    version    INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA application_id = 0x70726a77;  -- "prjw": tells our files from others
PRAGMA user_version = 1;             -- the version of this schema
COMMIT;
