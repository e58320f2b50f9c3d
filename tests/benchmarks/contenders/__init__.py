"""The contenders: each is a program in this folder, except for the worker itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that drains a queue, or writes the same data without a queue."""

    title: str
    module: str = ""
    """Empty for the worker, which does not know that it is measured."""
    needs_queue: bool = True
    keeps_rows: bool = False
    is_on_postgres: bool = False
    """Whether its rows are on PostgreSQL, and not in a file."""
    share: float = 1.0
    """The share of the messages: a slow contender gets only the first, to keep rounds short."""


WORKER = "worker"
RAW_SOCKET = "raw_socket"
RAW_AIORMQ = "raw_aiormq"
AIO_PIKA = "aio_pika_acks"
FASTSTREAM = "faststream_app"
HANDWRITTEN = "handwritten"
RAW_SQLITE = "raw_sqlite"
REBUILD = "rebuild"
WORKER_POSTGRES = "worker_postgres"
FASTSTREAM_POSTGRES = "faststream_postgres"
HANDWRITTEN_POSTGRES = "handwritten_postgres"
POOLED_POSTGRES = "pooled_postgres"

CONTENDERS = {
    WORKER: Contender("worker, as shipped", keeps_rows=True),
    RAW_SOCKET: Contender("raw socket, no work", RAW_SOCKET),
    RAW_AIORMQ: Contender("raw aiormq, no work", RAW_AIORMQ, share=0.5),
    AIO_PIKA: Contender("aio-pika, one ack per message, no work", AIO_PIKA, share=0.25),
    FASTSTREAM: Contender(
        "FastStream, one commit per message", FASTSTREAM, keeps_rows=True, share=0.05
    ),
    HANDWRITTEN: Contender(
        "hand-written, one commit per message", HANDWRITTEN, keeps_rows=True, share=0.05
    ),
    RAW_SQLITE: Contender("raw sqlite3, no broker", RAW_SQLITE, needs_queue=False, keeps_rows=True),
    REBUILD: Contender("rebuild", REBUILD, needs_queue=False, keeps_rows=True),
    WORKER_POSTGRES: Contender(
        "worker on PostgreSQL, as shipped", keeps_rows=True, is_on_postgres=True
    ),
    FASTSTREAM_POSTGRES: Contender(
        "FastStream and asyncpg, one commit per message",
        FASTSTREAM_POSTGRES,
        keeps_rows=True,
        is_on_postgres=True,
        share=0.05,
    ),
    HANDWRITTEN_POSTGRES: Contender(
        "aio-pika and asyncpg, one commit per message",
        HANDWRITTEN_POSTGRES,
        keeps_rows=True,
        is_on_postgres=True,
        share=0.05,
    ),
    POOLED_POSTGRES: Contender(
        "the same, 16 commits at a time",
        POOLED_POSTGRES,
        keeps_rows=True,
        is_on_postgres=True,
        share=0.1,
    ),
}
COMPARED = (WORKER, RAW_SOCKET, RAW_AIORMQ, AIO_PIKA, FASTSTREAM, HANDWRITTEN, RAW_SQLITE)
COMPARED_ON_POSTGRES = (
    WORKER_POSTGRES,
    WORKER,
    FASTSTREAM_POSTGRES,
    HANDWRITTEN_POSTGRES,
    POOLED_POSTGRES,
)
