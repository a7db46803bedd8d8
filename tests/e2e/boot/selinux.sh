#!/bin/bash
# Runs inside a computer with SELinux on: which labels processes and files of pods have, and
# that a policy which knows only those labels keeps pods apart.
. /root/common.sh

# --- A policy: the host may do everything, containers what has their type and level.

sids="kernel security unlabeled fs file file_labels init any_socket port netif netmsg node \
igmp_packet icmp_socket tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net \
sysctl_net_unix sysctl_vm sysctl_dev kmod policy scmp_packet devnull"
categories=$(seq -f 'c%g' 0 1023)
# Kinds of files that this is not about; files of an unknown class take no label.
others="lnk_file chr_file blk_file sock_file fifo_file"
{
    cat << 'POLICY'
(handleunknown allow)
(policycap nnp_nosuid_transition)
(mls true)
(sensitivity s0)
(sensitivityorder (s0))
(class process (transition dyntransition))
(class file (read write open create append setattr getattr execute relabelfrom relabelto))
(class dir (read write search open add_name remove_name setattr getattr relabelfrom relabelto))
(user system_u)
(role system_r)
(role object_r)
(type host_t)
(type container_t)
(type spc_t)
(type container_file_t)
(typeattribute every)
(typeattributeset every (all))
(userrole system_u system_r)
(userrole system_u object_r)
(roletype system_r host_t)
(roletype system_r container_t)
(roletype system_r spc_t)
(roletype object_r host_t)
(roletype object_r container_file_t)
POLICY
    for class in $others; do
        echo "(class $class (read write open getattr))"
        echo "(allow every every ($class (all)))"
    done
    echo "(classorder (process file dir $others))"
    for category in $categories; do echo "(category $category)"; done
    # shellcheck disable=SC2086
    echo "(categoryorder ("$categories"))"
    cat << 'POLICY'
(sensitivitycategory s0 (range c0 c1023))
(level low (s0))
(level high (s0 (range c0 c1023)))
(levelrange wide (low high))
(userlevel system_u low)
(userrange system_u wide)
(context of_kernel (system_u system_r host_t wide))
(context of_host (system_u object_r host_t (low low)))
(context of_all (system_u object_r container_file_t (low low)))
(allow host_t every (process (all)))
(allow host_t every (file (all)))
(allow host_t every (dir (all)))
(allow spc_t every (process (all)))
(allow spc_t every (file (all)))
(allow spc_t every (dir (all)))
(allow container_t container_t (process (all)))
(allow container_t container_t (file (all)))
(allow container_t container_t (dir (all)))
(allow container_t container_file_t (file (all)))
(allow container_t container_file_t (dir (all)))
(mlsconstrain (file (read write open)) (or (dom h1 h2) (neq t1 container_t)))
(mlsconstrain (dir (read search open add_name)) (or (dom h1 h2) (neq t1 container_t)))
(fsuse xattr ext4 of_host)
(fsuse xattr overlay of_host)
(fsuse trans tmpfs of_host)
(fsuse trans devpts of_host)
(fsuse trans mqueue of_host)
POLICY
    for system in proc sysfs cgroup2; do echo "(genfscon $system / of_all)"; done
    for sid in $sids; do
        echo "(sid $sid)"
        [ "$sid" = kernel ] && context=of_kernel || context=of_host
        echo "(sidcontext $sid $context)"
    done
    echo "(sidorder ($sids))"
} > /root/policy.cil
secilc --output /root/policy --filecontext /dev/null /root/policy.cil
dd if=/root/policy of=/sys/fs/selinux/load bs=4M
mkdir -p /etc/selinux/small/contexts
echo SELINUXTYPE=small > /etc/selinux/config
cat > /etc/selinux/small/contexts/lxc_contexts << 'CONTEXTS'
process = "system_u:system_r:container_t:s0"
file = "system_u:object_r:container_file_t:s0"
CONTEXTS
echo 1 > /sys/fs/selinux/enforce

cd /checkout
INSTALL_CORACLE_BINARY=/root/coracle ./install.sh
coracle images import /root/web.tar

