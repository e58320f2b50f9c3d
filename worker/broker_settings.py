"""The broker's address and topology, from the settings."""

from worker.broker.connection import BrokerAddress
from worker.broker.topology import Topology
from worker.settings import Settings


def topology_of(settings: Settings) -> Topology:
    """Return the topology that the settings describe."""
    return Topology(settings.exchange, settings.queue, settings.delivery_limit)


def address_of(settings: Settings) -> BrokerAddress:
    """Return the broker's URLs, and the files for TLS, from the settings."""
    return BrokerAddress(
        settings.amqp_urls,
        settings.amqp_ca_file,
        settings.amqp_certificate_file,
        settings.amqp_key_file,
    )
