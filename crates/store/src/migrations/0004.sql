-- A network of guests: a bridge with a subnet, on which the host has the gateway's address.
CREATE TABLE networks (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    gateway TEXT NOT NULL,
    prefix INTEGER NOT NULL,
    mtu INTEGER NOT NULL
) STRICT;

-- A VM's place in its network, from create to delete; NULL when it has no network device.
ALTER TABLE vms ADD COLUMN network INTEGER REFERENCES networks (number);
ALTER TABLE vms ADD COLUMN address TEXT;
ALTER TABLE vms ADD COLUMN nat INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX vms_address ON vms (network, address);

-- Bridges and taps of VMs that run were made without addresses. Their release needs only their names.
UPDATE claims SET claim = json_set(claim, '$.network',
    json('{"number":0,"gateway":"0.0.0.0","prefix":32,"mtu":1500}'))
WHERE json_extract(claim, '$.kind') IN ('bridge', 'tap');
