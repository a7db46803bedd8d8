#!/bin/bash
# Runs inside a computer with a new kernel: what becomes of pods that take more than is theirs,
# and disks and exports of the network.
. /root/common.sh

mkdir -p /etc/coracle
cat > /etc/coracle/kubelet.yaml << 'CONFIG'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard: {memory.available: 64Mi, nodefs.available: 2%, imagefs.available: 2%}
podPidsLimit: 60
CONFIG
echo "kubelet-config: /etc/coracle/kubelet.yaml" > /etc/coracle/config.yaml
cd /checkout
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
coracle images import /root/web.tar

# --- Pods that want too much.

{
    pod bomb '(while true; do sleep 20000 & done); exec sleep 10013'
    pod eater 'tail /dev/zero & sleep 1000' 'resources: {limits: {memory: 32Mi}}'
    pod filler 'dd if=/dev/zero of=/m/x bs=1M count=40; sleep 1000' \
        'volumeMounts: [{name: m, mountPath: /m}]' \
        'volumes: [{name: m, emptyDir: {sizeLimit: 16Mi}}]'
    pod rammer 'dd if=/dev/zero of=/m/x bs=1M 2> /out; exec sleep 10009' \
        'volumeMounts: [{name: m, mountPath: /m}]' \
        'volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 8Mi}}]'
    pod escaper 'cd /sys/fs/cgroup; mount -o remount,rw .; echo max > memory.max; mkdir mine; exec sleep 10008' \
        'resources: {requests: {memory: 64Mi}, limits: {memory: 128Mi}}'
} | kubectl apply -f -
ended eater
is "$(kubectl get pod eater -o jsonpath='{.status.containerStatuses[0].state.terminated.reason}')" OOMKilled
until_true sleeper 10008
escaper=$(group_of "$(sleeper 10008)")
is "$(cat "$escaper/memory.max")" $((128 << 20))
none [ -e "$escaper/mine" ]
until_true sleeper 10009
says "$(file_of "$(sleeper 10009)" out)" "No space left on device"
bomb=$(dirname "$(group_of "$(pgrep -f '^sleep 20000$' | head -n 1)")")
is "$(cat "$bomb/pids.max")" 60
full() { grep -q 'max [1-9]' "$bomb/pids.events"; }
until_true full
ended filler
says "$(kubectl get pod filler -o jsonpath='{.status.reason} {.status.message}')" \
    'Evicted Usage of EmptyDir volume "m" exceeds the limit "16Mi"'
kubectl delete pod --all
cleared() { ! [ -e "$bomb" ]; }
until_true cleared

# --- The machine itself runs out of memory; the kernel may be told that it has, which is quicker
# than to take all of it. Whoever was promised nothing goes first.

pod hog 'exec sleep 10014' | kubectl apply -f -
until_true sleeper 10014
victim=$(sleeper 10014)
echo f > /proc/sysrq-trigger
ended hog
is "$(kubectl get pod hog -o jsonpath='{.status.containerStatuses[0].state.terminated.reason}')" OOMKilled
told() { kubectl get events --field-selector reason=SystemOOM -o jsonpath='{.items[*].message}'; }
is_told() { [ "$(told)" = "System OOM encountered, victim process: sleep, pid: $victim" ]; }
until_true is_told
kubectl delete pod hog

# --- Disks and exports of other hosts, which this one is too.

modprobe -a iscsi_tcp sd_mod nfsd
truncate -s 64M /root/lun
systemctl start tgt iscsid
target() { tgtadm --lld iscsi "$@"; }
until_true target --op show --mode sys
target --op new --mode target --tid 1 --targetname iqn.2026-01.example:disk
target --op new --mode logicalunit --tid 1 --lun 1 --backing-store /root/lun
target --op bind --mode target --tid 1 --initiator-address ALL
# Who may look for targets, who may use this one, and who it says it is.
account() { # name, password, what it is bound to
    target --op new --mode account --user "$1" --password "$2"
    # shellcheck disable=SC2086
    target --op bind --mode account --user "$1" $3
}
account finder finds-the-disks ''
account carrier crate-of-secrets '--tid 1'
account crane crane-of-crates '--tid 1 --outgoing'
target --op new --mode portal --param portal=10.0.2.15:3261
mkdir -p /srv/export
echo '/srv/export *(rw,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
systemctl restart nfs-server

sessions() { iscsiadm --mode session 2>&1 || true; }
kubectl create secret generic chap --type=kubernetes.io/iscsi-chap \
    --from-literal=discovery.sendtargets.auth.username=finder \
    --from-literal=discovery.sendtargets.auth.password=wrong-of-the-disks \
    --from-literal=node.session.auth.username=carrier \
    --from-literal=node.session.auth.password=wrong-of-secrets \
    --from-literal=node.session.auth.username_in=crane \
    --from-literal=node.session.auth.password_in=wrong-of-crates
{
    # Nobody listens on the second of them; what is told is why the last one failed.
    portals='portals: ["10.0.2.15:3999", "10.0.2.15:3261"]'
    disk="targetPortal: 10.0.2.15, $portals, iqn: 'iqn.2026-01.example:disk', lun: 1, fsType: ext4"
    chap='chapAuthDiscovery: true, chapAuthSession: true, secretRef: {name: chap, namespace: default}'
    volume disk "iscsi: {$disk, $chap}"
    volume export 'nfs: {server: 10.0.2.15, path: /}'
    user first disk 'echo kept > /v/file; exec sleep 10010'
    user exporter export 'echo there > /v/file; exec sleep 10011'
} | kubectl apply -f -
refused() { # what
    kubectl get events --field-selector reason=FailedMount -o jsonpath='{.items[*].message}' |
        grep "failed to $1"
}
becomes() { # key, value
    kubectl patch secret chap -p "{\"stringData\": {\"$1\": \"$2\"}}"
}
until_true refused 'discover targets: iscsiadm: Login failed to authenticate'
none refused 'log in'
becomes discovery.sendtargets.auth.password finds-the-disks
becomes node.session.auth.password crate-of-secrets
# The target has yet to say who it is.
until_true refused 'log in'
becomes node.session.auth.password_in crane-of-crates
ready pod/first pod/exporter
# By both portals; without a device mapper the first one's disk is used.
is "$(sessions | grep -c iqn.2026-01.example:disk)" 2
says "$(sessions)" 10.0.2.15:3260,
says "$(sessions)" 10.0.2.15:3261,
by_path=/dev/disk/by-path/ip-10.0.2.15:3260-iscsi-iqn.2026-01.example:disk-lun-1
is "$(sed -n 's/.* \/v .* - ext4 \([^ ]*\) .*/\1/p' "/proc/$(sleeper 10010)/mountinfo")" "$(realpath $by_path)"
is "$(cat /srv/export/file)" there
grep -q ' /v .* - nfs4 10.0.2.15:/' "/proc/$(sleeper 10011)/mountinfo"
kubectl delete pod first exporter
gone() { says "$(sessions)" "No active sessions"; }
until_true gone
none grep -e nfs4 -e kubernetes.io~iscsi /proc/self/mountinfo
user second disk 'cat /v/file > /out; exec sleep 10012' | kubectl apply -f -
ready pod/second
is "$(file_of "$(sleeper 10012)" out)" kept
kubectl delete pod second
until_true gone
