-- TCP ports of the host's loopback that a VM reaches: a JSON array.
ALTER TABLE vms ADD COLUMN exposed TEXT NOT NULL DEFAULT '[]';
