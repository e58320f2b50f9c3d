"""A worker whose handler of one kind always fails: `python -m tests.broken run`.

This is what a bad deployment looks like.
"""

from worker.cli import main
from worker.messages import Message, Payload
from worker.projections import load
from worker.store.transaction import Transaction


async def broken(tx: Transaction, message: Message[Payload]) -> None:
    raise NotImplementedError("a bad deployment")


if __name__ == "__main__":
    load().handlers["event_started"] = broken
    main()
