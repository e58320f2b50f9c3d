#!/bin/sh
# Runs once, when the database's volume is empty. The worker's role owns its two schemas and nothing
# else; the reader's role can read what the worker shows, and write nothing.
set -eu

psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
    --set=worker_password="$WORKER_PASSWORD" --set=reader_password="$READER_PASSWORD" <<'SQL'
CREATE ROLE worker LOGIN PASSWORD :'worker_password';
CREATE SCHEMA projection AUTHORIZATION worker;
CREATE SCHEMA projection_rebuild AUTHORIZATION worker;

CREATE ROLE reader LOGIN PASSWORD :'reader_password';
ALTER ROLE reader SET default_transaction_read_only = on;
GRANT USAGE ON SCHEMA projection TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE worker IN SCHEMA projection GRANT SELECT ON TABLES TO reader;
SQL
