"""Writes two layers, lower.tar and upper.tar, with everything below odd/ that layers can hold."""

import io
import tarfile

CAPABILITY = bytes([1, 0, 0, 2, 0, 0x20] + [0] * 14)
TIME = 1_234_567_890


class Layer:
    def __init__(self, path):
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, mode=0o644, owner=(0, 0), content=b"", link="", device=(0, 0), xattrs=None):
        entry = tarfile.TarInfo("odd/" + name)
        entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
        (entry.uid, entry.gid), entry.mtime = owner, TIME + len(name)
        entry.devmajor, entry.devminor = device
        for key, value in (xattrs or {}).items():
            entry.pax_headers["SCHILY.xattr." + key] = value.decode("utf-8", "surrogateescape")
        self.tar.addfile(entry, io.BytesIO(content))

    def folder(self, name, mode=0o755, owner=(0, 0), **more):
        self.add(name, tarfile.DIRTYPE, mode, owner, **more)

    def link(self, name, to):
        self.add(name, tarfile.LNKTYPE, link="odd/" + to)

    def symlink(self, name, to):
        self.add(name, tarfile.SYMTYPE, 0o777, link=to)


lower = Layer("lower.tar")
lower.folder("")
lower.folder("sticky", 0o1777)
lower.folder("group", 0o2750, (7, 70_000))
lower.add("suid", mode=0o4755, owner=(100_000, 5), content=b"suid")
lower.add("closed", mode=0, content=b"closed")
lower.add("capable", mode=0o755, content=b"ping", xattrs={"security.capability": CAPABILITY, "user.note": b"a b"})
lower.add("first", content=b"linked" * 1000)
lower.link("second", "first")
lower.add("char", tarfile.CHRTYPE, 0o620, (0, 5), device=(4, 77))
lower.add("block", tarfile.BLKTYPE, 0o660, device=(8, 300))
lower.add("fifo", tarfile.FIFOTYPE, 0o600)
lower.symlink("absolute", "/etc/hostname")
lower.symlink("long", "../nowhere/" * 30)
lower.add("n" * 200 + "\udcff\udcfe", content=b"no UTF-8")
lower.folder("/".join(["deep"] * 40))
lower.folder("opaque")
lower.add("opaque/old", content=b"old")
lower.folder("becomes-link")
lower.add("becomes-link/inside", content=b"gone")
lower.symlink("becomes-folder", "sticky")
lower.add("removed", content=b"removed")
lower.add("replaced", mode=0o600, content=b"the first version is longer")
lower.add("large", content=bytes(range(256)) * 8192)
lower.tar.close()

upper = Layer("upper.tar")
upper.add("opaque/new", content=b"new")
upper.add("opaque/.wh..wh..opq")
upper.add(".wh.removed")
upper.symlink("becomes-link", "sticky")
upper.folder("becomes-folder", 0o700)
upper.add("becomes-folder/inside", content=b"inside")
upper.add("replaced", mode=0o644, owner=(1, 2), content=b"second")
upper.link("third", "first")
upper.folder("group", 0o710, (8, 9))
upper.add("sparse", content=bytes(1 << 20) + b"end")
upper.tar.close()
