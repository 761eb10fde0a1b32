-- What a VM may reach beyond its host: `none`, `all`, or `allow:` and what. Whoever had NAT reaches all.
ALTER TABLE vms ADD COLUMN egress TEXT NOT NULL DEFAULT 'none';
UPDATE vms SET egress = 'all' WHERE nat;
ALTER TABLE vms DROP COLUMN nat;
