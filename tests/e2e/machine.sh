# Makes a machine of its own to test on, holds it while its standard input is open, and
# leaves nothing of it behind. Arguments: its directory, its name.
#
# It has its own processes, network, cgroups and mounts. Its root is an overlay over the
# host's, so that whatever is written goes with it; only /var/lib/coracle lies on a disk.
set -eu
dir=$1 name=$2
cgroups=/sys/fs/cgroup

if [ -e $cgroups/cgroup.controllers ]; then hierarchies=$cgroups; else hierarchies=$(ls -d $cgroups/*/); fi

clean() {
    for h in $hierarchies; do
        [ -d "$h/$name" ] || continue
        # Processes that were killed take a moment to be gone.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$h/$name" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$h/$name" ] || break
            sleep 0.2
        done
    done
    rm -rf --one-file-system "$dir"
}
trap clean EXIT
trap '' INT TERM HUP

cat > "$dir/inside" <<'INSIDE'
set -eu
dir=$1 name=$2 home=$3
[ -z "$home" ] || echo $$ > "$home"
mkdir "$dir/fs"
mount -t tmpfs tmpfs "$dir/fs"
mkdir "$dir/fs/upper" "$dir/fs/work" "$dir/fs/root"
root=$dir/fs/root
mount -t overlay -o "lowerdir=/,upperdir=$dir/fs/upper,workdir=$dir/fs/work" overlay "$root"
rm -rf "$root/etc/coracle" "$root/var/log/pods" "$root/var/log/containers" \
    "$root/etc/systemd/system/coracle.service" "$root/etc/init.d/coracle" "$root/usr/local/bin/coracle"
mkdir -p "$root/var/lib/coracle" "$root/mnt/coracle" "$root/mnt/checkout"
mount --bind "$dir/data" "$root/var/lib/coracle"
mount --bind "$dir/bin" "$root/mnt/coracle"
mount --bind "$dir/checkout" "$root/mnt/checkout"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/init"
    echo $$ > "$root/sys/fs/cgroup/init/cgroup.procs"
else
    mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
    for h in /sys/fs/cgroup/*/; do
        h=$(basename "$h")
        mkdir "$root/sys/fs/cgroup/$h"
        case $h in
            unified) mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/$h" ;;
            systemd) mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/$h" ;;
            *) mount -t cgroup -o "$h" cgroup "$root/sys/fs/cgroup/$h" ;;
        esac
    done
fi
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/tmp/old"
cd "$root"
pivot_root . tmp/old
umount -l /tmp/old
rmdir /tmp/old
cd /
hostname "$name"
ip link set lo up
mkdir -p /root/.kube
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
echo $$ > /run/machine.pid
touch /mnt/coracle/up
# Ends when the test does, and with this process all others end. Orphans are reaped.
while read -r _; do :; done
INSIDE

for h in $hierarchies; do
    mkdir "$h/$name"
    if [ -e "$h/cpuset.cpus" ] && [ -e "$h/$name/cpuset.mems" ] && [ "$h" != $cgroups ]; then
        cat "$h/cpuset.cpus" > "$h/$name/cpuset.cpus"
        cat "$h/cpuset.mems" > "$h/$name/cpuset.mems"
    fi
done
(
    for h in $hierarchies; do sh -c 'echo $PPID' > "$h/$name/cgroup.procs"; done
    exec unshare --cgroup --net --mount --pid --uts --ipc --fork --kill-child \
        --propagation private bash "$dir/inside" "$dir" "$name" ""
)
