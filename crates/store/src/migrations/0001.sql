CREATE TABLE installation (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    id TEXT NOT NULL
) STRICT;

CREATE TABLE kernels (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    release TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    modules INTEGER NOT NULL,
    source TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE images (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    init TEXT,
    source TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

-- A VM names its image and kernel by name and by digest: the name is for people, the digest is what it boots.
CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    image TEXT NOT NULL,
    image_digest TEXT NOT NULL,
    init TEXT,
    kernel TEXT NOT NULL,
    kernel_digest TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    disk_bytes INTEGER NOT NULL,
    disk_driver TEXT NOT NULL,
    ephemeral INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    started_at TEXT,
    boot_id TEXT,
    vmm TEXT,
    problem TEXT
) STRICT;

-- What VMs hold on the host, recorded before it is made, in the order in which it is made.
CREATE TABLE claims (
    vm TEXT NOT NULL REFERENCES vms (id),
    sequence INTEGER NOT NULL,
    life TEXT NOT NULL,
    claim TEXT NOT NULL,
    problem TEXT,
    PRIMARY KEY (vm, sequence)
) STRICT;

CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    problem TEXT
) STRICT;
