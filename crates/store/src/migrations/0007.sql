-- Whether the guests of a network reach each other.
ALTER TABLE networks ADD COLUMN peers INTEGER NOT NULL DEFAULT 0;
