"""The topology as RabbitMQ definitions, for operators who import it themselves.

The format is that of `rabbitmqctl export_definitions` (rabbitmq.com/docs/definitions).
"""

import re
from typing import Any

from worker.broker.topology import DEAD_LETTERS_DELIVERY_LIMIT, Topology

# Higher than anybody chooses for a policy that matches many queues.
PRIORITY = 100


def definitions(topology: Topology, vhost: str) -> dict[str, list[dict[str, Any]]]:
    """Return the exchanges, queues, bindings and policies of a virtual host."""
    return {
        "exchanges": [
            {
                "name": name,
                "vhost": vhost,
                "type": kind.value,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name, kind in topology.exchanges.items()
        ],
        "queues": [
            {
                "name": name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": arguments,
            }
            for name, arguments in topology.queues.items()
        ],
        "bindings": [
            {
                "source": binding.exchange,
                "vhost": vhost,
                "destination": binding.destination,
                "destination_type": "exchange" if binding.to_exchange else "queue",
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for binding in topology.bindings
        ],
        "policies": [
            _policy(topology.dead_letters, "", vhost, DEAD_LETTERS_DELIVERY_LIMIT),
            _policy(
                topology.queue,
                "" if topology.partitions is None else r"\.[0-9]+",
                vhost,
                topology.delivery_limit,
            ),
        ],
    }


def _policy(queue: str, suffix: str, vhost: str, delivery_limit: int) -> dict[str, Any]:
    # Only one policy applies to a queue. This one changes nothing, but its priority keeps out
    # policies meant for other queues, with a time to live, a length limit or an expiry.
    return {
        "name": queue,
        "vhost": vhost,
        "pattern": f"^{re.escape(queue)}{suffix}$",
        "apply-to": "queues",
        "priority": PRIORITY,
        "definition": {"delivery-limit": delivery_limit},
    }
