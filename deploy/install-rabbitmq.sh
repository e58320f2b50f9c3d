#!/bin/sh
# Makes sure that a RabbitMQ server is installed, for the tests and the demo, which run nodes of
# their own. The service that Debian's package brings is not started by it.
set -eu

fail() {
    echo "install-rabbitmq: $*" >&2
    exit 1
}

if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; then
    exit 0
fi

needed="Install a RabbitMQ server (Debian's package rabbitmq-server, 3.10 or newer), then try again."
command -v apt-get >/dev/null || fail "no RabbitMQ server here, and no apt-get to install it. $needed"
if [ "$(id -u)" -eq 0 ]; then
    root=
elif sudo -n true 2>/dev/null; then
    root="sudo -n"
else
    fail "no RabbitMQ server here, and no right to install it as $(id -un). $needed"
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

echo "install-rabbitmq: installing Debian's rabbitmq-server, without starting it"
$root apt-get -qq update
$root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends rabbitmq-server >/dev/null
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] ||
    fail "Debian's rabbitmq-server is installed, but not where it was expected. $needed"
if [ -d /run/systemd/system ]; then
    echo "install-rabbitmq: it would start at the next boot; to prevent that: systemctl disable rabbitmq-server"
fi
