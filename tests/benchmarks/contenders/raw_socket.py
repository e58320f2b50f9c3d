"""The broker's limit: the rate at which it delivers to a consumer that costs nothing.

It counts frames on a plain socket without reading them: no library, no event loop, no task for each
message. The prefetch and the acks are the worker's: one ack with `multiple` for 1,000 messages. No
consumer of this queue on this machine can be faster, in whatever language, because the broker
itself needs this time, and nearly all of the CPU.
"""

import sys
from urllib.parse import urlsplit

from pamqp import commands

from tests.benchmarks.connection import METHOD, Connection
from tests.benchmarks.contenders.timing import Arguments, Clock, arguments

PREFETCH = 2_000
ACK_EVERY = 1_000


def main(told: Arguments) -> None:
    clock = Clock(told.messages)
    delivered = acked = 0
    with Connection(urlsplit(told.url).port or 0) as connection:
        connection.send(commands.Basic.Qos(prefetch_count=PREFETCH))
        connection.expect(commands.Basic.QosOk)
        connection.send(commands.Basic.Consume(queue=told.queue))
        connection.expect(commands.Basic.ConsumeOk)
        while acked < told.messages:
            # Each delivery has one method frame, and nothing else has one here.
            delivered += sum(frame[0] == METHOD for frame in connection.receive())
            if delivered:
                clock.begin()
            # The tags of a channel count from 1.
            if delivered - acked >= min(ACK_EVERY, told.messages - acked):
                connection.send(commands.Basic.Ack(delivered, multiple=True))
                clock.done(delivered - acked)
                acked = delivered
        # The broker may still be reading the acks: see `dismissed`.
        sys.stdin.read()


if __name__ == "__main__":
    main(arguments())