# --- Labels of processes and files.

mkdir -p /srv/host
truncate -s 64M /root/lun
modprobe -a iscsi_tcp sd_mod
systemctl start tgt iscsid
target() { tgtadm --lld iscsi "$@"; }
until_true target --op show --mode sys
target --op new --mode target --tid 1 --targetname iqn.2026-01.example:disk
target --op new --mode logicalunit --tid 1 --lun 1 --backing-store /root/lun
target --op bind --mode target --tid 1 --initiator-address ALL

tries='touch /d/f /dev/shm/f /f /t && cat /c/name /etc/hosts /etc/resolv.conf > /dev/null; echo x > /h/f'
places='{name: d, mountPath: /d}, {name: h, mountPath: /h}, {name: c, mountPath: /c}'
volumes='volumes: [{name: d, emptyDir: {}}, {name: h, hostPath: {path: /srv/host}}, {name: c, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]'
level='seLinuxOptions: {level: "s0:c123,c456"}'
once() { # name, script, fields of the security context
    user "$1" disk "$2" "securityContext: {$3}"
}
{
    pod plain "($tries) > /out 2>&1; exec sleep 10001" "volumeMounts: [$places]" "$volumes"
    pod level "($tries) > /out 2>&1; exec sleep 10002" \
        "securityContext: {allowPrivilegeEscalation: false}, volumeMounts: [$places]" \
        "securityContext: {$level}
  $volumes"
    pod super 'echo x > /h/super; exec sleep 10003' \
        'securityContext: {seLinuxOptions: {type: spc_t}}, volumeMounts: [{name: h, mountPath: /h}]' \
        'volumes: [{name: h, hostPath: {path: /srv/host}}]'
    pod privileged 'exec sleep 10004' 'securityContext: {privileged: true}'
    volume disk 'iscsi: {targetPortal: 10.0.2.15, iqn: "iqn.2026-01.example:disk", lun: 1, fsType: ext4}' \
        ReadWriteOncePod
    once whole 'echo kept > /v/file; exec sleep 10005' "$level"
} | kubectl apply -f -
ready pod/plain pod/level pod/super pod/privileged pod/whole

label() { tr -d '\0' < "/proc/$(sleeper "$1")/attr/current"; }
files() { stat -c %C "$@" | sort -u; }
file=system_u:object_r:container_file_t
own=$(label 10001)
echo "$own" | grep -Ex 'system_u:system_r:container_t:s0:c[0-9]+,c[0-9]+'
own=${own#system_u:system_r:container_t:}
is "$(label 10002)" system_u:system_r:container_t:s0:c123,c456
case $(label 10003) in system_u:system_r:spc_t:s0:c*,c*) ;; *) exit 1 ;; esac
case $(label 10004) in system_u:system_r:host_t:*) ;; *) exit 1 ;; esac
is "$(kubectl exec level -- cat /proc/self/attr/current | tr -d '\0')" \
    system_u:system_r:container_t:s0:c123,c456

directory() { echo "/var/lib/coracle/agent/pods/$(kubectl get pod "$1" -o jsonpath='{.metadata.uid}')"; }
for pod in "plain 10001 $own" "level 10002 s0:c123,c456"; do
    read -r name number its_level <<< "$pod"
    root=/proc/$(sleeper "$number")/root
    is "$(files "$root"/{f,t,dev/shm/f,etc/hosts,etc/resolv.conf,etc/hostname,d/f})" "$file:$its_level"
    is "$(files "$(directory "$name")"/volumes/kubernetes.io~{empty-dir/d,downward-api/c})" \
        "$file:$its_level"
    # The host's own files keep their label, and are none of the container's.
    says "$(cat "$root/out")" "can't create /h/f: Permission denied"
done
is "$(files /srv/host)" system_u:object_r:host_t:s0
is "$(cat /srv/host/super)" x
# One pod's files are nobody else's, whatever the directory's mode says.
there=$(directory plain)/volumes/kubernetes.io~empty-dir/d
pod thief "cat /d/f 2> /out; exec sleep 10006" 'volumeMounts: [{name: h, mountPath: /d}]' \
    "volumes: [{name: h, hostPath: {path: $there}}]" | kubectl apply -f -
