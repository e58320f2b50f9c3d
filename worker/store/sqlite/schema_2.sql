-- The additions in version 2 of the schema.
BEGIN IMMEDIATE;

-- The identity of this file and its progress, in one row.
CREATE TABLE file (
    id      TEXT NOT NULL,    -- random, chosen when the file is made; the broker's queue is bound to it
    commits INTEGER NOT NULL  -- transactions that appended to the log; smaller after the loss of a WAL
);
INSERT INTO file (id, commits) VALUES (lower(hex(randomblob(16))), 0);

-- The kinds of the messages in the log: a release that does not know one of them must not fold it.
CREATE TABLE kinds (
    kind TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;
INSERT INTO kinds SELECT DISTINCT kind FROM log;

-- Empty except while the worker proves that the disk has room for a message.
CREATE TABLE filler (
    content BLOB NOT NULL
);

PRAGMA user_version = 2;
COMMIT;
