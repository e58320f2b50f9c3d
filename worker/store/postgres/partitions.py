"""What a database on a server knows of partitions: their number, and who consumes them."""

from collections.abc import Sequence

from worker.store.consumption import Consumption
from worker.store.postgres.session import Session

PARTITIONS = "SELECT partitions FROM store"
# Of several workers that start at the same moment, the first one decides.
AGREE = "UPDATE store SET partitions = coalesce(partitions, $1) RETURNING partitions"
SET = "UPDATE store SET partitions = $1"
# In the order of the key, so that no two workers wait for each other. A worker that has received
# nothing for longer than another one says nothing.
REPORT = """
    INSERT INTO consumption (partition, worker, received_at, unsettled, oldest_at, reported_at)
    SELECT partition, worker, now() - make_interval(secs => received), unsettled,
        now() - make_interval(secs => oldest), now()
    FROM unnest($1::bigint[], $2::text[], $3::float8[], $4::bigint[], $5::float8[])
        AS said (partition, worker, received, unsettled, oldest)
    ORDER BY partition
    ON CONFLICT (partition) DO UPDATE SET
        worker = excluded.worker, received_at = excluded.received_at,
        unsettled = excluded.unsettled, oldest_at = excluded.oldest_at,
        reported_at = excluded.reported_at
    WHERE consumption.worker = excluded.worker
        OR consumption.received_at <= excluded.received_at
"""
CONSUMPTION = """
    SELECT partition, worker, extract(epoch FROM reported_at - received_at)::float8, unsettled,
        extract(epoch FROM reported_at - oldest_at)::float8,
        extract(epoch FROM now() - reported_at)::float8
    FROM consumption ORDER BY partition
"""


async def partitions(session: Session) -> int | None:
    """Return the number of partitions; None if no worker has decided yet."""
    ((number,),) = await session.fetch(PARTITIONS)
    return None if number is None else int(number)


async def agree_on_partitions(session: Session, first: int) -> int:
    """Return the number of partitions, which is `first` if no worker has decided before."""
    if (known := await partitions(session)) is not None:
        return known
    ((number,),) = await session.fetch(AGREE, (first,))
    return int(number)


async def set_partitions(session: Session, number: int) -> None:
    """Note another number of partitions."""
    await session.fetch(SET, (number,))


async def report(session: Session, said: Sequence[Consumption]) -> None:
    """Note what a worker says, in the place of what others have said before."""
    await session.ask(
        REPORT,
        [each.partition for each in said],
        [each.worker for each in said],
        [each.received_seconds for each in said],
        [each.unsettled for each in said],
        [each.oldest_seconds for each in said],
    )


async def consumption(session: Session) -> list[Consumption]:
    """Return what workers have said, in the order of the partitions."""
    return [Consumption(*row) for row in await session.fetch(CONSUMPTION)]
