"""A worker that cannot read one message's frames: `python -m tests.intolerant run`.

It stands for whatever a publisher may send that ends the connection before the worker gets the
message: the error is raised where the frames are parsed.
"""

from worker.broker import properties
from worker.broker.properties import content_type
from worker.cli import main

POISON = "x-poison"


def content_type_but_of_poison(header: bytes) -> str | None:
    """Return the content type, but fail on a message with that header."""
    if POISON.encode() in header:
        raise ValueError("poison")
    return content_type(header)


if __name__ == "__main__":
    properties.content_type = content_type_but_of_poison
    main()
