#!/bin/bash
# Runs inside the computers that are installed, used and booted again, at every boot: the
# first installs and uses Coracle, the second finds it running again and takes it away.
. /root/common.sh

web_pid() { pgrep -f '^httpd -f' | head -n 1; }

if [ -e /root/used ]; then
    echo "boot.sh: after the reboot"
    # Started by the init system, with the state of before.
    until_true api_answers
    kubectl wait --for=condition=Ready node/board --timeout=60s
    restarted() { [ "$(restarts web)" = 1 ]; }
    until_true restarted
    kubectl wait --for=condition=Ready pod/web --timeout=60s
    is "$(kubectl exec web -- cat /www/version)" 1
    until_true test -n "$(kubectl get configmap kept -o name)"

    coracle reset
    none enabled
    none pgrep -x coracle
    for gone in /var/lib/coracle /run/coracle /etc/coracle /etc/systemd/system/coracle.service \
        /etc/init.d/coracle /sys/fs/cgroup/kubepods /var/log/pods; do
        none [ -e "$gone" ]
    done
    is "$(ip link | grep -e coracle -e veth)" ""
    is "$(nft list tables)" ""
    none grep coracle /proc/self/mountinfo
    exit 0
fi

cd /checkout
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
enabled
kubectl get nodes | grep -w Ready
coracle images import /root/web.tar
kubectl create configmap kept --from-literal=a=b
kubectl apply -f - << 'EOF'
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: web
    image: web:1
    imagePullPolicy: Never
    resources:
      requests: {cpu: 100m, memory: 16Mi}
      limits: {cpu: 500m, memory: 48Mi}
---
apiVersion: v1
kind: Pod
metadata: {name: eater}
spec:
  restartPolicy: Never
  containers:
  - name: eater
    image: web:1
    imagePullPolicy: Never
    # The shell lives on while its child eats: only the group's end takes both.
    command: [/bin/sh, -c, "tail /dev/zero; sleep 1000"]
    resources: {limits: {memory: 24Mi}}
EOF
kubectl wait --for=condition=Ready pod/web --timeout=120s

# Limits, as cgroup v2 has them.
group=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$(web_pid)/cgroup")
is "$(cat "$group/memory.max")" $((48 << 20))
is "$(cat "$group/cpu.max")" "50000 100000"
is "$(cat "$group/memory.oom.group")" 1
case $group in */kubepods/burstable/pod*) ;; *) exit 1 ;; esac
is "$(cat "$group/../memory.max")" $((48 << 20))

# Out of memory.
kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/eater --timeout=120s
is "$(kubectl get pod eater -o jsonpath='{.status.containerStatuses[0].state.terminated.reason}')" OOMKilled

# Devices: the few that every container has, and no disk.
is "$(kubectl exec web -- sh -c 'echo x > /dev/null && head -c 3 /dev/zero | wc -c')" 3
disk=$(kubectl exec web -- sh -c 'cat /dev/vda' 2>&1 || true)
case $disk in *"No such file"*) ;; *) exit 1 ;; esac

# The server dies, is stopped, is replaced: the container does not notice.
before=$(web_pid)
server=$(server_pid)
kill -9 "$server"
back() { api_answers && [ "$(server_pid)" != "$server" ]; }
until_true back
is "$(web_pid)" "$before"
manage stop
is "$(web_pid)" "$before"
none pgrep -f 'coracle server'
manage start
until_true api_answers
INSTALL_CORACLE_BINARY=/root/coracle INSTALL_CORACLE_EXEC='--node-label tier=edge' ./install.sh
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
kubectl get node board --show-labels | grep tier=edge
kubectl wait --for=condition=Ready pod/web --timeout=60s
is "$(web_pid)" "$before"
is "$(restarts web)" 0
touch /root/used
