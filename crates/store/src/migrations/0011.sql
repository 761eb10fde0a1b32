-- 40 random bits, by which the IPv6 prefixes of this installation's networks are nobody else's (RFC 4193, 3.2): 10 hexadecimal digits.
CREATE TABLE unique_local (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    global_id TEXT NOT NULL
) STRICT;
INSERT INTO unique_local VALUES (1, lower(hex(randomblob(5))));
