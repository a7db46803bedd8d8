#!/bin/sh
# Installs Coracle from this checkout and starts it; run again, it upgrades in place and
# the pods keep running. `coracle reset` takes everything away again.
#
#   INSTALL_CORACLE_BINARY   an executable to install instead of building one
#   INSTALL_CORACLE_EXEC     flags for `coracle server` (default: those of last time);
#                            /etc/coracle/config.yaml is the better place for them
set -eu

BIN=/usr/local/bin/coracle
LOG=/var/log/coracle.log
PID_FILE=/run/coracle/supervisor.pid
UNIT=/etc/systemd/system/coracle.service
INIT=/etc/init.d/coracle
# What the build needs at least; see rust-version in Cargo.toml.
RUST_MINOR_MIN=90
# A board with a slow card gets this long from start to Ready.
READY_SECONDS=180

say() { echo "install: $*"; }
fail() {
    echo "install: $*" >&2
    exit 1
}

has() { command -v "$1" > /dev/null 2>&1; }

# --- Nothing is changed before the host is known to be fit.

check_host() {
    [ "$(uname -s)" = Linux ] || fail "Coracle runs on Linux; this is $(uname -s)"
    case $(uname -m) in
        x86_64 | amd64 | aarch64 | arm64) ;;
        *) fail "no Coracle for $(uname -m); there is one for x86_64 and aarch64" ;;
    esac
    [ "$(id -u)" = 0 ] || fail "this needs root: sudo ./install.sh"
    if [ -n "${INSTALL_CORACLE_BINARY:-}" ]; then
        [ -f "$INSTALL_CORACLE_BINARY" ] || fail "$INSTALL_CORACLE_BINARY does not exist"
        "$INSTALL_CORACLE_BINARY" version > /dev/null ||
            fail "$INSTALL_CORACLE_BINARY does not run on this host"
    else
        [ -f Cargo.toml ] || fail "run it from a checkout, or set INSTALL_CORACLE_BINARY"
    fi
}

# --- The executable

install_packages() {
    if has apt-get; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        apt-get install -qy --no-install-recommends gcc libc6-dev curl ca-certificates
    elif has dnf; then
        dnf install -qy gcc glibc-devel curl ca-certificates
    elif has apk; then
        apk add --quiet gcc musl-dev curl ca-certificates
    elif has pacman; then
        pacman -S --needed --noconfirm gcc glibc curl ca-certificates
    elif has zypper; then
        zypper --non-interactive --quiet install gcc glibc-devel curl ca-certificates
    else
        fail "no package manager that is known here (apt, dnf, apk, pacman, zypper);" \
            "install gcc and the C headers, then run this again"
    fi
}

cargo_is_fit() {
    has cargo || return 1
    version=$(cargo --version) || return 1
    version=${version#cargo }
    minor=${version#*.}
    minor=${minor%%.*}
    [ "${version%%.*}" -gt 1 ] || [ "$minor" -ge "$RUST_MINOR_MIN" ]
}

build() {
    if ! has gcc || { [ ! -e /usr/include/stdlib.h ] && [ ! -e /usr/include/bits/alltypes.h ]; }; then
        say "installing what the build needs"
        install_packages
    fi
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    if ! cargo_is_fit; then
        say "installing Rust (rustup)"
        has curl || install_packages
        # Ahead of a distribution's older one on the PATH.
        PATH=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --quiet --profile minimal --no-modify-path
        cargo_is_fit || fail "rustup has not brought a Rust of 1.$RUST_MINOR_MIN or later"
    fi
    say "building; this takes some minutes"
    cargo build --release --locked --bin coracle
    built=${CARGO_TARGET_DIR:-target}/release/coracle
}

put_in_place() {
    mkdir -p "${BIN%/*}"
    # In one step: a server that starts meanwhile finds the old one or the new one.
    cp "$built" "$BIN.new"
    chmod 0755 "$BIN.new"
    mv -f "$BIN.new" "$BIN"
    say "installed $("$BIN" version) as $BIN"
}

# --- The service

service_kind() {
    if [ -d /run/systemd/system ] && has systemctl; then
        echo systemd
    elif has openrc-run && [ -d /run/openrc ]; then
        echo openrc
    else
        echo background
    fi
}

supervisor_pid() {
    pid=$(cat "$PID_FILE" 2> /dev/null) || return 1
    [ -n "$pid" ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q coracle-supervisor &&
        echo "$pid"
}

# Flags of last time, where none are given now.
flags() {
    if [ -n "${INSTALL_CORACLE_EXEC+set}" ]; then
        echo "$INSTALL_CORACLE_EXEC"
        return
    fi
    case $kind in
        systemd) sed -n "s|^ExecStart=$BIN server||p" "$UNIT" 2> /dev/null || true ;;
        openrc) sed -n 's|^command_args="server\(.*\)"|\1|p' "$INIT" 2> /dev/null || true ;;
        background)
            if pid=$(supervisor_pid); then
                tr '\0' '\n' < "/proc/$pid/cmdline" | sed '1,/^coracle-supervisor$/d' | tr '\n' ' '
            fi
            ;;
    esac
}

