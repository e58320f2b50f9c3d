"""A message consumer that keeps a read model: the rows are the fold of the messages.

What the author of a projection imports; everything else is reached through the commands.
"""

from worker.messages import Identifier, Message, Payload, Timestamp
from worker.registry import on, projection
from worker.store.transaction import Transaction

__all__ = ["Identifier", "Message", "Payload", "Timestamp", "Transaction", "on", "projection"]
__version__ = "0.1.0"
