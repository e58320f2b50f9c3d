"""Which messages a log has, asked by the ids that their publishers know."""

from collections.abc import Sequence

from worker.store.database import Fetch

PublishedMessage = tuple[str, str]
"""A message that somebody has published: the id of its event, and its own."""

# Each message has a part of the query. SQLite takes 500 parts.
AT_ONCE = 100
IN_LOG = "SELECT {} FROM messages WHERE event_id = ? AND id = ?"


async def missing_of(
    fetch_all: Fetch, messages: Sequence[PublishedMessage]
) -> list[PublishedMessage]:
    """Return those of these messages that are not in the log, in order."""
    missing: list[PublishedMessage] = []
    for start in range(0, len(messages), AT_ONCE):
        some = messages[start : start + AT_ONCE]
        query = " UNION ALL ".join(map(IN_LOG.format, range(len(some))))
        found = await fetch_all(query, [part for message in some for part in message])
        numbers = {number for (number,) in found}
        missing += [each for number, each in enumerate(some) if number not in numbers]
    return missing
