#!/bin/bash
# root.sh {trixie|forky} DIR: builds the root file system that a lab runs in.
#
# trixie  Debian 13 with its own containerd 1.7, runc and CRIU.
# forky   the trixie root with containerd 2.x, runc and CRIU of Debian testing on top. Testing
#         moves: a whole root of it breaks on some days, seven packages of it do not.
#
# DIR appears only when it is complete. Nothing outside of it is written.
# KYBERNATE_MIRROR names another Debian mirror than the host's own; KYBERNATE_DEBS a directory
# with the packages below, for days on which the mirror does not have them.
set -euo pipefail

distro=${1:?usage: root.sh trixie|forky DIR [TRIXIE_ROOT]}
dir=${2:?usage: root.sh trixie|forky DIR [TRIXIE_ROOT]}
base=${3:-}

tools=busybox-static,mount,iproute2,iptables,nftables,procps,umoci,containernetworking-plugins
apps=python3-minimal,redis-server,nginx-light,zstd,tar
runtime=containerd,runc,criu,checkpointctl,ca-certificates,docker-registry
newer=(containerd runc criu checkpointctl libcompel1 libnet9 libnl-3-200)

# The host's own mirror when the host is Debian: it is the nearest, or the only one it may use.
mirror=${KYBERNATE_MIRROR:-}
if [ -z "$mirror" ] && grep -qx 'ID=debian' /etc/os-release; then
	mirror=$(find /etc/apt '(' -name '*.list' -o -name '*.sources' ')' -exec cat '{}' + |
		sed -nE 's#^(deb [^h]*|URIs: *)(https?://[^ ]+/debian)/?( .*)?$#\2#p;' | sed -n 1p)
fi
mirror=${mirror:-http://deb.debian.org/debian}

partial=$dir.partial
cleanup() { rm -rf --one-file-system "$partial"; }
cleanup
trap cleanup EXIT
mkdir -p "$(dirname "$dir")"

case $distro in
trixie)
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -r "$keyring" ] || { echo "root.sh: $keyring is missing: apt-get install debian-archive-keyring" >&2; exit 1; }
	# Services must not start while their packages are configured: there is no init to run them.
	mmdebstrap --quiet --mode=root --variant=apt --keyring="$keyring" \
		--include="$tools,$apps,$runtime" \
		--aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='Acquire::Languages "none"' \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		trixie "$partial" "$mirror"
	;;
forky)
	[ -d "$base/usr" ] || { echo "root.sh: forky is built on a trixie root: give its directory as third argument" >&2; exit 1; }
	cp -a --reflink=auto "$base" "$partial"
	debs=$partial/var/cache/apt/archives
	mkdir -p "$debs/partial"
	if [ -n "${KYBERNATE_DEBS:-}" ]; then
		cp "$KYBERNATE_DEBS"/*.deb "$debs/"
	else
		echo "deb $mirror forky main" >"$partial/etc/apt/sources.list.d/forky.list"
		apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
		cp /etc/resolv.conf "$partial/etc/resolv.conf"
		chroot "$partial" "${apt[@]}" update
		chroot "$partial" sh -c 'cd /var/cache/apt/archives && exec "$@"' sh "${apt[@]}" download "${newer[@]/%//forky}"
	fi
	# Their dependencies on a newer libc are a matter of the build day; they run on trixie's.
	chroot "$partial" sh -c 'DEBIAN_FRONTEND=noninteractive dpkg --force-depends -i /var/cache/apt/archives/*.deb'
	;;
*)
	echo "root.sh: no such distribution: $distro (trixie or forky)" >&2
	exit 2
	;;
esac

rm -rf "$partial"/var/cache/apt/* "$partial"/var/lib/apt/lists/*
mkdir -p "$partial"/{lab,old}
chroot "$partial" sh -c 'containerd --version; runc --version; criu --version; dpkg-query -W checkpointctl' |
	tee "$partial/versions" >&2
mv -T "$partial" "$dir"
trap - EXIT