ready pod/thief
says "$(file_of "$(sleeper 10006)" out)" "Permission denied"

# --- A volume of one pod alone is mounted with its label; without that, file by file.

whole=$(directory whole)/volumes/kubernetes.io~iscsi/disk
grep -F " $whole " /proc/self/mountinfo | grep -F "context=\"$file:s0:c123,c456\""
is "$(files "$whole/file")" "$file:s0:c123,c456"
kubectl delete pod whole
once apart 'cat /v/file > /out; exec sleep 10007' "$level, seLinuxChangePolicy: Recursive" |
    kubectl apply -f -
ready pod/apart
apart=$(directory apart)/volumes/kubernetes.io~iscsi/disk
is "$(grep -F " $apart " /proc/self/mountinfo | grep -F context=)" ""
is "$(files "$apart/file")" "$file:s0:c123,c456"
is "$(file_of "$(sleeper 10007)" out)" kept
denied=$(once other true "seLinuxChangePolicy: MountOption" | kubectl apply -f - 2>&1 || true)
says "$denied" 'spec.securityContext.seLinuxChangePolicy: Unsupported value: "MountOption": supported values: "Recursive"'
kubectl delete pod --all

# --- The same by a storage driver, which is told the label as a mount option.

mkdir /root/csi-volumes
truncate -s 16M /root/csi-volumes/{whole,spread,told}
for image in whole spread told; do mkfs.ext4 -q "/root/csi-volumes/$image"; done
modprobe loop
setsid /root/csi disks.csi.example /root/csi-volumes > /root/csi.log 2>&1 < /dev/null &
registered() { [ -n "$(kubectl get csinode board -o jsonpath='{.spec.drivers[?(@.name=="disks.csi.example")].name}')" ]; }
until_true registered
driver() { # whether it mounts with labels
    kubectl apply -f - << DRIVER
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disks.csi.example}
spec: {attachRequired: false, seLinuxMount: $1}
DRIVER
}
of_driver() { # name
    volume "$1" "csi: {driver: disks.csi.example, volumeHandle: $1, fsType: ext4}" ReadWriteOncePod
}
flags() { tail -n "$1" /root/csi-volumes/flags | tr '\n' ';'; }
published() { echo "$(directory "$1")/volumes/kubernetes.io~csi/$2/mount"; }
mounted_with() { grep -F " $(published "$1" "$2") " /proc/self/mountinfo; }
driver true
{
    of_driver whole
    of_driver spread
    of_driver told
    user by-driver whole 'echo kept > /v/file; exec sleep 10008' "securityContext: {$level}"
} | kubectl apply -f -
ready pod/by-driver
option="context=\"$file:s0:c123,c456\""
is "$(flags 2)" "stage $option;publish $option;"
says "$(mounted_with by-driver whole)" "$option"
is "$(files "$(published by-driver whole)/file")" "$file:s0:c123,c456"
user recursive spread 'echo kept > /v/file; exec sleep 10009' \
    "securityContext: {$level, seLinuxChangePolicy: Recursive}" | kubectl apply -f -
ready pod/recursive
is "$(flags 2)" "stage ;publish ;"
none grep -F context= <<< "$(mounted_with recursive spread)"
is "$(files "$(published recursive spread)/file")" "$file:s0:c123,c456"
# A driver that does not say that it can is not asked to.
driver false
user unasked told 'echo kept > /v/file; exec sleep 10010' "securityContext: {$level}" |
    kubectl apply -f -
ready pod/unasked
is "$(flags 2)" "stage ;publish ;"
is "$(files "$(published unasked told)/file")" "$file:s0:c123,c456"
kubectl delete pod --all
unstaged() { ! grep -qF -e kubernetes.io~csi -e kubernetes.io/csi /proc/self/mountinfo; }
until_true unstaged
