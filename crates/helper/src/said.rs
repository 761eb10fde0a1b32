//! What the helper says: lines on stderr, which systemd takes for the journal, each with its level before it
//! (sd-daemon(3)).

use std::io::Write;

/// Something that somebody should look at.
pub fn warning(text: &str) {
    line(4, text);
}

/// Something that failed.
pub fn error(text: &str) {
    line(3, text);
}

fn line(level: u8, text: &str) {
    // Nobody can be told that nobody listens.
    drop(std::io::stderr().write_all(format!("<{level}>{}\n", printable(text)).as_bytes()));
}

/// Without what would end the line or move a terminal's cursor: parts of it come from the daemon.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_a_line_of_their_own_into_the_journal() {
        assert_eq!(printable("a\n<0>b\u{1b}[2J é"), "a\\n<0>b\\u{1b}[2J é");
    }
}
