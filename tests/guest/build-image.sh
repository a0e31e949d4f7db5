#!/bin/sh
# build-image.sh [OUTDIR] - make what a test guest boots from, in OUTDIR (default: build/guest):
#   vmlinuz     the kernel of Debian's cloud image package
#   initrd      busybox, the virtio modules, guest-work, guest-shift; not compressed: unpacking costs more than loading
#   root.ext4   Python and some hundred MiB of real files, shared read-only by all guests
#   no-thp      helper of run-guest.sh
# Needs no root and installs nothing. Does nothing when OUTDIR is up to date; packages once fetched are kept.
# MEMVIRT_GUEST_KERNEL names another kernel package, CC another compiler.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$root/build/guest}
kernel=${MEMVIRT_GUEST_KERNEL:-linux-image-cloud-amd64}
modules="virtio_pci virtio_blk virtio_balloon virtio_console"

die()
{
	echo "build-image: $*" >&2
	exit 1
}

# The first dependency of package $1 whose name matches $2: how a metapackage says what it stands for.
depends_on()
{
	apt-cache depends --important "$1" 2>/dev/null |
		awk -v want="$2" '$1 ~ /Depends:$/ && $2 ~ want { print $2; exit }'
}

# Python proper with all it needs, and its library without what that needs: extension modules that miss a
# shared library are not imported here.
python_packages()
{
	python=$(depends_on python3-minimal '^python3[.0-9]*-minimal$')
	[ -n "$python" ] || return 1
	apt-cache depends --recurse --important "$python" | awk '/^[a-z0-9]/ { print $1 }'
	echo "lib${python%-minimal}-stdlib"
}

# fetch PACKAGE...: unpacks the packages into $tmp/root.
fetch()
{
	# The sandbox user of apt may not enter a private directory. The names of the files are asked for in
	# another directory: apt does not list what is there already.
	if ! (cd "$out/debs" && apt-get -qq -o APT::Sandbox::User=root download "$@" >&2) ||
		! (cd "$tmp" && apt-get -qq download --print-uris "$@" >uris) || [ ! -s "$tmp/uris" ]; then
		die "cannot fetch $*: has apt-get update run, and can the package sources be reached?"
	fi
	mkdir -p "$tmp/root"
	awk '{ print $2 }' "$tmp/uris" | while read -r deb; do
		dpkg -x "$out/debs/$deb" "$tmp/root"
	done
}

# take_module NAME: copies a module after those it depends on and appends it to the loading order. The
# package has no dependency table (depmod makes it on installation), but each module names what it needs.
take_module()
{
	ko=$tmp/initrd/modules/$1.ko
	[ ! -e "$ko" ] || return 0
	file=$(find "$tmp/root/lib/modules" "$tmp/root/usr/lib/modules" -name "$1.ko*" 2>/dev/null | head -n 1)
	case $file in
	*.ko) cp "$file" "$ko" ;;
	*.ko.xz) xz -dc "$file" >"$ko" ;;
	*.ko.zst) zstd -qdc "$file" >"$ko" ;;
	*) return 0 ;;	# built in; if not, the guest says that it has no disk
	esac
	for need in $(tr '\0' '\n' <"$ko" | sed -n 's/^depends=//p' | tr , ' '); do
		take_module "$need"
	done
	echo "$1.ko" >>"$tmp/initrd/modules/order"
}

make_root()
{
	python_list=$(python_packages) || die "no package python3-minimal: has apt-get update run?"
	# shellcheck disable=SC2086	# a list of packages
	fetch "$kernel_package" $python_list
	for dir in lib lib64; do	# the links of a merged /usr come with a package that we leave out
		[ -e "$tmp/root/$dir" ] || ln -s "usr/$dir" "$tmp/root/$dir"
	done
	ln -sf "$(basename "$tmp"/root/usr/bin/python3.*)" "$tmp/root/usr/bin/python3"
	cp "$here/guest.py" "$tmp/root/"
	cp "$tmp"/root/boot/vmlinuz-* "$tmp/vmlinuz"

	mkdir "$tmp/root/dev"	# init mounts it again there
	# The drivers and file systems stay: real files for the page cache, as many as a small system has.
	rm -rf "$tmp/root/boot" "$tmp"/root/lib/modules/*/kernel/net \
		"$tmp"/root/usr/lib/modules/*/kernel/net
	files=$(find "$tmp/root" | wc -l)
	kib=$(du -sk --apparent-size "$tmp/root" | cut -f 1)
	# A 4 KiB block and an inode per file on top of the data, and a tenth for tables. No journal: it is
	# never written. Blocks the size of a page, so that the page cache of all guests looks alike.
	mkfs.ext4 -q -F -b 4096 -m 0 -O ^has_journal -N $((files + 64)) -E root_owner=0:0 \
		-d "$tmp/root" "$tmp/root.ext4" $(((kib + files * 5) * 11 / 10 + 8192))k >"$tmp/mkfs.log"
}

make_initrd()
{
	mkdir -p "$tmp/initrd/bin" "$tmp/initrd/proc" "$tmp/initrd/sys" "$tmp/initrd/dev" "$tmp/initrd/tmp" \
		"$tmp/initrd/image" "$tmp/initrd/modules"
	for module in $modules; do
		take_module "$module"
	done
	cp "$(command -v busybox)" "$tmp/initrd/bin/busybox"
	for applet in sh cat insmod mount poweroff sleep stty swapon usleep; do
		ln -s busybox "$tmp/initrd/bin/$applet"
	done
	cp "$tmp/guest-work" "$tmp/guest-shift" "$tmp/initrd/bin/"
	install -m 755 "$here/init" "$tmp/initrd/init"
	(cd "$tmp/root" && find . -type f | LC_ALL=C sort | "$tmp/guest-work" manifest) >"$tmp/initrd/manifest"
	(cd "$tmp/initrd" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$tmp/initrd.cpio"
}

for tool in apt-get apt-cache dpkg "${CC:-gcc}" busybox cpio mkfs.ext4 flock xz zstd; do
	PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || die "$tool is not installed"
done
PATH=$PATH:/usr/sbin:/sbin	# mkfs.ext4 is there, users are not told

mkdir -p "$out/debs"
out=$(cd "$out" && pwd)
exec 9>"$out/lock"
flock 9	# several tests may want the image at once

want=$(cd "$here" && { echo "$kernel"; cat build-image.sh init guest-work.c guest-shift.c guest.py no-thp.c; } | sha256sum)
[ "$(cat "$out/stamp" 2>/dev/null)" != "$want" ] || exit 0
rm -f "$out/stamp"
tmp=$(mktemp -d "$out/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

case $kernel in
linux-image-[0-9]*) kernel_package=$kernel ;;
*) kernel_package=$(depends_on "$kernel" '^linux-image-[0-9]') ;;
esac
[ -n "$kernel_package" ] || die "no package $kernel: has apt-get update run?"

# Vector code is slow under emulation.
"${CC:-gcc}" -O2 -fno-tree-vectorize -static -o "$tmp/guest-work" "$here/guest-work.c"
"${CC:-gcc}" -O2 -fno-tree-vectorize -static -pthread -o "$tmp/guest-shift" "$here/guest-shift.c"
"${CC:-gcc}" -O2 -static -o "$tmp/no-thp" "$here/no-thp.c"
make_root
make_initrd

mv "$tmp/initrd.cpio" "$out/initrd"
mv "$tmp/vmlinuz" "$tmp/root.ext4" "$tmp/guest-work" "$tmp/guest-shift" "$tmp/no-thp" "$out/"
echo "$want" >"$out/stamp"
echo "build-image: $out is ready ($kernel_package)"
