#!/bin/sh
# dist.sh BIN_DIR OUT: makes the packages of a release from the programs in BIN_DIR.
#
#   kybernate-VERSION-x86_64.tar.gz   programs, install_shim.sh, manifests, documentation
#   kybernate_VERSION-1_amd64.deb     the same as the system's package manager wants it
#   kybernate-VERSION-1.x86_64.rpm
#   kybernate-VERSION-image.tar       the installer's container image, an OCI layout
#   kybernate-chart-VERSION.tgz       the Helm chart
#   kybernate-VERSION.cdx.json        what is compiled in: a CycloneDX bill of materials
#   SHA256SUMS
#
# The same programs make the same bytes: times are SOURCE_DATE_EPOCH's, by default the commit's.
set -eu
umask 022
export LC_ALL=C TZ=UTC

[ $# = 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
package=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$package/../.." && pwd)
bin=$(CDPATH='' cd -- "$1" && pwd)
mkdir -p "$2"
out=$(CDPATH='' cd -- "$2" && pwd)
programs="kybernate containerd-shim-kybernate-v1 kybernate-nri kybernate-cri-hooks kybernate-cuda"

die() {
	printf '%s\n' "dist.sh: $*" >&2
	exit 1
}
for program in $programs; do
	[ -x "$bin/$program" ] || die "$bin/$program is missing: \`make dist\` builds it"
done
for tool in dpkg-deb rpmbuild objdump python3; do
	command -v "$tool" >/dev/null || die "$tool is missing: \`make tools\` installs it"
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
kustomization=$root/configs/kubernetes/base/kustomization.yaml
image=$(sed -n 's/^ *newName: //p' "$kustomization"):$(sed -n 's/^ *newTag: //p' "$kustomization")
[ "${image##*:}" = "$version" ] ||
	die "$kustomization names $image, and this is version $version: they must agree"
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH="$epoch"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# A tar in which nothing depends on who made it, or when.
archive() {
	tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf - "$2"
}

# What every package holds, under the directory $1.
files() {
	mkdir -p "$1"
	cp -R "$root/configs/profiles" "$root/configs/kubernetes" "$root/configs/chart" \
		"$root/configs/systemd" "$root/configs/nri" "$root/configs/apparmor" "$1"
	cp "$root/configs/install_shim.sh" "$1"
}
documentation() {
	mkdir -p "$1"
	cp "$root"/docs/*.md "$root/README.md" "$1"
}
manuals() {
	mkdir -p "$1"
	"$bin/kybernate" man "$1"
}

tarball() {
	top=kybernate-$version
	files "$work/tar/$top"
	documentation "$work/tar/$top/doc"
	manuals "$work/tar/$top/man/man1"
	cp "$root/LICENSE" "$root/CHANGELOG.md" "$work/tar/$top"
	mkdir "$work/tar/$top/bin" "$work/tar/$top/completions"
	for program in $programs; do
		install -m 755 "$bin/$program" "$work/tar/$top/bin/$program"
	done
	for shell in bash zsh fish; do
		"$bin/kybernate" completions "$shell" >"$work/tar/$top/completions/kybernate.$shell"
	done
	archive "$work/tar" "$top" | gzip -n >"$out/$top-x86_64.tar.gz"
	# Packages live by the same files in other places.
	system "$work/system"
}

# The tree that .deb and .rpm install.
system() {
	usr=$1/usr
	mkdir -p "$usr/bin" "$usr/share/bash-completion/completions" \
		"$usr/share/zsh/vendor-completions" "$usr/share/fish/vendor_completions.d"
	for program in $programs; do
		install -m 755 "$bin/$program" "$usr/bin/$program"
	done
	files "$usr/share/kybernate"
	# `kybernate install` writes the node's own units.
	rm -r "$usr/share/kybernate/systemd"
	manuals "$usr/share/man/man1"
	gzip -9n "$usr"/share/man/man1/*
	completions=$work/tar/kybernate-$version/completions
	cp "$completions/kybernate.bash" "$usr/share/bash-completion/completions/kybernate"
	cp "$completions/kybernate.zsh" "$usr/share/zsh/vendor-completions/_kybernate"
	cp "$completions/kybernate.fish" "$usr/share/fish/vendor_completions.d/kybernate.fish"
	documentation "$usr/share/doc/kybernate"
}

# The newest version of the C library that a dynamic program asks for.
libc() {
	for program in $programs; do
		objdump -T "$bin/$program" 2>/dev/null
	done | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\)).*/\1/p' | sort -V | tail -n 1
}

deb() {
	tree=$work/deb
	cp -R "$work/system" "$tree"
	doc=$tree/usr/share/doc/kybernate
	cp "$package/debian/copyright" "$doc/copyright"
	gzip -9nc "$root/CHANGELOG.md" >"$doc/changelog.gz"
	maintainer=$(sed -n 's/^Maintainer: //p' "$package/debian/control")
	printf 'kybernate (%s-1) unstable; urgency=medium\n\n  * Version %s.\n\n -- %s  %s\n' \
		"$version" "$version" "$maintainer" "$(date -Rd "@$epoch")" |
		gzip -9n >"$doc/changelog.Debian.gz"
	mkdir -p "$tree/usr/share/lintian/overrides" "$tree/DEBIAN"
	cp "$package/debian/lintian-overrides" "$tree/usr/share/lintian/overrides/kybernate"
	install -m 755 "$package/debian/prerm" "$package/debian/postinst" "$tree/DEBIAN"
	sed -e "s/@VERSION@/$version/" -e "s/@LIBC@/$(libc)/" \
		-e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$tree" | cut -f 1)/" \
		"$package/debian/control" >"$tree/DEBIAN/control"
	(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
	find "$tree" -exec touch -hd "@$epoch" '{}' +
	dpkg-deb --root-owner-group -Zgzip --build "$tree" "$out/kybernate_$version-1_amd64.deb" >/dev/null
}

rpm() {
	# Where zsh and fish look on RPM systems.
	cp -R "$work/system" "$work/rpm"
	mv "$work/rpm/usr/share/zsh/vendor-completions" "$work/rpm/usr/share/zsh/site-functions"
	cp "$root/LICENSE" "$root/CHANGELOG.md" "$work/rpm/usr/share/doc/kybernate"
	rpmbuild -bb --quiet --target x86_64 --define "_topdir $work/rpmbuild" \
		--define "release_version $version" --define "tree $work/rpm" \
		--define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
		--define "_buildhost localhost" \
		"$package/kybernate.spec" >"$work/rpm.log" 2>&1 || { cat "$work/rpm.log" >&2; exit 1; }
	cp "$work/rpmbuild/RPMS/x86_64/kybernate-$version-1.x86_64.rpm" "$out"
}

chart() {
	mkdir -p "$work/chart"
	cp -R "$root/configs/chart" "$work/chart/kybernate"
	archive "$work/chart" kybernate | gzip -n >"$out/kybernate-chart-$version.tgz"
}

tarball
deb
rpm
chart
"$package/image.sh" "$bin" "$image" "$out/kybernate-$version-image.tar"
python3 "$package/sbom.py" "$root" >"$out/kybernate-$version.cdx.json"
cd "$out"
sha256sum kybernate[-_]* >SHA256SUMS
cat SHA256SUMS
