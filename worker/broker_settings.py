"""The broker's address and topology, from the settings."""

from pathlib import Path

from worker.broker.connection import BrokerAddress
from worker.broker.partitions import Ranking
from worker.broker.topology import Topology
from worker.settings import Settings
from worker.sources import PREFIX, SettingsError


def topology_of(settings: Settings, partitions: int | None = None) -> Topology:
    """Return the topology that the settings describe, with so many partitions.

    Without a number it is that of the settings, or none if the database is a file. Raises
    `SettingsError` if two of its exchanges would have the same name.
    """
    if partitions is None and not isinstance(settings.database, Path):
        partitions = settings.partitions
    if partitions is not None and settings.exchange == settings.queue:
        raise SettingsError(
            f"{PREFIX}EXCHANGE and {PREFIX}QUEUE are the same ({settings.queue}), but with "
            "partitions the queue's name is that of another exchange.",
            "set one of them to another name.",
        )
    return Topology(settings.exchange, settings.queue, settings.delivery_limit, partitions)


def ranking_of(settings: Settings) -> Ranking:
    """Return how much this worker wants each partition."""
    return Ranking(settings.worker_name, settings.ordinal)


def address_of(settings: Settings) -> BrokerAddress:
    """Return the broker's URLs, and the files for TLS, from the settings."""
    return BrokerAddress(
        settings.amqp_urls,
        settings.amqp_ca_file,
        settings.amqp_certificate_file,
        settings.amqp_key_file,
    )
