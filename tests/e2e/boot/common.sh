# What the scripts of the computers share. Each says on a line of its own how it ended,
# and turns the computer off.
set -euo pipefail
service_manager=$1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export KUBECONFIG=/etc/coracle/kubeconfig.yaml

end() {
    if [ "$1" = 0 ]; then
        echo "boot.sh: all is well"
    else
        echo "boot.sh: failed"
        if [ -e "$KUBECONFIG" ]; then
            kubectl --request-timeout=10s get pods -A -o wide || true
            kubectl --request-timeout=10s get events || true
        fi
        journalctl --no-pager --unit coracle 2> /dev/null | tail -n 60 || true
        tail -n 60 /var/log/coracle.log 2> /dev/null || true
    fi
    sync
    # No init system is asked: this must work with any of them, and at any time.
    echo o > /proc/sysrq-trigger
    sleep 60
}
trap 'end $?' EXIT
set -x

none() { if "$@"; then echo "boot.sh: $* succeeds"; return 1; fi; }
is() { [ "$1" = "$2" ] || { echo "boot.sh: $1 instead of $2"; return 1; }; }
says() { # what is said, what must be in it
    case $1 in *"$2"*) ;; *) echo "boot.sh: no $2 in: $1"; return 1 ;; esac
}

until_true() {
    for _ in $(seq 120); do
        if "$@"; then return 0; fi
        sleep 0.5
    done
    echo "boot.sh: never true: $*"
    return 1
}

manage() { # stop|start|restart
    case $service_manager in
        systemd) systemctl "$1" coracle ;;
        openrc) rc-service coracle "$1" ;;
    esac
}

enabled() {
    case $service_manager in
        systemd) systemctl is-enabled --quiet coracle 2> /dev/null ;;
        openrc) rc-update show default | grep -qw coracle ;;
    esac
}

server_pid() { cat /run/coracle/server.pid; }
api_answers() { kubectl get --raw /readyz > /dev/null 2>&1; }
restarts() { kubectl get pod "$1" -o jsonpath='{.status.containerStatuses[0].restartCount}'; }
ready() { kubectl wait --for=condition=Ready --timeout=120s "$@"; }
ended() { kubectl wait --for=jsonpath='{.status.phase}'=Failed --timeout=120s "pod/$1"; }
# A container's process by the time that it sleeps for, its cgroup, and a file of it.
sleeper() { pgrep -f "^sleep $1\$"; }
group_of() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"; }
file_of() { cat "/proc/$1/root/$2"; }

pod() { # name, script of its container, fields of that, of the pod
    cat << POD
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - {name: a, image: "web:1", imagePullPolicy: Never, command: [/bin/sh, -c, "$2"]${3:+, $3}}
${4:+  $4}
---
POD
}
volume() { # name, source, access mode
    cat << VOLUME
apiVersion: v1
kind: PersistentVolume
metadata: {name: $1}
spec:
  capacity: {storage: 32Mi}
  accessModes: [${3:-ReadWriteOnce}]
  storageClassName: none
  claimRef: {namespace: default, name: $1}
  $2
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec:
  accessModes: [${3:-ReadWriteOnce}]
  storageClassName: none
  volumeName: $1
  resources: {requests: {storage: 32Mi}}
---
VOLUME
}
user() { # name, claim, script, fields of the pod
    pod "$1" "$3" 'volumeMounts: [{name: v, mountPath: /v}]' \
        "volumes: [{name: v, persistentVolumeClaim: {claimName: $2}}]${4:+
  $4}"
}

# What Debian's init scripts do where there is no systemd; the minimal OpenRC has none.
modprobe -a virtio_net
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
echo board > /proc/sys/kernel/hostname
ip link set lo up
link=$(ls /sys/class/net | grep -v -e '^lo$' -e '^coracle' -e '^veth' | head -n 1)
if ! ip route | grep -q ^default; then
    ip link set "$link" up
    ip addr add 10.0.2.15/24 dev "$link"
    ip route add default via 10.0.2.2
fi
is "$(stat -fc %T /sys/fs/cgroup)" cgroup2fs
