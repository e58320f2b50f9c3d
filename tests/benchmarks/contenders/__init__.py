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
}
COMPARED = (WORKER, RAW_SOCKET, RAW_AIORMQ, AIO_PIKA, FASTSTREAM, HANDWRITTEN, RAW_SQLITE)
