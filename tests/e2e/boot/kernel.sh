#!/bin/bash
# Runs inside a computer with two nodes of memory, huge pages, swap and AppArmor: what pods
# get of that, what becomes of pods that take more, and disks and exports of the network.
. /root/common.sh

# --- The node.

cat > /etc/apparmor.d/no-writes << 'PROFILE'
profile no-writes flags=(attach_disconnected) {
  file,
  network,
  capability,
  signal,
  deny /tmp/** w,
}
PROFILE
apparmor_parser -r /etc/apparmor.d/no-writes
fallocate -l 256M /swap
chmod 0600 /swap
mkswap /swap
swapon /swap
kilobytes() { awk -v name="$1:" '$1 == name { print $2 }' /proc/meminfo; }
mkdir -p /etc/coracle
cat > /etc/coracle/kubelet.yaml << 'CONFIG'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cpuManagerPolicy: static
reservedSystemCPUs: "0"
memoryManagerPolicy: Static
topologyManagerPolicy: single-numa-node
systemReserved: {memory: 256Mi}
evictionHard: {memory.available: 64Mi, nodefs.available: 2%, imagefs.available: 2%}
reservedMemory: [{numaNode: 0, limits: {memory: 320Mi}}]
failSwapOn: false
memorySwap: {swapBehavior: LimitedSwap}
featureGates: {MemoryQoS: true}
podPidsLimit: 60
CONFIG
echo "kubelet-config: /etc/coracle/kubelet.yaml" > /etc/coracle/config.yaml
cd /checkout
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
coracle images import /root/web.tar
is "$(kubectl get node board -o jsonpath='{.status.allocatable.cpu}')" 3
is "$(kubectl get node board -o jsonpath='{.status.allocatable.hugepages-2Mi}')" 32Mi

# --- What a pod asks for, and what its process has.

pages='(busybox fallocate -l 4M /huge/a && busybox fallocate -l 2M /huge/b) > /out 2>&1'
tries='touch /tmp/x; mount -t tmpfs t /tmp; touch /tmp/y'
some_memory='resources: {requests: {memory: 64Mi}, limits: {memory: 128Mi}}'
{
    all='{cpu: 1, memory: 64Mi, hugepages-2Mi: 4Mi}'
    pod pinned "$pages; exec sleep 10001" \
        "resources: {requests: $all, limits: $all}, volumeMounts: [{name: v, mountPath: /huge}]" \
        'volumes: [{name: v, emptyDir: {medium: HugePages}}]'
    pod shared 'exec sleep 10002' "$some_memory"
    pod plain "($tries) > /out 2>&1; exec sleep 10003" \
        'securityContext: {capabilities: {add: [SYS_ADMIN]}}'
    pod unconfined "($tries) > /out 2>&1; exec sleep 10004" \
        'securityContext: {appArmorProfile: {type: Unconfined}, capabilities: {add: [SYS_ADMIN]}}'
    pod own "($tries) > /out 2>&1; exec sleep 10005" '' \
        'securityContext: {appArmorProfile: {type: Localhost, localhostProfile: no-writes}}'
    pod missing 'exec sleep 10006' '' \
        'securityContext: {appArmorProfile: {type: Localhost, localhostProfile: nobodys}}'
    pod mapped 'touch /d/f /m/f /f; id -u > /out; exec sleep 10007' \
        'volumeMounts: [{name: d, mountPath: /d}, {name: m, mountPath: /m}]' \
        'hostUsers: false
  volumes: [{name: d, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}]'
} | kubectl apply -f -
ready pod/pinned pod/shared pod/plain pod/unconfined pod/own pod/mapped

# Huge pages: as many as the limit, and no more.
pinned=$(sleeper 10001)
group=$(group_of "$pinned")
is "$(cat "$group/hugetlb.2MB.max")" $((4 << 20))
is "$(cat "$group/hugetlb.2MB.current")" $((4 << 20))
says "$(file_of "$pinned" out)" fallocate

# A CPU and memory of its own, of one node; the others keep off the CPU.
case "$(cat "$group/cpuset.cpus.effective") $(cat "$group/cpuset.mems.effective")" in
    "1 0") rest=0,2-3 ;;
    "2 1") rest=0-1,3 ;;
    "3 1") rest=0-2 ;;
    *) exit 1 ;;
esac
cpus_of() { cat "$(group_of "$(sleeper "$1")")/cpuset.cpus.effective"; }
is "$(cpus_of 10002)" "$rest"
is "$(cpus_of 10003)" "$rest"

# Swap: none for who is guaranteed or asks for nothing, a share for others. And what
# MemoryQoS makes of requests and limits.
group=$(group_of "$(sleeper 10002)")
share=$((64 * 1048576 * $(kilobytes SwapTotal) / $(kilobytes MemTotal)))
is "$(cat "$group/memory.swap.max")" $((share / 4096 * 4096))
is "$(cat "$group/memory.min")" $((64 << 20))
is "$(cat "$group/memory.high")" $(((64 * 1048576 + 64 * 1048576 * 9 / 10) / 4096 * 4096))
is "$(cat "$(group_of "$pinned")/memory.swap.max")" 0
is "$(cat "$(group_of "$(sleeper 10003)")/memory.swap.max")" 0

# AppArmor: the runtime's own profile unless a pod says otherwise.
label() { cat "/proc/$(sleeper "$1")/attr/apparmor/current"; }
is "$(label 10003)" "coracle-default (enforce)"
says "$(file_of "$(sleeper 10003)" out)" "Permission denied"
is "$(label 10004)" unconfined
is "$(file_of "$(sleeper 10004)" out)" ""
is "$(label 10005)" "no-writes (enforce)"
says "$(file_of "$(sleeper 10005)" out)" "/tmp/x: Permission denied"
is "$(kubectl exec own -- cat /proc/self/attr/current)" "no-writes (enforce)"
missing=$(kubectl get pod missing -o jsonpath='{.status.containerStatuses[0].state.waiting}')
says "$missing" '"reason":"CreateContainerError"'
says "$missing" "apparmor profile not found nobodys"

# A user namespace: root there is nobody here, and its files are its own in either view.
mapped=$(sleeper 10007)
is "$(file_of "$mapped" out)" 0
read -r inside first length < "/proc/$mapped/uid_map"
is "$inside $length" "0 65536"
none [ "$first" = 0 ]
is "$(awk '$1 == "Uid:" { print $2 }' "/proc/$mapped/status")" "$first"
is "$(kubectl exec mapped -- busybox stat -c %u /d/f /m/f /f | sort -u)" 0
is "$(stat -c %u /var/lib/coracle/agent/pods/*/volumes/kubernetes.io~empty-dir/d/f)" 0

