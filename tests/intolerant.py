"""A worker that cannot read one message's frames: `python -m tests.intolerant run`.

Stands for whatever a publisher may yet find that ends the connection before the worker has the
message: the error is raised where the bytes are taken apart.
"""

from worker.broker import properties
from worker.broker.properties import content_type
from worker.cli import main

POISON = "x-poison"


def of_all_but_poison(header: bytes) -> str | None:
    """Give the content type, but not of a message with that header."""
    if POISON.encode() in header:
        raise ValueError("poison")
    return content_type(header)


if __name__ == "__main__":
    properties.content_type = of_all_but_poison
    main()
