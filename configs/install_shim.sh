#!/bin/sh
# install_shim.sh [OPTIONS]: puts Kybernate on this node.
#
# It finds out what kind of node this is, says which paths it will use, and hands the work to
# `kybernate install`, which puts the programs in place and edits containerd's configuration in
# one transaction. All options go there: --dry-run, --root DIR, --profile NAME, --with-hooks,
# --node KEY=VALUE … (`kybernate install --help`). `install_shim.sh --uninstall` takes it away.
#
# Paths of the node can be set in the environment, and win over what is detected:
#   CONTAINERD_CONFIG  CONTAINERD_SOCKET  CNI_BIN_DIR  RUNC  BIN_DIR
# KYBERNATE_FROM names the directory with the programs, where they are not beside this script.
set -eu

say() { printf '%s\n' "install_shim.sh: $*"; }
die() {
	printf '%s\n' "install_shim.sh: $*" >&2
	exit 1
}

# The directory with kybernate, the shim and the NRI plugin: beside this script in a package,
# in target/ in a source tree.
programs() {
	here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
	for dir in "${KYBERNATE_FROM:-}" "$here" "$here/bin" "$here/../bin" "$here/../../bin" \
		"$here/../target/release" "$here/../target/debug"; do
		if [ -n "$dir" ] && [ -x "$dir/kybernate" ] && [ -x "$dir/containerd-shim-kybernate-v1" ]; then
			CDPATH='' cd -- "$dir" && pwd
			return
		fi
	done
	die "kybernate and containerd-shim-kybernate-v1 are not beside this script: build them, or name their directory in KYBERNATE_FROM"
}

# The kinds of node that need other paths than standard Kubernetes; `kybernate install` looks for
# more evidence and refuses where two kinds are possible.
environment() {
	if [ -e "$root/var/snap/microk8s/current/args/containerd-template.toml" ]; then
		echo microk8s
	elif [ -d "$root/var/lib/rancher/rke2/agent" ]; then
		echo rke2
	elif [ -d "$root/var/lib/rancher/k3s/agent" ]; then
		echo k3s
	elif [ -d "$root/var/lib/k0s" ] || [ -e "$root/run/k0s/containerd.sock" ]; then
		echo k0s
	else
		echo standard
	fi
}

first() {
	for path in "$@"; do
		if [ -e "$root$path" ]; then
			echo "$path"
			return
		fi
	done
	echo "$1"
}

root=
command=install
rest=
for arg in "$@"; do
	case $arg in
	-h | --help)
		sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0"
		exit 0
		;;
	--uninstall) command=uninstall && continue ;;
	--root=*) root=${arg#--root=} ;;
	esac
	if [ "$rest" = root ]; then root=$arg; fi
	rest=
	if [ "$arg" = --root ]; then rest=root; fi
done
root=${root%/}

[ "$(id -u)" = 0 ] || die "run it as root: it edits containerd's configuration"
case $(uname -m) in
x86_64) ;;
*) die "this machine is $(uname -m), and Kybernate runs on x86_64" ;;
esac
from=$(programs)

kind=$(environment)
case $kind in
microk8s)
	snap=/var/snap/microk8s
	config=$snap/current/args/containerd-template.toml
	socket=$snap/common/run/containerd.sock
	cni=$snap/current/opt/cni/bin
	runc=$(first $snap/current/bin/runc /snap/microk8s/current/bin/runc)
	;;
standard)
	config=/etc/containerd/config.toml
	socket=/run/containerd/containerd.sock
	cni=$(first /opt/cni/bin /usr/libexec/cni /usr/lib/cni)
	runc=$(first /usr/bin/runc /usr/sbin/runc /usr/local/sbin/runc /usr/local/bin/runc)
	;;
*) config='' socket='' cni='' runc='' ;;
esac
if [ -n "$config" ]; then
	say "$kind: containerd ${CONTAINERD_CONFIG:-$config}, ${CONTAINERD_SOCKET:-$socket}; CNI ${CNI_BIN_DIR:-$cni}; runc ${RUNC:-$runc}"
else
	say "$kind: paths of the node profile"
fi
if ! command -v criu >/dev/null 2>&1 && [ -z "$root" ]; then
	say "CRIU is not installed: pods of the class will run, and checkpoints will fail until it is"
fi

# What was set by hand goes on, and nothing else: the profile knows the rest.
args=
for pair in "containerd_config=${CONTAINERD_CONFIG:-}" "containerd_socket=${CONTAINERD_SOCKET:-}" \
	"cni_bin_dir=${CNI_BIN_DIR:-}" "runc=${RUNC:-}" "bin_dir=${BIN_DIR:-}"; do
	case $pair in
	*=) ;;
	*[[:space:]]*) die "a path with white space can't be used: $pair" ;;
	*) args="$args --node $pair" ;;
	esac
done

if [ "$command" = uninstall ]; then
	# Every argument but our own.
	for arg in "$@"; do
		shift
		[ "$arg" = --uninstall ] || set -- "$@" "$arg"
	done
	exec "$from/kybernate" uninstall "$@"
fi
# shellcheck disable=SC2086 # words are meant to be split: none holds white space
exec "$from/kybernate" install --from "$from" $args "$@"
