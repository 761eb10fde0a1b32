-- A VM's place in the range of users that jailed VMMs run as: from create to delete, no other VM's.
ALTER TABLE vms ADD COLUMN slot INTEGER;
UPDATE vms SET slot = (SELECT count(*) FROM vms AS other WHERE other.id < vms.id);
CREATE UNIQUE INDEX vms_slot ON vms (slot);
