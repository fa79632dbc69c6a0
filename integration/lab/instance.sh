#!/bin/bash
# instance.sh ROOT DIR NAME: one running lab; ends when its standard input closes.
#
#   supervisor   host namespaces   makes the cgroups NAME, waits, removes the cgroups and DIR
#   └ pid 1      own mount, PID, network, UTS, IPC and cgroup namespaces; root is an overlay of
#                ROOT (read only, shared) and DIR/upper; prints "ready HOST_PID", waits for EOF
#
# Whoever started the supervisor holds the other end of its standard input. However that
# process ends, the kernel closes the pipe, pid 1 leaves, and with it every process in the lab.
# State that CRIU, overlayfs or a benchmark wants on a real disk lies in DIR, not in the overlay.
set -euo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Own cgroup of this lab in every hierarchy of the host: v1, hybrid and v2 hosts look alike.
groups_of() {
	findmnt -rno TARGET -t cgroup,cgroup2 | sed "s|\$|/$1|"
}

supervise() {
	local root=$1 dir=$2 name=$3 group groups outer
	trap '' INT TERM HUP
	mapfile -t groups < <(groups_of "$name")
	mkdir -p "$dir"/{upper/lab,work,merged,containerd,kybernate}
	cp "${BASH_SOURCE[0]}" "$dir/upper/lab/instance.sh"
	for group in "${groups[@]}"; do
		mkdir -p "$group"
		# A v1 cpuset takes no process before it has CPUs and memory nodes.
		for file in cpuset.cpus cpuset.mems; do
			if [ -f "$group/cgroup.clone_children" ] && [ -f "$group/$file" ]; then
				cat "$group/../$file" >"$group/$file"
			fi
		done
	done
	(
		for group in "${groups[@]}"; do echo "$BASHPID" >"$group/cgroup.procs"; done
		exec unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc --cgroup \
			/bin/bash "${BASH_SOURCE[0]}" --boot "$root" "$dir" "${groups[@]}"
	) <&0 &
	outer=$!
	# Version 2 allows no process in a cgroup that hands controllers to its children, and unshare
	# waits in the one that is the lab's root.
	until [ "$(readlink "/proc/$outer/ns/cgroup")" != "$(readlink /proc/self/ns/cgroup)" ]; do sleep 0.01; done
	for group in "${groups[@]}"; do
		if [ -f "$group/cgroup.subtree_control" ]; then
			mkdir "$group/outside"
			echo "$outer" >"$group/outside/cgroup.procs"
		fi
	done
	wait "$outer" && status=0 || status=$?
	for group in "${groups[@]}"; do
		# Exiting processes leave their cgroup a moment after their parent has seen them go.
		for _ in {1..100}; do
			find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
			sleep 0.05
		done
	done
	rm -rf --one-file-system "$dir"
	exit "$status"
}

boot() {
	local root=$1 dir=$2 new=$2/merged host_pid group node
	shift 2
	# The host's /proc is still mounted, so this is the pid by which the host knows us.
	read -r host_pid _ </proc/self/stat
	mount -t overlay lab -o "lowerdir=$root,upperdir=$dir/upper,workdir=$dir/work" "$new"
	mkdir -p "$new"/var/lib/{containerd,kybernate} "$new"/{old,lab}
	mount --bind "$dir/containerd" "$new/var/lib/containerd"
	mount --bind "$dir/kybernate" "$new/var/lib/kybernate"
	mount -t proc proc "$new/proc"
	mount -t sysfs sysfs "$new/sys"
	mount -t tmpfs -o mode=755 cgroup "$new/sys/fs/cgroup"
	for group in "$@"; do
		node=$new${group%/*}
		mkdir -p "$node"
		mount --bind "$group" "$node"
	done
	find /sys/fs/cgroup -maxdepth 1 -type l -exec cp -P '{}' "$new/sys/fs/cgroup/" ';'
	mount -t tmpfs -o mode=755 run "$new/run"
	mount -t tmpfs -o mode=1777 tmp "$new/tmp"
	mount -t tmpfs -o mode=755 dev "$new/dev"
	for node in null:3 zero:5 full:7 random:8 urandom:9; do
		mknod -m 666 "$new/dev/${node%:*}" c 1 "${node#*:}"
	done
	mknod -m 666 "$new/dev/tty" c 5 0
	mkdir "$new"/dev/{net,pts,shm,mqueue}
	mknod -m 666 "$new/dev/net/tun" c 10 200
	mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$new/dev/pts"
	mount -t tmpfs -o mode=1777 shm "$new/dev/shm"
	mount -t mqueue mqueue "$new/dev/mqueue"
	ln -s pts/ptmx "$new/dev/ptmx"
	ln -s /proc/self/fd "$new/dev/fd"
	cd "$new"
	pivot_root . old
	exec /bin/bash /lab/instance.sh --serve "$host_pid"
}

serve() {
	umount -l /old
	hostname lab
	if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
		mkdir /sys/fs/cgroup/init
		echo $$ >/sys/fs/cgroup/init/cgroup.procs
		# The supervisor takes unshare out of here meanwhile.
		for _ in {1..200}; do
			sed 's/\(^\| \)/ +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control && break
			sleep 0.02
		done 2>/dev/null
	fi
	ip link set lo up
	echo 1 >/proc/sys/net/ipv4/ip_forward
	echo "ready $1"
	exec >/dev/null 2>&1
	while read -r _; do :; done
	# A frozen process does not die (v1), and the namespace would wait for it for ever.
	find /sys/fs/cgroup -name freezer.state -exec sh -c 'echo THAWED >"$1"' sh '{}' ';'
}

# Runs a command in the lab's own cgroup; the caller has entered the namespaces, and with version 2
# the cgroup, which lets nobody in from outside of its namespace.
enter() {
	local group
	if [ ! -f /sys/fs/cgroup/cgroup.controllers ]; then
		for group in /sys/fs/cgroup/*/cgroup.procs; do echo $$ >"$group"; done
	fi
	exec "$@"
}

case $1 in
--boot) shift && boot "$@" ;;
--serve) shift && serve "$@" ;;
--enter) shift && enter "$@" ;;
*) supervise "$@" ;;
esac
