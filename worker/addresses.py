"""Addresses as people write them: what is wrong with one, and how to show it without secrets.

Imports very little, because `healthcheck` runs every few seconds.
"""

import re
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

DEFAULT_HEALTH_HOST = "127.0.0.1"
DEFAULT_HEALTH_PORT = 8080
MAX_PORT = 65535
# The limits of the client library and of AMQP's short strings.
MAX_VHOST_CHARACTERS, MAX_VHOST_BYTES = 127, 255
MAX_HOST_CHARACTERS, MAX_LABEL_CHARACTERS = 253, 63

_SCHEME = re.compile(r"(?i)amqps?://")
ANY_SCHEME = re.compile(r"(?i)([a-z][a-z0-9+.-]*):/")
_RAW_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SERVICE_LINK = re.compile(r"(?i)(tcp|udp|sctp)://")
_QUOTES = "\"'`“”‘’"
_BRACKETED = re.compile(r"\[[0-9A-Fa-f:.]+(%25\w+)?\](:.*)?")
SURROUNDED = "has quotes around it, which count as part of the value; remove them"
SEVERAL_HOSTS = "has several hosts in one URL; write a complete URL for each, separated by spaces"
NO_IPV6 = "has brackets without an IPv6 address in them"


def health_url(host: str, port: int) -> str:
    """Return the URL of a host and port; an IPv6 address is put in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def health_host(text: str) -> str:
    """Return the host that a setting names; raises `ValueError` with the rule."""
    if text.startswith("[") or text.endswith("]"):
        raise ValueError("must be a host name or an IP address without brackets, such as ::1")
    return text


def health_port(text: str) -> int:
    """Return the port that a setting names; raises `ValueError` with the rule."""
    if _SERVICE_LINK.match(text):
        raise ValueError(
            "must be a port number, but this is the value that Kubernetes sets for a Service named "
            "worker-health; set enableServiceLinks: false in the pod's spec, or set the port there"
        )
    digits = text.lstrip("0") or "0"
    if not (text.isascii() and text.isdigit()) or len(digits) > 5 or int(digits) > MAX_PORT:
        raise ValueError(f"must be a port number from 0 to {MAX_PORT}")
    return int(digits)


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address, and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_local(host: str) -> bool:
    """Return whether a host is this machine, by its loopback address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def vhost_of(url: str) -> str:
    """Return the virtual host of an AMQP URL; it is / if the URL names none."""
    return unquote_to_bytes(urlsplit(url).path[1:]).decode() or "/"


def shown(url: str) -> str:
    """Return an AMQP URL for display, without the user and the password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def amqp_urls_problem(text: str) -> str | None:
    """Return what is wrong with one or more AMQP URLs, and the fix; None if nothing is wrong.

    Never quotes them, because any part of a malformed URL may be the password.
    """
    urls = text.split()
    if any(map(has_quotes, urls)):
        return SURROUNDED
    if _SCHEME.match(text) and not all(map(ANY_SCHEME.match, urls)):
        return (
            "has a space within a URL; write %20 for a space in the user or password, and begin "
            "each of several URLs with amqps:// or amqp://"
        )
    for number, url in enumerate(urls, 1):
        if problem := _problem(url):
            of_several = f"(URL {number} of {len(urls)}) " if len(urls) > 1 else ""
            return f"{of_several}{problem}"
    if len({vhost_of(url) for url in urls}) > 1:
        return "names different virtual hosts; all URLs must be nodes of one cluster"
    return None


def has_quotes(text: str) -> bool:
    """Return whether text begins or ends with a quote, as in a file where quotes mean nothing."""
    return any(quote in text[:1] + text[-1:] for quote in _QUOTES)


def _problem(url: str) -> str | None:
    if not _SCHEME.match(url):
        return _scheme_problem(url)
    if re.search(r"(?i)[,;|]+amqps?://", url):
        return "has commas or similar characters between its URLs; separate them with spaces"
    rest = url.partition("://")[2]
    # A password may contain any character, so the last @ ends it, even where a parser disagrees.
    user, has_user, place = rest.rpartition("@")
    if has_user and (problem := _amqp_user_problem(user)):
        return problem
    return _place_problem(url, place)


def _scheme_problem(url: str) -> str:
    found = ANY_SCHEME.match(url)
    if found is None:
        return "must begin with amqps:// or amqp://"
    scheme = found[1].lower()
    if scheme in ("amqp", "amqps"):
        return f"must have two slashes after {scheme}:"
    name = f"{scheme}://" if scheme.isalpha() else "it"
    return f"has another scheme; {name} is not AMQP 0-9-1: write amqps:// or amqp://"


def _amqp_user_problem(user: str) -> str | None:
    if re.search(r"@[\w.:-]+[,;|]", user):
        return SEVERAL_HOSTS
    return user_problem(user, "the virtual host")


def user_problem(user: str, after_hosts: str) -> str | None:
    """Return what is wrong with the user and password of a URL; `after_hosts` is its path."""
    if "/" in user:
        return (
            "has a raw / in the user or password, where it must be written %2F (or a raw @ in "
            f"{after_hosts}, where it must be written %40)"
        )
    for character in "@?#[]\\":
        if character in user:
            code = f"%{ord(character):02X}"
            return f"has a raw {character} in the user or password; write {code} instead"
    return escapes_problem(user, "the user or password")


def escapes_problem(text: str, where: str) -> str | None:
    """Return what is wrong with the %XX escapes in a part of a URL."""
    if _RAW_PERCENT.search(text):
        return f"has a % in {where} that does not begin an escape such as %2F; write %25 instead"
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
            "has options after a ?, which are not supported; remove them (there are settings for "
            "the TLS files), and write %3F for a ? in the virtual host"
        )
    if "#" in place:
        return "has a fragment after a #; remove it, and write %23 for a # in the virtual host"
    host, _, vhost = place.partition("/")
    if re.search("[,;|]", host):
        return SEVERAL_HOSTS
    return host_problem(url, host) or _vhost_problem(vhost)


def host_problem(url: str, host: str) -> str | None:
    """Return what is wrong with the host, and its port, of a URL that names one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        # Some characters become one that ends a host when they are normalized (RFC 3986).
        return (
            NO_IPV6
            if url.isascii()
            else "has characters that must be written as %XX in a URL, in UTF-8"
        )
    return _name_problem(host) or _port_problem(parts, host)


def _name_problem(host: str) -> str | None:
    if host.startswith("["):
        return None if _BRACKETED.fullmatch(host) else NO_IPV6
    if host.count(":") > 1:
        return "has more than one colon in its host; write an IPv6 address in brackets: [::1]"
    name = host.partition(":")[0]
    if not name:
        return "has no host"
    if not _is_host(name):
        return (
            "has a host that is not a name or an address; a host has letters, digits, dots and "
            "hyphens, and an @ must follow a password"
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
        f"has a port that is not a number from 1 to {MAX_PORT}; if this is a user and a password, "
        "an @ must follow them"
    )


def _vhost_problem(vhost: str) -> str | None:
    if problem := escapes_problem(vhost, "the virtual host"):
        return problem
    name = unquote_to_bytes(vhost).decode()
    if len(name) > MAX_VHOST_CHARACTERS or len(name.encode()) > MAX_VHOST_BYTES:
        return (
            f"has a virtual host of over {MAX_VHOST_CHARACTERS} characters or {MAX_VHOST_BYTES} "
            "bytes, which is more than AMQP allows"
        )
    return None
