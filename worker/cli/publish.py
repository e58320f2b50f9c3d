"""`publish`: the messages in a file, or a single message."""

import asyncio
import gzip
import json
import sys
import uuid
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from worker.broker.permissions import Permissions
from worker.broker.publisher import publish_all, publisher
from worker.broker_settings import address_of
from worker.cli.app import AsJson, app
from worker.cli.output import complain, print_json, progress_bar, say
from worker.deliveries import Delivery, Rejected
from worker.errors import StoreUnavailable, StoreUnusable, WorkerError
from worker.fold import is_late, position
from worker.messages import INT64_MAX, AnyMessage, decode, now
from worker.plurals import counted
from worker.projections import load
from worker.settings import Settings, load_settings
from worker.store.engines import store_of

SHOW_EVERY = 100
NAME = "projection-worker publish"


@app.command()
def publish(  # noqa: PLR0913 - one parameter for each option of the command
    file: Annotated[
        str | None,
        typer.Argument(help="NDJSON file, may be .gz; - is standard input. Lines are not checked."),
    ] = None,
    *,
    kind: Annotated[str | None, typer.Option(help="Publish one message of this kind.")] = None,
    event_id: Annotated[str | None, typer.Option(help="The id of its event.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(help="A field of its payload: NAME=VALUE. VALUE is JSON, or else text."),
    ] = None,
    message_id: Annotated[
        str | None, typer.Option("--id", help="Its message id. Default: a new one.")
    ] = None,
    occurred_at: Annotated[str | None, typer.Option(help="When it happened. Default: now.")] = None,
    sequence: Annotated[
        int | None,
        typer.Option(
            help="Its place in the event's order. Default: after everything projected so far."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish the messages in a file, or a single message, and count the broker's confirms.

    The lines of a file are sent as they are, even invalid ones. A single message is checked first:
    publish --kind event_planned --event-id e-1 --field chat_id=c-1 --field kind=poll
    """
    if (file is None) == (kind is None):
        raise typer.BadParameter("use either FILE or --kind.")
    settings = load_settings()
    if file is not None:
        count = _publish_file(settings, file)
    else:
        envelope = {
            "id": message_id or uuid.uuid4().hex,
            "kind": kind,
            "occurred_at": occurred_at or now(),
            "sequence": sequence or 0,
            "payload": _payload(event_id, field or []),
        }
        message = _checked(settings, envelope)
        envelope["sequence"] = asyncio.run(_place(settings, message, sequence))
        count = _publish_one(settings, envelope)
        if not as_json:
            say(f"Published message {envelope['id']} with sequence {envelope['sequence']}.")
    if as_json:
        print_json({"confirmed": count})
    else:
        say(f"The broker confirmed {counted(count, 'message')}.")


def _payload(event_id: str | None, fields: list[str]) -> dict[str, Any]:
    payload: dict[str, Any] = {} if event_id is None else {"event_id": event_id}
    for each in fields:
        name, equals, text = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"--field must be NAME=VALUE, not {each!r}.")
        payload[name] = text
        with suppress(ValueError):
            payload[name] = json.loads(text)
    return payload


def _checked(settings: Settings, envelope: dict[str, Any]) -> AnyMessage:
    body = json.dumps(envelope, ensure_ascii=False).encode()
    checked = decode(load().wire, Delivery(body), settings.max_message_bytes)
    if isinstance(checked, Rejected):
        raise WorkerError(
            f"The worker would reject this message ({checked.reason}: {checked.detail})",
            "correct it, or use 'publish FILE', which does not check messages.",
        )
    return checked


async def _place(settings: Settings, message: AnyMessage, sequence: int | None) -> int:
    """Return the given sequence, or else one that puts the message after all projected ones.

    Warns about a message that sorts before a projected one. Raises `WorkerError` if no sequence was
    given and the database cannot be read.
    """
    try:
        async with store_of(settings.store).reader() as reader:
            head = await reader.head(message.event_id)
    except (StoreUnavailable, StoreUnusable) as error:
        if sequence is not None:
            return sequence
        raise WorkerError(
            f"The next sequence of the event is not known: {error.message}",
            "run this command where the worker's database is, or set --sequence to a higher number "
            "than the event's other messages have, or to 0 if its publisher sends none.",
        ) from error
    if sequence is None:
        # If the event's messages have no sequences, they are ordered by their times.
        sequence = head[0] + 1 if head is not None and 0 < head[0] < INT64_MAX else message.sequence
    place = position(message.model_copy(update={"sequence": sequence}))
    if is_late(place, head):
        complain(
            f"The message sorts before another one of event {message.event_id!r} (its position "
            f"is {place[:2]}, the last one has {head and head[:2]}), so it may have no effect.",
            "run 'projection-worker show' to see what it did. A message without --sequence and "
            "--occurred-at comes after everything projected so far.",
        )
    return sequence


def _publish_one(settings: Settings, envelope: dict[str, Any]) -> int:
    body = json.dumps(envelope, ensure_ascii=False).encode()
    routing_key = str(envelope["payload"].get("chat_id", ""))
    return _publish(settings, _only(body, routing_key), lambda count: None)


def _publish_file(settings: Settings, file: str) -> int:
    with ExitStack() as stack:
        raw = sys.stdin.buffer if file == "-" else stack.enter_context(_open(Path(file)))
        size = None if file == "-" else Path(file).stat().st_size
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=raw) if file.endswith(".gz") else raw
        bar = stack.enter_context(progress_bar("Publishing messages"))

        def show(count: int) -> None:
            # The total is unknown, so it is estimated from how far the file has been read.
            bar.show(count, size and round(count * size / max(raw.tell(), 1)))

        return _publish(settings, _routed(lines, is_slow=file == "-"), show)


def _publish(
    settings: Settings, messages: AsyncIterable[tuple[bytes, str]], show: Callable[[int], None]
) -> int:
    """Return the number of confirms; raises `WorkerError`, which says how many came before."""
    confirmed = 0

    def on_confirmed() -> None:
        nonlocal confirmed
        confirmed += 1
        if confirmed % SHOW_EVERY == 0:
            show(confirmed)

    async def send() -> None:
        needed = Permissions(write=(settings.exchange,))
        async with publisher(address_of(settings), settings.exchange, NAME, needed) as target:
            await publish_all(target, messages, on_confirmed)

    try:
        asyncio.run(send())
    except WorkerError as error:
        raise WorkerError(
            f"{error.message} Confirmed before: {counted(confirmed, 'message')}.", error.hint
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise WorkerError(
            f"The file cannot be read to its end ({error}). Confirmed before: "
            f"{counted(confirmed, 'message')}.",
            "repair the file and publish it again: what has already arrived is a duplicate.",
        ) from error
    show(confirmed)
    return confirmed


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}.") from error


async def _routed(lines: Iterable[bytes], *, is_slow: bool) -> AsyncIterator[tuple[bytes, str]]:
    """Yield each line with its chat as the routing key, if a line so far has named the chat.

    A slow source is read in a thread, because waiting for it here would stop the heartbeats.
    """
    chats: dict[str, str] = {}
    each = iter(lines)
    while line := await asyncio.to_thread(next, each, None) if is_slow else next(each, None):
        body = line.strip()
        if body:
            yield body, _chat(body, chats)


async def _only(body: bytes, routing_key: str) -> AsyncIterator[tuple[bytes, str]]:
    yield body, routing_key


def _chat(body: bytes, chats: dict[str, str]) -> str:
    try:
        payload = json.loads(body)["payload"]
        event_id, chat_id = payload["event_id"], payload.get("chat_id")
        if isinstance(chat_id, str):
            chats[event_id] = chat_id
        return chats.get(event_id, "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""  # An invalid line is published all the same.
