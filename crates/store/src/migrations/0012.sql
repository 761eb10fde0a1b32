-- The private key by which a VM's ssh server shows that it is that VM's, as OpenSSH writes it. One that has none gets one when it is needed.
CREATE TABLE host_keys (
    vm TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    private TEXT NOT NULL
) STRICT;
