-- Ports of the host's that lead to a VM's while it runs, as they are written: [ADDRESS]:HOST:GUEST[/udp].
CREATE TABLE published (
    vm TEXT NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    port TEXT NOT NULL,
    PRIMARY KEY (vm, port)
) STRICT;
