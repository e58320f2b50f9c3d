"""What the settings say of the broker, in the broker's own terms."""

from worker.broker.connection import BrokerAddress
from worker.broker.topology import Topology
from worker.settings import Settings


def topology_of(settings: Settings) -> Topology:
    """Return the topology that the settings name."""
    return Topology(settings.exchange, settings.queue, settings.delivery_limit)


def address_of(settings: Settings) -> BrokerAddress:
    """Return the broker's address, and the files that prove who is who, from the settings."""
    return BrokerAddress(
        settings.amqp_urls,
        settings.amqp_ca_file,
        settings.amqp_certificate_file,
        settings.amqp_key_file,
    )
