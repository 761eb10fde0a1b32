-- What users have written on VMs.
CREATE TABLE labels (
    vm TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (vm, key)
) STRICT;

-- When a VM is deleted by itself, and how many milliseconds it runs without activity before it is stopped; 0: for ever.
ALTER TABLE vms ADD COLUMN expires_at TEXT;
ALTER TABLE vms ADD COLUMN auto_stop_ms INTEGER NOT NULL DEFAULT 0;
