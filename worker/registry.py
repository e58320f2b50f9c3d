"""The known kinds: their handlers, their payload models, and the tables that they write.

A projection's module fills the registry while it is imported. A mistake in a handler or a name is
refused at once; a mistake in a table is refused when all tables are known. Knows nothing about
order (fold.py), and no SQL beyond the tables' definitions.
"""

import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import Field, PydanticUndefinedAnnotation, TypeAdapter, create_model

from worker.errors import RegistrationError
from worker.messages import Message, P, Payload, Wire
from worker.store.sqlite.schemas import require_schemas
from worker.store.tables import REMOVAL, RESERVED, SchemaMistake, may_be_named
from worker.store.transaction import Transaction

Handler = Callable[[Transaction, Message[P]], Awaitable[None]]
H = TypeVar("H", bound=Callable[..., Any])

LARGEST_VERSION = 2**63 - 1  # the largest integer of either store


@dataclass(frozen=True, slots=True)
class Projection:
    """One table that handlers write; any event may have rows in it.

    The table has a key or an index that begins with the column `event_id`. The worker uses it to
    find a stream's rows, and to remove them when a late message makes it fold the stream again.
    """

    table: str
    version: int
    """Raise it when the table or the meaning of a message changes: the tables are then rebuilt."""
    schema: tuple[str, ...]
    """One CREATE TABLE statement, and one CREATE INDEX statement for each index on the table."""
    place: str
    """File and line of the registration."""

    @property
    def removal(self) -> str:
        """The statement that removes the rows of one stream."""
        return REMOVAL.format(self.table)


@dataclass(frozen=True, slots=True)
class _Registration:
    payload: type[Payload]
    place: str


