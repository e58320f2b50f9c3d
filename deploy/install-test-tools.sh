#!/bin/sh
# Makes sure that the programs which the tests and the demo run are installed: a RabbitMQ server, of
# which they start nodes of their own, and strace, which makes a disk fail on cue. The service that
# Debian's package of RabbitMQ brings is not started by it.
set -eu

fail() {
    echo "install-test-tools: $*" >&2
    exit 1
}

has_rabbitmq() {
    [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null
}

missing=
has_rabbitmq || missing="rabbitmq-server"
command -v strace >/dev/null || missing="$missing strace"
if [ -z "$missing" ]; then
    exit 0
fi

needed="Install Debian's packages (or others of the same): $missing. Then try again."
command -v apt-get >/dev/null || fail "no apt-get here. $needed"
if [ "$(id -u)" -eq 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root="sudo -n"
elif has_rabbitmq; then
    # The tests that need it say so, and are left out.
    echo "install-test-tools: going on without strace, as $(id -un) may not install it"
    exit 0
else
    fail "no right to install as $(id -un). $needed"
fi

# Debian starts what it installs unless this program says no (invoke-rc.d(8)). One that is there
# already is the machine's own decision, and stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$root rm -f "$policy"' EXIT
    # An interrupted shell runs the trap above only if it ends by itself.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee "$policy" >/dev/null
    $root chmod 755 "$policy"
fi

echo "install-test-tools: installing $missing, without starting anything"
$root apt-get -qq update
# Unquoted: one word for each package.
# shellcheck disable=SC2086
$root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends $missing >/dev/null
has_rabbitmq || fail "rabbitmq-server is installed, but not where it was expected. $needed"
if [ -d /run/systemd/system ] && [ "${missing#rabbitmq}" != "$missing" ]; then
    echo "install-test-tools: RabbitMQ would start at the next boot; to prevent that:" \
        "systemctl disable rabbitmq-server"
fi
