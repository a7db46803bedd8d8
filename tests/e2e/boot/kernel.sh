#!/bin/bash
# Runs inside a computer with two nodes of memory, huge pages, swap and AppArmor: what pods
# get of that.
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
memoryReservationPolicy: TieredReservation
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
    pod equal 'exec sleep 10008' 'resources: {requests: {memory: 32Mi}, limits: {memory: 32Mi}}'
    pod critical 'exec sleep 10009' "$some_memory" 'priorityClassName: system-node-critical'
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
ready pod/{pinned,shared,equal,critical,plain,unconfined,own,mapped}

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

# Swap: a share for who is burstable; none for who is guaranteed, asks for nothing, asks for as
# much as it may have, or is critical. And what MemoryQoS makes of requests and limits: what is
# asked for is kept from everybody for who is guaranteed, and while there is other memory to be
# had for who is burstable.
group=$(group_of "$(sleeper 10002)")
share=$((64 * 1048576 * $(kilobytes SwapTotal) / $(kilobytes MemTotal)))
is "$(cat "$group/memory.swap.max")" $((share / 4096 * 4096))
is "$(cat "$group/memory.min") $(cat "$group/memory.low")" "0 $((64 << 20))"
kept=$(group_of "$pinned")
is "$(cat "$kept/memory.min") $(cat "$kept/memory.low")" "$((64 << 20)) 0"
is "$(cat "$group/memory.high")" $(((64 * 1048576 + 64 * 1048576 * 9 / 10) / 4096 * 4096))
may_swap() { cat "$(group_of "$(sleeper "$1")")/memory.swap.max"; }
for time in 10001 10003 10008 10009; do is "$(may_swap "$time")" 0; done
is "$(kubectl get node board -o jsonpath='{.status.nodeInfo.swap.capacity}')" \
    $(($(kilobytes SwapTotal) * 1024))

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

# Where pods may not swap none does, whatever it asks for.
sed -i s/LimitedSwap/NoSwap/ /etc/coracle/kubelet.yaml
manage restart
until_true api_answers
pod dry 'exec sleep 10010' "$some_memory" | kubectl apply -f -
ready pod/dry
is "$(may_swap 10010)" 0