# Pressure, and devices that nobody gave.
kubectl get --raw /api/v1/nodes/board/proxy/metrics/cadvisor > /root/metrics
grep -q '^container_pressure_memory_stalled_seconds_total{container="a".*pod="pinned"' /root/metrics
says "$(kubectl get --raw /api/v1/nodes/board/proxy/stats/summary)" '"psi"'
disk=$(lsblk -no MAJ:MIN /dev/vda | tr -d ' ')
denied=$(kubectl exec unconfined -- sh -c "busybox mknod /d b ${disk/:/ } && head -c 1 /d" 2>&1 || true)
says "$denied" "Operation not permitted"

# The CPU comes back.
kubectl delete pod pinned missing own unconfined mapped
returned() { [ "$(cpus_of 10002)" = 0-3 ]; }
until_true returned

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
        "$some_memory"
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

# --- Disks and exports of other hosts, which this one is too.

modprobe -a iscsi_tcp sd_mod nfsd
truncate -s 64M /root/lun
systemctl start tgt iscsid
target() { tgtadm --lld iscsi "$@"; }
until_true target --op show --mode sys
target --op new --mode target --tid 1 --targetname iqn.2026-01.example:disk
target --op new --mode logicalunit --tid 1 --lun 1 --backing-store /root/lun
target --op bind --mode target --tid 1 --initiator-address ALL
target --op new --mode account --user carrier --password crate-of-secrets
target --op bind --mode account --tid 1 --user carrier
mkdir -p /srv/export
echo '/srv/export *(rw,no_root_squash,no_subtree_check,fsid=0)' > /etc/exports
systemctl restart nfs-server

sessions() { iscsiadm --mode session 2>&1 || true; }
kubectl create secret generic chap --type=kubernetes.io/iscsi-chap \
    --from-literal=node.session.auth.username=carrier \
    --from-literal=node.session.auth.password=wrong-of-secrets
{
    disk='targetPortal: 10.0.2.15, iqn: "iqn.2026-01.example:disk", lun: 1, fsType: ext4'
    chap='chapAuthSession: true, secretRef: {name: chap, namespace: default}'
    volume disk "iscsi: {$disk, $chap}"
    volume export 'nfs: {server: 10.0.2.15, path: /}'
    user first disk 'echo kept > /v/file; exec sleep 10010'
    user exporter export 'echo there > /v/file; exec sleep 10011'
} | kubectl apply -f -
refused() {
    kubectl get events --field-selector reason=FailedMount -o jsonpath='{.items[*].message}' |
        grep 'failed to log in'
}
until_true refused
kubectl patch secret chap -p \
    "{\"data\": {\"node.session.auth.password\": \"$(echo -n crate-of-secrets | base64)\"}}"
ready pod/first pod/exporter
says "$(sessions)" iqn.2026-01.example:disk
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
