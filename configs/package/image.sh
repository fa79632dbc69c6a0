#!/bin/sh
# image.sh BIN_DIR REFERENCE TAR: makes the installer's container image, an OCI layout in a tar.
#
#   oci-layout, index.json            → manifest, named REFERENCE
#   blobs/sha256/<manifest>           → configuration, one layer
#   blobs/sha256/<layer>              /usr/bin/…, /host
#
# There is nothing in it but Kybernate's programs. Where `kybernate` is not static, as in tests, the
# libraries that it needs go along.
set -eu
umask 022
export LC_ALL=C TZ=UTC
bin=$1 reference=$2 tar=$3
epoch=${SOURCE_DATE_EPOCH:-0}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$work/root/usr/bin" "$work/root/host" "$work/layout/blobs/sha256"
for program in kybernate containerd-shim-kybernate-v1 kybernate-nri kybernate-cri-hooks kybernate-cuda; do
	install -m 755 "$bin/$program" "$work/root/usr/bin/$program"
done
if libraries=$(ldd "$bin/kybernate" 2>/dev/null); then
	for library in $(printf '%s\n' "$libraries" | grep -o '/[^ ]*'); do
		mkdir -p "$work/root${library%/*}"
		cp -L "$library" "$work/root$library"
	done
fi

archive() {
	tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf - .
}
digest() {
	sha256sum "$1" | cut -d ' ' -f 1
}
# Moves a file to its place among the blobs and prints its descriptor.
blob() {
	sum=$(digest "$1")
	size=$(wc -c <"$1")
	mv "$1" "$work/layout/blobs/sha256/$sum"
	printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s' \
		"$2" "$sum" "$size"
}

archive "$work/root" >"$work/layer"
plain=$(digest "$work/layer")
gzip -n "$work/layer"
layer=$(blob "$work/layer.gz" layer.v1.tar+gzip)
cat >"$work/config" <<END
{"architecture":"amd64","os":"linux","created":"$(date -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)",\
"config":{"Entrypoint":["/usr/bin/kybernate"],"Env":["PATH=/usr/bin"],"WorkingDir":"/",\
"Labels":{"org.opencontainers.image.title":"kybernate",\
"org.opencontainers.image.version":"${reference##*:}",\
"org.opencontainers.image.licenses":"Apache-2.0"}},\
"rootfs":{"type":"layers","diff_ids":["sha256:$plain"]}}
END
config=$(blob "$work/config" config.v1+json)
cat >"$work/manifest" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",\
"config":$config},"layers":[$layer}]}
END
manifest=$(blob "$work/manifest" manifest.v1+json)
cat >"$work/layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",\
"manifests":[$manifest,"platform":{"architecture":"amd64","os":"linux"},\
"annotations":{"io.containerd.image.name":"$reference",\
"org.opencontainers.image.ref.name":"${reference##*:}"}}]}
END
printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
archive "$work/layout" >"$tar"
