"""URLs of PostgreSQL as people write them: what is wrong with one, and how to show it.

A URL is one text for libpq, the driver and the worker, so what they would read differently is
refused. So is every option that the worker sets itself.
"""

import re
from urllib.parse import parse_qsl, unquote

from worker.addresses import (
    ANY_SCHEME,
    MAX_PORT,
    SURROUNDED,
    escapes_problem,
    has_quotes,
    host_problem,
    user_problem,
)

_SCHEME = re.compile(r"(?i)postgres(ql)?://")
_LOOKS_LIKE_URL = re.compile(r"""(?ix)
    [^/.]* :/ | [^/.]\S* ://            # a scheme, be it after a quote
    | [^/.\s] \S* : \S* @               # a user and a password
    | ([^/.] .*)? \b (password|dbname) \s* =  # libpq's keywords
""")
_OPTIONS = ("host", "port")
_TLS = re.compile(r"ssl|gssenc|krb|require_auth|channel_binding")


def is_database_url(text: str) -> bool:
    """Return whether a database is named by something like a URL, and not by the path of a file.

    A text with a mistake in it, which may hold a password, counts as a URL. One that begins with a
    slash or a dot is always a path.
    """
    return _LOOKS_LIKE_URL.match(text) is not None


def database_shown(url: str) -> str:
    """Return the URL of a database for display, without the user and the password."""
    place, _, options = url.partition("://")[2].rpartition("@")[2].partition("?")
    return f"postgresql://{place}{'?' if options else ''}{options}"


def database_url_problem(url: str) -> str | None:
    """Return what is wrong with the URL of a database, and the fix; None if nothing is wrong.

    Never quotes it, because any part of a malformed URL may be the password.
    """
    if has_quotes(url):
        return SURROUNDED
    if not _SCHEME.match(url):
        return _scheme_problem(url)
    if len(url.split()) > 1:
        return "has a space in it; write %20 for a space in the user, password or database"
    # A password may contain any character, so the last @ ends it, even where a parser disagrees.
    user, has_user, place = url.partition("://")[2].rpartition("@")
    if has_user and (problem := user_problem(user, "the database's name")):
        return problem
    if "#" in place:
        return "has a fragment after a #; write %23 for a # in the password or the database's name"
    place, has_options, options = place.partition("?")
    hosts, _, name = place.partition("/")
    return (
        (_options_problem(options, hosts) if has_options else None)
        or _hosts_problem(hosts, options)
        or _name_problem(name)
    )


def _scheme_problem(url: str) -> str:
    found = ANY_SCHEME.match(url)
    if found is None:
        return "must begin with postgresql://, unless it is the path of a file"
    scheme = found[1].lower()
    if scheme in ("postgresql", "postgres"):
        return f"must have two slashes after {scheme}:"
    if scheme in ("sqlite", "sqlite3", "file"):
        return "names an SQLite file by a URL; write the path of the file alone"
    if scheme.startswith(("postgresql+", "postgres+")):
        return "names a driver after a +, which the worker chooses itself; write postgresql://"
    return "has a scheme that is not PostgreSQL's; write postgresql://"


def _options_problem(options: str, hosts: str) -> str | None:
    try:
        found = dict(parse_qsl(options, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        found = {}
    if not found:
        return "has a ? that no option follows; write %3F for a ? in the database's name"
    others = found.keys() - set(_OPTIONS)
    if any(map(_TLS.match, others)):
        return (
            "has options for TLS after the ?; remove them: TLS with a verified certificate is used "
            "for every other machine, and WORKER_DATABASE_CA_FILE and "
            "WORKER_DATABASE_ALLOW_PLAIN_TEXT are settings"
        )
    if "target_session_attrs" in others:
        return (
            "has the option target_session_attrs after the ?; remove it: the worker itself looks "
            "for the host that can write"
        )
    if others:
        return (
            "has options after the ? that are not supported; host and port are, for a Unix socket "
            "(WORKER_DATABASE_SCHEMA names the schema; write %3F for a ? in the database's name)"
        )
    if hosts:
        return "names hosts both before and after the ?; remove the option"
    return _socket_problem(found)


def _socket_problem(found: dict[str, str]) -> str | None:
    folder, port = found.get("host", ""), found.get("port", "1")
    if not folder.startswith("/") or "," in folder or not folder.isprintable():
        return (
            "has an option after the ? that is not the folder of a Unix socket, such as "
            "?host=/run/postgresql; write other hosts before the database's name"
        )
    if not (port.isascii() and port.isdigit() and 0 < int(port[:9]) <= MAX_PORT):
        return f"has a port after the ? that is not a number from 1 to {MAX_PORT}"
    return None


def _hosts_problem(hosts: str, options: str) -> str | None:
    if options:
        return None  # A Unix socket.
    if not hosts:
        return (
            "has no host; write localhost for this machine, or ?host=/run/postgresql at the end "
            "for a Unix socket"
        )
    for host in hosts.split(","):
        if problem := host_problem(f"postgresql://{host}", host):
            return problem
    return None


def _name_problem(name: str) -> str | None:
    if not name:
        return "has no database; write its name after the hosts and a slash"
    if "/" in name:
        return "has a raw / in the database's name, where it must be written %2F"
    if problem := escapes_problem(name, "the database's name"):
        return problem
    # PostgreSQL would cut it off.
    if len(unquote(name).encode()) > 63:
        return "has a name of a database of over 63 bytes, which is more than PostgreSQL allows"
    return None
