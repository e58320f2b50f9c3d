"""A message consumer that keeps a read model: the rows are the fold of the messages.

What the author of a projection imports; everything else is reached through the commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.messages import Identifier, Message, Payload, Timestamp
    from worker.registry import on, projection
    from worker.store.transaction import Transaction

__all__ = ["Identifier", "Message", "Payload", "Timestamp", "Transaction", "on", "projection"]
__version__ = "0.1.0"

_MODULES = {
    "Identifier": "worker.messages",
    "Message": "worker.messages",
    "Payload": "worker.messages",
    "Timestamp": "worker.messages",
    "on": "worker.registry",
    "projection": "worker.registry",
    "Transaction": "worker.store.transaction",
}


# Imported when they are asked for: all this takes half a second, in which the program could not
# attend to a signal (__main__.py).
def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
