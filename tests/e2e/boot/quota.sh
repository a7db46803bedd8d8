#!/bin/bash
# Runs inside a computer whose node keeps its volumes on a file system with project quotas, and
# afterwards on one without: what becomes of the sizes that claims ask for. And of a node whose
# clock is set.
. /root/common.sh

storage=/var/lib/coracle/agent/storage
modprobe -a loop quota_v2
truncate -s 256M /root/volumes
mkfs.ext4 -q -O quota,project -E quotatype=prjquota /root/volumes
mkdir -p "$storage"
mount -o loop,prjquota /root/volumes "$storage"
cd /checkout
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
coracle images import /root/web.tar

claim() { # name, size
    cat << CLAIM
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: $2}}}
---
CLAIM
}
# Writes until it is stopped, each time somebody wants it, and tells what came of that.
fills() { # pod, MiB
    kubectl exec "$1" -- sh -c "dd if=/dev/zero of=/v/file bs=64k count=$(($2 * 16)) 2>&1 || true"
}
volume_of() { kubectl get pvc "$1" -o jsonpath='{.spec.volumeName}'; }
directory_of() { kubectl get pv "$(volume_of "$1")" -o jsonpath='{.spec.local.path}'; }
project_of() { lsattr -pd "$(directory_of "$1")" | awk '{ print $1 }'; }
# What the file system counts: a project, the KiB it has and may have.
counts() { repquota -Pn "$storage" | awk -v of="#$1" '$1 == of { print $3, $5 }'; }
told() { kubectl get events --field-selector "reason=$1" -o jsonpath='{.items[*].message}'; }
is_told() { [ -n "$(told "$1")" ]; }

# --- A volume holds what was asked for, and no more; its neighbour does not pay for that.

{
    claim small 1Mi
    claim large 8Mi
    user small small 'exec sleep 10001'
    user large large 'exec sleep 10002'
} | kubectl apply -f -
ready pod/small pod/large
small=$(project_of small)
none [ "$small" = 0 ]
none [ "$small" = "$(project_of large)" ]
says "$(fills small 2)" "Disk quota exceeded"
until_true [ "$(stat -c %s "$(directory_of small)/file")" -le $((1 << 20)) ]
read -r has may < <(counts "$small")
is "$may" 1024
[ "$has" -le 1024 ]
none grep -q "Disk quota exceeded" <<< "$(fills large 4)"
is "$(stat -c %s "$(directory_of large)/file")" $((4 << 20))
none is_told SizeNotEnforced

# --- It grows while it is used.

kubectl patch pvc small -p '{"spec": {"resources": {"requests": {"storage": "4Mi"}}}}'
grown() { [ "$(kubectl get pvc small -o jsonpath='{.status.capacity.storage}')" = 4Mi ]; }
until_true grown
may_have() { [ "$(counts "$1" | cut -d ' ' -f 2)" = "$2" ]; }
until_true may_have "$small" 4096
none grep -q "Disk quota exceeded" <<< "$(fills small 2)"
says "$(fills small 6)" "Disk quota exceeded"

# --- A server that starts again knows the projects it gave.

manage restart
until_true api_answers
is "$(project_of small)" "$small"
claim third 1Mi | kubectl apply -f -
user third third 'exec sleep 10003' | kubectl apply -f -
ready pod/third
none [ "$(project_of third)" = "$small" ]
none [ "$(project_of third)" = "$(project_of large)" ]
says "$(fills third 2)" "Disk quota exceeded"

# --- What is deleted leaves neither data nor a limit behind.

directory=$(directory_of small)
kubectl delete pod small
kubectl delete pvc small
gone() { ! [ -e "$directory" ]; }
until_true gone
forgotten() { [ -z "$(counts "$small")" ]; }
until_true forgotten

# --- Where nobody counts, the claim is told so, and used all the same.

kubectl delete pod --all
kubectl delete pvc --all
no_volumes() { [ -z "$(kubectl get pv -o name)" ]; }
until_true no_volumes
manage stop
umount "$storage"
manage start
until_true api_answers
claim free 1Mi | kubectl apply -f -
user free free 'exec sleep 10004' | kubectl apply -f -
ready pod/free
until_true is_told SizeNotEnforced
says "$(told SizeNotEnforced)" "has no project quotas"
says "$(told SizeNotEnforced)" "mount it with prjquota"
is "$(kubectl get events --field-selector reason=SizeNotEnforced -o jsonpath='{.items[*].involvedObject.name}')" free
none grep -q "Disk quota exceeded" <<< "$(fills free 2)"
is "$(stat -c %s "$(directory_of free)/file")" $((2 << 20))

# --- The clock is set a day ahead, two back, and right again: nobody is restarted, everything is
# as it was, and what waits for a time of day looks again at once.

kubectl delete pod --all
always='restartPolicy: Always'
# An emulated computer takes its time.
probes='{exec: {command: [test, -e, /entry]}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 1}'
{
    pod steady 'echo begun; exec sleep 10005' "livenessProbe: $probes, readinessProbe: $probes"
    pod mortal 'exec sleep 10006' "$always"
    pod crasher 'exit 1' "$always"
    cat << 'CRON'
apiVersion: batch/v1
kind: CronJob
metadata: {name: hourly}
spec:
  schedule: "0 * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: a, image: "web:1", imagePullPolicy: Never, command: ["true"]}]
CRON
} | kubectl apply -f -
ready pod/steady pod/mortal
state_of() { kubectl get pod "$1" -o jsonpath='{.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type=="Ready")].status}'; }
steady=$(state_of steady)

token() { kubectl exec steady -- cat /var/run/secrets/kubernetes.io/serviceaccount/token; }
# Both in seconds, of which the first are a token's.
begins() { cut -d . -f 2 | tr _- /+ | base64 -d 2> /dev/null | sed 's/.*"nbf":\([0-9]*\).*/\1/'; }
is_near() { # seconds
    [ -n "$1" ] || return 1
    local age=$(($(date +%s) - $1))
    [ "$age" -ge -5 ] && [ "$age" -lt 100 ]
}
has_new_token() { is_near "$(token | begins)"; }
believes() {
    kubectl --kubeconfig /dev/null --server https://127.0.0.1:6443 --insecure-skip-tls-verify \
        --token "$1" auth can-i --list > /dev/null
}
none believes nobodys
lease() { date -d "$(kubectl get lease board -n kube-node-lease -o jsonpath='{.spec.renewTime}')" +%s; }
is_renewed() { is_near "$(lease)"; }
has_restarted() { [ "$(restarts "$1")" -gt "$2" ]; }
jobs_there() { [ -n "$(kubectl get jobs -o name)" ]; }

for hours in 24 -48 24; do
    crashes=$(restarts crasher)
    deaths=$(restarts mortal)
    date -s "@$(($(date +%s) + hours * 3600))"
    until_true has_new_token
    believes "$(token)"
    until_true is_renewed
    is "$(kubectl get node board -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" True
    # No back-off is waited for by a clock that is no more.
    until_true has_restarted crasher "$crashes"
    # Who is started again is the one that there is.
    kill -KILL "$(sleeper 10006)"
    until_true has_restarted mortal "$deaths"
    ready pod/mortal
    sleep 3
    is "$(restarts mortal)" $((deaths + 1))
    is "$(kubectl logs steady)" begun
    is "$(state_of steady)" "$steady"
    is "$(kubectl get events -A --field-selector reason=NodeNotReady -o name)" ""
done
until_true jobs_there
