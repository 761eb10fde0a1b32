//! A guest's words for a person's terminal: without what would move its cursor, change its title or its colours.
//!
//! A guest writes what it likes to its console. Into a file or a pipe that goes as it is; a terminal would obey it.

/// Takes bytes piece by piece and keeps text, newlines and tabs. Sequences (ECMA-48: ESC, CSI, OSC and the like) and other
/// control characters are dropped, also where a piece ends in the midst of one.
#[derive(Debug, Default)]
pub(crate) struct Printable(State);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After 0xC2, which begins the UTF-8 of the control characters U+0080 to U+009F, and of harmless ones.
    Latin,
    Escape,
    /// `ESC [ … letter`
    Control,
    /// `ESC ] … BEL` and its kin, which end with BEL or `ESC \`.
    String,
}

impl Printable {
    pub(crate) fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.0 = self.step(byte, &mut kept);
        }
        kept
    }

    fn step(&self, byte: u8, kept: &mut Vec<u8>) -> State {
        match (self.0, byte) {
            (State::Control, 0x40..=0x7e) | (State::String, 0x07) => State::Text,
            (State::Control, 0x20..=0x3f) => State::Control,
            (_, 0x1b) => State::Escape,
            (State::String, _) => State::String,
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Escape, 0x30..=0x7e) => State::Text,
            (State::Latin, 0x80..=0x9f) => State::Text,
            (State::Latin, _) => {
                kept.push(0xc2);
                Self(State::Text).step(byte, kept)
            }
            (_, 0xc2) => State::Latin,
            (_, b'\n' | b'\t' | 0x20..=0x7e | 0x80..) => {
                kept.push(byte);
                State::Text
            }
            _ => State::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &[u8] =
        b"a\r\n\x1b[1;31mred\x1b[0m\t\x1b]0;title\x07b\x1b]8;;x\x1b\\c\x07\x08\xc2\x9bd \xc2\xb5\xc3\xa4\x1b(Be\x7f";

    #[test]
    fn text_stays_and_what_a_terminal_would_obey_goes() {
        let shown = Printable::default().filter(CONSOLE);
        assert_eq!(String::from_utf8(shown).unwrap(), "a\nred\tbcd \u{b5}\u{e4}e");
    }

    #[test]
    fn it_makes_no_difference_how_the_words_are_cut() {
        let whole = Printable::default().filter(CONSOLE);
        for cut in 0..CONSOLE.len() {
            let mut printable = Printable::default();
            let pieces =
                [printable.filter(&CONSOLE[..cut]), printable.filter(&CONSOLE[cut..])].concat();
            assert_eq!(pieces, whole, "cut at {cut}");
        }
    }

    #[test]
    fn nothing_that_is_kept_is_a_control_character() {
        for first in 0..=255_u8 {
            for second in 0..=255_u8 {
                let kept = Printable::default().filter(&[first, second, b'[', b'm']);
                let harmless = |byte: &u8| {
                    *byte == b'\n' || *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f)
                };
                assert!(kept.iter().all(harmless), "{first:#x} {second:#x}");
            }
        }
    }
}
