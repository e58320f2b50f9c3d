#!/bin/sh
# Builds the virtual environment: every package by its pinned hash, then this project.
# `make` and the Dockerfile both call it, so every run of the tests tries the image's steps too.
#
#   PYTHON        the interpreter of a new environment (default: the first of python3.11,
#                 python3.12, python3.13 and python3 that is new enough)
#   VENV          where to build it (default: .venv)
#   REQUIREMENTS  the pinned packages (default: deploy/requirements-dev.txt)
#   EDITABLE      yes: use the work tree as it is; no: copy the project into the environment
set -eu

cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
requirements=${REQUIREMENTS:-deploy/requirements-dev.txt}
editable=${EDITABLE:-yes}

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_environments() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer."
        python=$PYTHON
        return
    fi
    for python in python3.11 python3.12 python3.13 python3; do
        # Run it, because being on the path is not enough: a version manager puts names there for
        # versions that it does not have.
        if is_new_enough "$python"; then
            return
        fi
    done
    fail "Python 3.11 or newer is needed. Install it, or name it: make setup PYTHON=..."
}

# Debian packages the modules that make environments separately from the interpreter.
install_venv_module() {
    needed="$python cannot make virtual environments. Install Debian's python3-venv (or set PYTHON)."
    command -v apt-get >/dev/null || fail "$needed"
    if [ "$(id -u)" -eq 0 ]; then
        root=
    elif sudo -n true 2>/dev/null; then
        root="sudo -n"
    else
        fail "$needed"
    fi
    echo "setup: installing Debian's python3-venv"
    $root apt-get -qq update
    $root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-venv >/dev/null
    can_make_environments "$python" || fail "$needed"
}

# Emptying the folder removes packages of an older list. Only a folder that is an environment is
# ever emptied, whatever VENV says.
make_environment() {
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv is there and is no virtual environment. Set VENV to another folder."
    fi
    echo "setup: $venv from $requirements ($("$python" --version))"
    "$python" -m venv --clear "$venv"
}

pip_install() {
    "$venv/bin/python" -m pip install -qq --no-input --disable-pip-version-check "$@"
}

checksum() {
    # The folder is part of it, because an environment that was moved does not work. The settings of
    # tools are not; they come after the project's own tables.
    { pwd; cat "$requirements" deploy/setup.sh; sed '/^\[tool\./,$d' pyproject.toml; } | cksum
}

stamp=$venv/.complete
if [ "$editable" = yes ] && [ -x "$venv/bin/python" ] &&
    [ "$(cat "$stamp" 2>/dev/null)" = "$(checksum)" ]; then
    exit 0
fi

find_python
can_make_environments "$python" || install_venv_module
make_environment
pip_install --require-hashes -r "$requirements"
# The build backend is one of the pinned packages; an isolated build would fetch its own, unpinned.
if [ "$editable" = yes ]; then
    pip_install --no-deps --no-build-isolation --editable .
else
    pip_install --no-deps --no-build-isolation .
    # What only installs packages takes a fifth of the space, and would be an intruder's tool.
    "$venv/bin/python" -m pip uninstall -qq --yes flit_core pip
fi
checksum >"$stamp"
