"""A message consumer that keeps a read model: the rows are the fold of the messages.

These names are for authors of projections and for readers; all else is used through the commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.errors import NotYet
    from worker.messages import Identifier, Message, Payload, Timestamp
    from worker.reader import Reader
    from worker.registry import on, projection
    from worker.store.transaction import Transaction

__all__ = [
    "Identifier",
    "Message",
    "NotYet",
    "Payload",
    "Reader",
    "Timestamp",
    "Transaction",
    "on",
    "projection",
]
__version__ = "0.1.0"

_MODULES = {
    "Identifier": "worker.messages",
    "Message": "worker.messages",
    "NotYet": "worker.errors",
    "Payload": "worker.messages",
    "Reader": "worker.reader",
    "Timestamp": "worker.messages",
    "on": "worker.registry",
    "projection": "worker.registry",
    "Transaction": "worker.store.transaction",
}


# Imported on first use, because the imports take half a second, during which the program could not
# handle a signal (__main__.py).
def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
