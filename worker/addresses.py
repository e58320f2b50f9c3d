"""Addresses as people write them: what is wrong with one, and how it is shown without its secrets.

Imports next to nothing, because `healthcheck` runs every few seconds.
"""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

DEFAULT_HEALTH_HOST = "127.0.0.1"
DEFAULT_HEALTH_PORT = 8080
MAX_PORT = 65535
# AMQP's short string, and the client library's own limit.
MAX_VHOST_CHARACTERS, MAX_VHOST_BYTES = 127, 255
MAX_HOST_CHARACTERS, MAX_LABEL_CHARACTERS = 253, 63

_SCHEME = re.compile(r"(?i)amqps?://")
_ANY_SCHEME = re.compile(r"(?i)([a-z][a-z0-9+.-]*):/")
_RAW_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SERVICE_LINK = re.compile(r"(?i)(tcp|udp|sctp)://")
_QUOTES = "\"'`“”‘’"
_BRACKETED = re.compile(r"\[[0-9A-Fa-f:.]+(%25\w+)?\](:.*)?")
SEVERAL_HOSTS = (
    "has several hosts in one address; write a whole address for each, with spaces between them"
)
NO_IPV6 = "has brackets that hold no IPv6 address"


def health_url(host: str, port: int) -> str:
    """Return the URL of an address; one of IPv6 stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def health_port(text: str) -> int:
    """Return the port that a setting names; raises `ValueError` with the rule."""
    if _SERVICE_LINK.match(text):
        raise ValueError(
            "must be a port number, but this is what Kubernetes sets for a Service named "
            "worker-health; set enableServiceLinks: false in the pod's spec, or set the port there"
        )
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(digits) > 5 or int(digits) > MAX_PORT:
        raise ValueError(f"must be a port number from 0 to {MAX_PORT}")
    return int(digits)


def is_ip_address(host: str) -> bool:
    """Return whether a host is an address, and no name that has addresses."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def vhost_of(url: str) -> str:
    """Return the virtual host of an AMQP URL, which is / if it names none."""
    return unquote_to_bytes(urlsplit(url).path[1:]).decode() or "/"


def shown(url: str) -> str:
    """Return an AMQP URL as people may see it: without the user and the password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def amqp_urls_problem(text: str) -> str | None:
    """Return what is wrong with one or more AMQP URLs, and the fix; None if nothing is.

    Never quotes them: wherever a URL goes wrong, its password may begin.
    """
    urls = text.split()
    if any(quote in url[:1] + url[-1:] for url in urls for quote in _QUOTES):
        return "has quotes around it, which are part of the value here; remove them"
    if _SCHEME.match(text) and not all(map(_ANY_SCHEME.match, urls)):
        return (
            "has a space within an address; write %20 for a space in the user or password, and put "
            "amqps:// or amqp:// before each of several addresses"
        )
    for number, url in enumerate(urls, 1):
        if problem := _problem(url):
            of_several = f"(address {number} of {len(urls)}) " if len(urls) > 1 else ""
            return f"{of_several}{problem}"
    if len({vhost_of(url) for url in urls}) > 1:
        return "names different virtual hosts; all addresses must be nodes of one cluster"
    return None


def _problem(url: str) -> str | None:
    if not _SCHEME.match(url):
        return _scheme_problem(url)
    if re.search(r"(?i)[,;|]+amqps?://", url):
        return "has commas or the like between its addresses; put spaces there"
    rest = url.partition("://")[2]
    # A password may have any character, so the last @ ends it, whatever a parser makes of it.
    user, has_user, place = rest.rpartition("@")
    if has_user and (problem := _user_problem(user)):
        return problem
    return _place_problem(url, place)


def _scheme_problem(url: str) -> str:
    found = _ANY_SCHEME.match(url)
    if found is None:
        return "must begin with amqps:// or amqp://"
    scheme = found[1].lower()
    if scheme in ("amqp", "amqps"):
        return f"must have two slashes after {scheme}:"
    name = f"{scheme}://" if scheme.isalpha() else "that"
    return f"has another scheme; {name} is not AMQP 0-9-1, write amqps:// or amqp://"


def _user_problem(user: str) -> str | None:
    if re.search(r"@[\w.:-]+[,;|]", user):
        return SEVERAL_HOSTS
    if "/" in user:
        return (
            "has a raw / in the user or password, where it is written %2F (or a raw @ in the "
            "virtual host, where it is written %40)"
        )
    for character in "@?#[]\\":
        if character in user:
            code = f"%{ord(character):02X}"
            return f"has a raw {character} in the user or password; write {code} for it"
    return _escapes_problem(user, "the user or password")


def _escapes_problem(text: str, where: str) -> str | None:
    if _RAW_PERCENT.search(text):
        return f"has a % in {where} that begins no escape such as %2F; write %25 for it"
    try:
        plain = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return f"has escapes in {where} that are not UTF-8"
    if not plain.isprintable():
        return f"has control characters in {where}"
    return None


def _place_problem(url: str, place: str) -> str | None:
    if "?" in place:
        return (
            "has options after a ?, which are not taken; remove them (the files for TLS have "
            "settings of their own), and write %3F for a ? in the virtual host"
        )
    if "#" in place:
        return "has a fragment after a #; remove it, and write %23 for a # in the virtual host"
    host, _, vhost = place.partition("/")
    if re.search("[,;|]", host):
        return SEVERAL_HOSTS
    try:
        parts = urlsplit(url)
    except ValueError:
        # Other characters look like those that end a host when they are normalized (RFC 3986).
        return NO_IPV6 if url.isascii() else "has characters that a URL must have as %XX, in UTF-8"
    return _host_problem(parts, host) or _port_problem(parts, host) or _vhost_problem(vhost)


def _host_problem(parts: SplitResult, host: str) -> str | None:
    if host.startswith("["):
        return None if _BRACKETED.fullmatch(host) else NO_IPV6
    if host.count(":") > 1:
        return "has more than one colon in its host; an IPv6 address stands in brackets: [::1]"
    name = host.partition(":")[0]
    if not name:
        return "has no host"
    if not _is_host(name):
        return (
            "has a host that is no name or address; it takes letters, digits, dots and hyphens, "
            "and a password with other characters stands before an @"
        )
    return None


def _is_host(name: str) -> bool:
    try:
        ascii_name = name.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return False
    labels = ascii_name.split(".")
    return len(ascii_name) <= MAX_HOST_CHARACTERS and all(
        len(label) <= MAX_LABEL_CHARACTERS and re.fullmatch(r"[A-Za-z0-9_-]+", label)
        for label in labels
    )


def _port_problem(parts: SplitResult, host: str) -> str | None:
    port = re.sub(r"^\[.*\]", "", host).partition(":")[2]
    try:
        is_port = parts.port != 0 and (not port or (port.isascii() and port.isdigit()))
    except ValueError:
        is_port = False
    if is_port:
        return None
    return (
        f"has a port that is no number from 1 to {MAX_PORT}; if a user and password stand there, "
        "an @ must follow them"
    )


def _vhost_problem(vhost: str) -> str | None:
    if problem := _escapes_problem(vhost, "the virtual host"):
        return problem
    name = unquote_to_bytes(vhost).decode()
    if len(name) > MAX_VHOST_CHARACTERS or len(name.encode()) > MAX_VHOST_BYTES:
        return (
            f"has a virtual host of over {MAX_VHOST_CHARACTERS} characters or {MAX_VHOST_BYTES} "
            "bytes, more than AMQP takes"
        )
    return None
