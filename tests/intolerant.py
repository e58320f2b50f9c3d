"""A worker that decodes AMQP as its library does: `python -m tests.intolerant run`.

Stands for whatever a publisher may yet find that ends the library's connection before any code of
ours sees the message.
"""

from worker.broker import decoders
from worker.cli import main


def leave_as_it_is() -> None:
    """Install nothing."""


if __name__ == "__main__":
    decoders.install = leave_as_it_is
    main()