# Starts the server again when it ends, and keeps its log within bounds. Runs as
# `sh -c "$SUPERVISOR" coracle-supervisor FLAGS...`.
SUPERVISOR='
bin=/usr/local/bin/coracle log=/var/log/coracle.log
if [ -r /etc/default/coracle ]; then set -a; . /etc/default/coracle; set +a; fi
echo $$ > /run/coracle/supervisor.pid
trap "kill \$server \$trim 2> /dev/null; wait; rm -f /run/coracle/supervisor.pid; exit 0" TERM INT
trap "" HUP
(
    trap "kill \$! 2> /dev/null; exit 0" TERM
    while sleep 3600 & wait $!; do
        if [ "$(wc -c < $log)" -gt 10485760 ]; then cp $log $log.1 && : > $log; fi
    done
) &
trim=$!
while :; do
    $bin server "$@" &
    server=$!
    wait $server
    echo "coracle-supervisor: the server ended with $?; it is started again in 2 s"
    sleep 2 &
    server=$!
    wait $server
done'

stop_background() {
    pid=$(supervisor_pid) || return 0
    kill -TERM "$pid"
    waited=0
    while [ -d "/proc/$pid" ]; do
        [ $waited -lt 300 ] || fail "the running server (supervisor $pid) does not end; see $LOG"
        sleep 0.1
        waited=$((waited + 1))
    done
}

start_service() {
    flags=$(flags)
    case $kind in
        systemd)
            sed "s|^ExecStart=.*|ExecStart=$BIN server $flags|; s| *$||" \
                packaging/coracle.service > "$UNIT"
            systemctl daemon-reload
            systemctl enable --quiet coracle
            # Returns when the server says that it is ready.
            systemctl restart coracle || {
                journalctl --no-pager --lines 20 --unit coracle >&2
                fail "the server does not start; see journalctl --unit coracle"
            }
            ;;
        openrc)
            sed "s|^command_args=.*|command_args=\"server $flags\"|" packaging/coracle.openrc > "$INIT"
            chmod 0755 "$INIT"
            mark_log
            rc-update add coracle default
            rc-service coracle restart
            wait_for_log
            ;;
        background)
            stop_background
            mkdir -p "${PID_FILE%/*}"
            mark_log
            # Each flag is a word of its own.
            # shellcheck disable=SC2086
            setsid sh -c "$SUPERVISOR" coracle-supervisor $flags < /dev/null >> "$LOG" 2>&1 &
            wait_for_log
            ;;
    esac
}

mark_log() {
    touch "$LOG"
    marked=$(wc -c < "$LOG")
}

# What the server has said since it was started.
said() { tail -c "+$((marked + 1))" "$LOG"; }

wait_for_log() {
    waited=0
    until said | grep -q 'ready; use it with'; do
        if said | grep -q -e '^coracle: ' -e '^coracle-supervisor: ' -e '^error: '; then
            said | tail -n 20 >&2
            fail "the server does not start; see $LOG"
        fi
        [ $waited -lt $((READY_SECONDS * 5)) ] || fail "not ready after $READY_SECONDS s; see $LOG"
        sleep 0.2
        waited=$((waited + 1))
    done
    if said | grep -q 'node is not Ready yet'; then
        fail "the server runs, but its node is not Ready; see $LOG"
    fi
}

kubeconfig() {
    configured=$(flags | sed -n 's/.*--write-kubeconfig[ =]\([^ ]*\).*/\1/p')
    echo "${configured:-/etc/coracle/kubeconfig.yaml}"
}

case ${INSTALL_CORACLE_BINARY:-} in
    '' | /*) ;;
    *) INSTALL_CORACLE_BINARY=$PWD/$INSTALL_CORACLE_BINARY ;;
esac
cd "$(dirname "$0")"
check_host
kind=$(service_kind)
if [ -n "${INSTALL_CORACLE_BINARY:-}" ]; then
    built=$INSTALL_CORACLE_BINARY
else
    build
fi
put_in_place
start_service
say "the node is Ready"
say "use it with: export KUBECONFIG=$(kubeconfig)"
say "take it away with: coracle reset"
