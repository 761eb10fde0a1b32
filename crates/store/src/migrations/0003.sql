-- What images say about their programs (JSON), and the digest of the manifest that an image was pulled by. A VM keeps what
-- its image said when it was made, as it keeps its digest.
ALTER TABLE images ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE images ADD COLUMN manifest TEXT;
ALTER TABLE vms ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE vms ADD COLUMN entrypoint INTEGER NOT NULL DEFAULT 0;
