#!/bin/bash
# pack.sh BIN_DIR ROOT IMAGES OUT [TOOLKIT]: everything that run.py needs on a bare GPU host, in OUT/gpu.tar.xz.
#
# BIN_DIR  our binaries, as target/release
# ROOT     root of a forky lab (.lab/root-forky-…): containerd, runc, CRIU and their libraries
# IMAGES   images of a lab (.lab/images-…)
# TOOLKIT  NVIDIA's nvidia-container-runtime and nvidia-ctk, for the case that runs them
#
# Libraries are those that the host's own glibc does not bring.
set -euo pipefail
bin=$1 root=$2 images=$3 out=$4 toolkit=${5:-}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{bin,lib,images} "$out"

cp "$bin"/{containerd-shim-kybernate-v1,kybernate-cuda,kybernate,kybernate-cri-hooks,kybernate-bench-hooks} "$work/bin/"
strip "$work"/bin/*
programs=(/usr/bin/containerd /usr/bin/ctr /usr/bin/containerd-shim-runc-v2 /usr/sbin/runc /usr/sbin/criu)
for program in "${programs[@]}"; do cp -L "$root$program" "$work/bin/"; done
chroot "$root" ldd "${programs[@]}" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u | while read -r library; do
	case ${library##*/} in
	libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.* | ld-linux*) ;;
	*) cp -L "$root$library" "$work/lib/" ;;
	esac
done
if [ -n "$toolkit" ]; then
	cp "$toolkit"/{nvidia-container-runtime,nvidia-ctk} "$work/bin/"
fi
cp "$images"/{pause,tools}.tar "$work/images/"
cp "$here"/*.py "$work/"
tar -C "$work" -c . | xz -T0 -6 >"$out/gpu.tar.xz"
ls -l "$out/gpu.tar.xz"
