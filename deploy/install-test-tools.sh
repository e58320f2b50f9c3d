#!/bin/sh
# Installs the programs that the tests and the demo run, if they are missing: a RabbitMQ and a
# PostgreSQL server, to start nodes of their own, and strace, which makes a disk fail on cue. It
# starts no service that Debian's packages bring, and makes no database cluster.
set -eu

fail() {
    echo "install-test-tools: $*" >&2
    exit 1
}

has_rabbitmq() {
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null
}

has_postgresql() {
    # Debian has a folder for each version, none of which is on the path.
    for program in /usr/lib/postgresql/*/bin/postgres; do
        [ ! -x "$program" ] || return 0
    done
    command -v postgres >/dev/null
}

missing=
has_rabbitmq || missing="rabbitmq-server"
has_postgresql || missing="$missing postgresql"
command -v strace >/dev/null || missing="$missing strace"
if [ -z "$missing" ]; then
    exit 0
fi

needed="Install these packages (the names are Debian's): $missing. Then try again."
command -v apt-get >/dev/null || fail "no apt-get here. $needed"
if [ "$(id -u)" -eq 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root="sudo -n"
elif has_rabbitmq && has_postgresql; then
    # The tests that need it are skipped and say why.
    echo "install-test-tools: continuing without strace, because $(id -un) may not install it"
    exit 0
else
    fail "$(id -un) may not install packages. $needed"
fi

ours=
# A shell that is killed by a signal does not run a trap on EXIT; one that exits does. Unquoted: one
# word for each file.
# shellcheck disable=SC2086,SC2154
trap '[ -z "$ours" ] || $root rm -f $ours' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Debian starts the services that it installs unless this program forbids it (invoke-rc.d(8)). If the
# machine already has such a program, that is its own decision, and it stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    ours=$policy
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi
if ! has_postgresql; then
    # With a server's first package comes a cluster that starts at each boot (pg_createcluster(1)).
    settings=/etc/postgresql-common/createcluster.d
    $root mkdir -p "$settings"
    ours="$ours $settings/install-test-tools.conf"
    echo 'create_main_cluster = false' |
        $root tee "$settings/install-test-tools.conf" >/dev/null
fi

echo "install-test-tools: installing $missing, without starting anything"
$root apt-get -qq update
# Unquoted: one word for each package.
# shellcheck disable=SC2086
$root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null
has_rabbitmq || fail "rabbitmq-server is installed, but not where it was expected. $needed"
has_postgresql || fail "postgresql is installed, but not where it was expected. $needed"
if [ -d /run/systemd/system ] && [ "${missing#rabbitmq}" != "$missing" ]; then
    echo "install-test-tools: RabbitMQ would start at the next boot; to prevent that:" \
        "systemctl disable rabbitmq-server"
fi
