# mmdebstrap's hook: the kernel's package, from the archive of the release, only unpacked, in kernel/ of this folder.
# Installed, it would make a generic initramfs for half a minute.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
mkdir kernel
cd kernel
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^  Depends: \(linux-image-[0-9]\)/\1/p' | head -n 1)
apt-get -q download "$package"
dpkg --extract "$package"_*.deb .
