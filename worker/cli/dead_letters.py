"""`dead-letters`: what was rejected, and why."""

import asyncio
import json
from contextlib import suppress
from itertools import count
from typing import Annotated, Any

import typer

from worker.broker.dead_letters import DeadLetter, browse
from worker.cli.app import AsJson, app
from worker.cli.output import complain, plain, print_json, print_raw, say, table
from worker.service import address_of, topology_of
from worker.settings import load_settings

dead_letters = typer.Typer(
    name="dead-letters", help="Look at the messages that were rejected.", no_args_is_help=True
)
app.add_typer(dead_letters)


@dead_letters.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="Most dead letters to look at.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the dead letters, oldest first; they all stay where they are."""
    found = asyncio.run(_browse(limit))
    if as_json:
        print_json([_summary(each) for each in found])
    elif not found:
        say("There are no dead letters.")
    else:
        rows = [_summary(each) for each in found]
        columns = ("number", "reason", "kind", "id", "rejected_at", "bytes", "detail")
        table(columns, [[row[column] for column in columns] for row in rows])


@dead_letters.command("show")
def show(
    number: Annotated[int, typer.Argument(min=1, help="Its number in the list.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter whole: why, its headers, and its body as it was published."""
    found = asyncio.run(_browse(number))
    if len(found) < number:
        complain(f"There are only {len(found)} dead letters.", "see 'dead-letters list'.")
        raise typer.Exit(1)
    letter = found[-1]
    document = _summary(letter) | {
        "routing_key": letter.routing_key,
        "message_id": letter.message_id,
        "content_type": letter.content_type,
        "headers": plain(letter.headers),
    }
    text = plain({"body": letter.body})["body"]
    if as_json:
        print_json(document | {"body": text})
        return
    table(("field", "value"), document.items())
    say("")
    print_raw(str(text))


async def _browse(limit: int) -> list[DeadLetter]:
    settings = load_settings()
    found: list[DeadLetter] = []
    async with browse(address_of(settings), topology_of(settings)) as letters:
        for _ in count():
            if len(found) == limit or (letter := await anext(letters, None)) is None:
                return found
            found.append(letter)
    return found


def _summary(letter: DeadLetter) -> dict[str, Any]:
    body: object = None
    with suppress(ValueError, RecursionError):
        body = json.loads(letter.body)
    message = body if isinstance(body, dict) else {}
    return {
        "number": letter.number,
        "reason": letter.reason,
        "kind": _word(message.get("kind")),
        "id": _word(message.get("id")) or letter.message_id,
        "rejected_at": letter.rejected_at,
        "bytes": len(letter.body),
        "detail": letter.detail,
    }


def _word(value: object) -> str | None:
    return value[:255] if isinstance(value, str) else None
