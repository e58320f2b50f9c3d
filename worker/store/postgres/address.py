"""Where a database is, and how the way there is protected. Knows nothing of the driver."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from worker.errors import StoreUnusable

PORT = 5432
SCHEMA = "projection"


@dataclass(frozen=True)
class Address:
    """The address of a database, as the settings name it."""

    # Not shown, because it holds the password.
    url: str = field(repr=False)
    """postgresql://user:password@host:port/name, perhaps with several hosts."""
    schema: str = SCHEMA
    """The schema of the worker's tables; `rebuild_schema` is the worker's, too."""
    ca_file: Path | None = None
    """Whose certificates are trusted, instead of those that the system trusts."""
    allow_plain_text: bool = False
    """Whether another machine may be spoken to without TLS."""
    renewed: Callable[[], str] | None = field(default=None, compare=False, repr=False)
    """Returns the URL as it is now, for each connection: its password may have been changed."""

    @property
    def current_url(self) -> str:
        """The URL for the next connection; raises what `renewed` raises."""
        return self.url if self.renewed is None else self.renewed()

    @property
    def rebuild_schema(self) -> str:
        """The schema in which a rebuild makes its tables."""
        return f"{self.schema}_rebuild"

    @cached_property
    def named(self) -> str:
        """What errors call the database: without the user and the password."""
        name = unquote(urlsplit(self.url).path.removeprefix("/"))
        return f"database {name} on {', '.join(self._places)}, schema {self.schema}"

    def tls(self) -> ssl.SSLContext | None:
        """Return how TLS is verified; None where it is used only if the server offers it.

        Raises `StoreUnusable` if the file of the authority's certificates cannot be used.
        """
        if self.ca_file is None and (self.allow_plain_text or not self.leaves_machine):
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise StoreUnusable(
                f"The certificates for the database cannot be read ({self.ca_file}: {error}).",
                "set WORKER_DATABASE_CA_FILE to a file of certificates in PEM.",
            ) from error

    @cached_property
    def _places(self) -> list[str]:
        """The hosts with their ports, or the folders of their sockets."""
        parts = urlsplit(self.url)
        _, _, places = parts.netloc.rpartition("@")
        asked = parse_qs(parts.query)
        hosts = places or ",".join(asked.get("host", ["localhost"]))
        port = asked.get("port", [str(PORT)])[0]
        return [
            place if unquote(place).startswith("/") or _port(place) else f"{place}:{port}"
            for place in map(unquote, hosts.split(","))
        ]

    @property
    def leaves_machine(self) -> bool:
        """Whether what is sent there, or to one of several hosts, leaves this machine."""
        return not all(_is_here(place) for place in self._places)


def _port(place: str) -> str:
    """Return the port in host:port or [host]:port; empty if there is none."""
    return place.rpartition("]")[2].rpartition(":")[2] if ":" in place.rpartition("]")[2] else ""


def _is_here(place: str) -> bool:
    """Return whether a host or a socket is on this machine."""
    if place.startswith("/"):
        return True
    port = _port(place)
    host = (place.removesuffix(f":{port}") if port else place).strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
