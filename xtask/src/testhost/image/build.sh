# Makes the test host's disk.raw, vmlinuz and initrd.img in this folder, out of files/ (what is added to Debian) and init.sh.
# As root, in a mount namespace that nobody else sees. $1: Debian's release. $2: packages, with commas. Then the lines of
# its sources.list; without one mmdebstrap takes its own.
set -eu
release=$1
packages=$2
shift 2

mmdebstrap --mode=root --variant=minbase --format=directory --skip=check/qemu --include="$packages" \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/lib/udev/hwdb.d/*' --dpkgopt='path-exclude=/lib/udev/hwdb.d/*' \
    --customize-hook='sh kernel.sh' -- "$release" tree "$@"

version=$(ls kernel/lib/modules)
mkdir -p tree/lib/modules
mv "kernel/lib/modules/$version" tree/lib/modules/
chroot tree depmod "$version"
mv "kernel/boot/vmlinuz-$version" vmlinuz

# What it takes to mount the disk, in the order in which it must be loaded.
mkdir -p initrd/bin initrd/modules initrd/dev initrd/root
cp tree/bin/busybox initrd/bin/
cp init.sh initrd/init
chmod 755 initrd/init
chroot tree modprobe --set-version "$version" --show-depends --all virtio_pci virtio_blk ext4 |
    sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' > modules
while read -r module; do
    cp "tree$module" initrd/modules/
    basename "$module" >> initrd/modules/order
done < modules
(cd initrd && find . | cpio --quiet --create --format=newc --owner=0:0) > initrd.img

cp -r files/. tree/
chmod 700 tree/root/.ssh
chmod 600 tree/root/.ssh/authorized_keys tree/etc/ssh/ssh_host_ed25519_key
rm -f tree/etc/ssh/ssh_host_rsa_key* tree/etc/ssh/ssh_host_ecdsa_key*
echo uninitialized > tree/etc/machine-id
mkdir -p tree/banger tree/cache
chroot tree useradd --create-home --shell /bin/bash --uid 1000 dev
chroot tree useradd --create-home --shell /bin/bash --uid 1001 stranger
chroot tree systemctl --quiet enable systemd-networkd ssh testhost-ready
chroot tree systemctl --quiet mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service systemd-timesyncd.service \
    systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service

# With a journal, as users' disks have: a power cut must be survived. Sparse: it takes what is in it.
truncate --size=32G disk.raw
mke2fs -q -F -t ext4 -L testhost -i 65536 -J size=32 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d tree disk.raw
