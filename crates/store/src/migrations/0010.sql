-- Git repositories that were carried into guests: where from, where to, and which of their commits and trees the host has.
-- Work: what of it would go with the VM, asked when the guest was stopped; nothing while it runs and after a crash.
CREATE TABLE workspaces (
    vm TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    workspace TEXT NOT NULL,
    work TEXT
) STRICT;
