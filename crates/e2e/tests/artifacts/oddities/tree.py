"""Prints everything of a tree, an entry a line: its path, type, mode, owner, device, links, times, attributes, content."""

import hashlib
import os
import stat
import sys

root = os.fsencode(sys.argv[1])
first_names = {}
for folder, folders, files in os.walk(root):
    for name in sorted(folders + files):
        path = os.path.join(folder, name)
        shown = os.path.relpath(path, root)
        found = os.lstat(path)
        facts = [oct(found.st_mode), found.st_uid, found.st_gid]
        if not stat.S_ISDIR(found.st_mode):
            # A folder's links and size are its file system's business.
            first = first_names.setdefault((found.st_dev, found.st_ino), shown)
            facts += [found.st_size, found.st_nlink, first, found.st_rdev, int(found.st_mtime)]
        if stat.S_ISLNK(found.st_mode):
            facts.append(os.readlink(path))
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                facts.append(hashlib.sha256(file.read()).hexdigest())
        for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
            facts.append((attribute, os.getxattr(path, attribute, follow_symlinks=False)))
        print(repr(shown), *facts)