class Registry:
    """Kind -> handler and payload model; table -> projection."""

    def __init__(self) -> None:
        """Start empty."""
        self._kinds: dict[str, _Registration] = {}
        self.handlers: dict[str, Callable[[Transaction, Any], Awaitable[None]]] = {}
        """Kind -> handler; filled by `on`."""
        self._projections: dict[str, Projection] = {}

    def on(self, kind: str) -> Callable[[H], H]:
        """Register the decorated `async def handler(tx, message: Message[Model])` for a kind.

        Raises `RegistrationError` for a kind that is not text, a second handler for a kind, a
        function that is not async, and a payload type that is not a model derived from `Payload`.
        """
        if not (isinstance(kind, str) and kind):
            raise RegistrationError(
                f"A kind must be text, not {kind!r} ({_place_of_caller()}).",
                'write @on("event_started") above the handler.',
            )

        def register(handler: H) -> H:
            place = _place(handler)
            if known := self._kinds.get(kind):
                raise RegistrationError(
                    f"Kind {kind!r} is registered twice ({known.place} and {place}).",
                    "give one of the two another kind.",
                )
            self._kinds[kind] = _Registration(_payload_model(handler, place), place)
            self.handlers[kind] = handler
            self.__dict__.pop("wire", None)
            return handler

        return register

    def projection(self, *, table: str, version: int, schema: tuple[str, ...]) -> Projection:
        """Register a table that handlers write.

        Raises `RegistrationError` for a name that is not allowed or already taken, a version that
        is not a positive integer, and a schema that is not a tuple of statements. `require_schemas`
        checks the statements themselves.
        """
        place = _place_of_caller()
        _require_parts(table, version, schema, place)
        if known := self._projections.get(table):
            raise RegistrationError(
                f"Table {table!r} is registered twice ({known.place} and {place}).",
                "give one of the two another name.",
            )
        self._projections[table] = Projection(table, version, schema, place)
        return self._projections[table]

    def require_schemas(self) -> None:
        """Create all tables together, in memory, as SQLite would in a file.

        Raises `RegistrationError` for a table that cannot be created, or that the worker could not
        maintain (`worker/store/sqlite/schemas.py` has the rules).
        """
        with self.placing_mistakes():
            require_schemas({each.table: each.schema for each in self.projections})

    @contextmanager
    def placing_mistakes(self) -> Iterator[None]:
        """Raise `RegistrationError` for a mistake in a schema: it says where that is registered."""
        try:
            yield
        except SchemaMistake as mistake:
            place = self._projections[mistake.table].place
            raise RegistrationError(f"{mistake} ({place}).", mistake.hint) from mistake

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All projections, by table name."""
        return tuple(self._projections[table] for table in sorted(self._projections))

    @property
    def versions(self) -> Mapping[str, int]:
        """Table -> version, as the worker notes it in the file."""
        return {projection.table: projection.version for projection in self.projections}

    @cached_property
    def wire(self) -> Wire:
        """A discriminated union of all kinds, which validates a body in one pass."""
        models = [
            self._model(kind, registration) for kind, registration in sorted(self._kinds.items())
        ]
        union: Any = Annotated[Union[*models], Field(discriminator="kind")]
        return TypeAdapter(union)

    @staticmethod
    def _model(kind: str, registration: _Registration) -> Any:  # noqa: ANN401 - created at run time
        payload: Any = registration.payload
        only: Any = Literal[kind]
        return create_model(kind, __base__=Message[payload], kind=(only, ...))


def _payload_model(handler: Callable[..., Any], place: str) -> type[Payload]:
    name = getattr(handler, "__name__", repr(handler))
    shape = RegistrationError(
        f"Handler {name!r} must be 'async def {name}(tx, message: Message[Model])' with a Model "
        f"derived from Payload ({place}).",
        "correct its signature; worker/projections/events.py has examples.",
    )
    if not inspect.iscoroutinefunction(handler):
        raise shape
    parameters = list(inspect.signature(handler).parameters)
    try:
        annotation = typing.get_type_hints(handler).get(parameters[1])
    except (AttributeError, IndexError, NameError, SyntaxError, TypeError) as error:
        raise shape from error
    if not (isinstance(annotation, type) and issubclass(annotation, Message)):
        raise shape
    model = annotation.model_fields["payload"].annotation
    if len(parameters) != 2 or not (isinstance(model, type) and issubclass(model, Payload)):
        raise shape
    _require_model(model, place)
    return model


def _require_model(model: type[Payload], place: str) -> None:
    """Refuse a model that would fail for every message of any kind, or crash the worker."""
    try:
        model.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        raise RegistrationError(
            f"The payload model {model.__name__!r} uses the name {error.name!r}, which is not "
            f"defined ({place}).",
            "define or import it above the model.",
        ) from error
    if repr(model.model_fields["event_id"]) != repr(Payload.model_fields["event_id"]):
        raise RegistrationError(
            f"The payload model {model.__name__!r} defines event_id in its own way ({place}).",
            "leave it to Payload: it is text and names the stream.",
        )


def _require_parts(table: object, version: object, schema: object, place: str) -> None:
    if not may_be_named(table):
        raise RegistrationError(
            f"A projection's table cannot be named {table!r} ({place}).",
            "choose a name of a-z, 0-9 and _ that begins with a letter and is not used by the "
            f"database or the worker ({', '.join(sorted(RESERVED))}).",
        )
    if type(version) is not int or not 0 < version <= LARGEST_VERSION:
        raise RegistrationError(
            f"Table {table!r} has the version {version!r}, not a positive integer ({place}).",
            "begin with 1, and raise it when the table or the meaning of a message changes.",
        )
    if not (isinstance(schema, tuple) and schema and all(isinstance(s, str) for s in schema)):
        raise RegistrationError(
            f"Table {table!r} has a schema that is not a tuple of statements ({place}).",
            'write schema=("CREATE TABLE ...",), with a comma even after a single statement.',
        )


def _place_of_caller() -> str:
    """Return the file and line that called this function's caller."""
    caller = inspect.stack(context=0)[2]
    return f"{caller.filename}:{caller.lineno}"


def _place(handler: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(handler), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(handler)


registry = Registry()
"""The registry that the modules in `worker/projections` fill."""

on = registry.on
projection = registry.projection
