//! Text from outside, made safe to print.

use std::{
    borrow::Borrow, ffi::OsStr, fmt, ops::Deref, os::unix::ffi::OsStrExt as _, path::Path,
    sync::Arc,
};

use serde::Serialize;

use crate::util::escape_while;

/// Text that cannot end a line, drive a terminal, reorder or hide what is displayed: see
/// [`escape_to`](crate::util::escape_to).
/// Copies share the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Printable(Arc<str>);

impl Printable {
    /// Escapes `bytes`, which may hold anything.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::limited(bytes, usize::MAX)
    }

    /// Escapes as many of the first bytes as make at most `max` bytes in a JSON string. If that is
    /// not all of them, the number of the others follows: `...(+1234 bytes)`.
    #[must_use]
    pub fn limited(bytes: &[u8], max: usize) -> Self {
        let (mut text, taken) = escape(bytes, max);
        if taken < bytes.len() {
            text.push_str(&Self::cut_mark((bytes.len() - taken) as u64));
        }
        Self(text.into())
    }

    /// The text that [`limited`](Self::limited) leaves, without the note, and the bytes that it cuts.
    #[must_use]
    pub fn split(bytes: &[u8], max: usize) -> (Self, u64) {
        let (text, taken) = escape(bytes, max);
        (Self(text.into()), (bytes.len() - taken) as u64)
    }

    /// The note that `bytes` bytes were cut.
    #[must_use]
    pub fn cut_mark(bytes: u64) -> String {
        format!("...(+{bytes} bytes)")
    }

    /// As [`limited`](Self::limited), of printable text.
    #[must_use]
    pub fn shortened(self, max: usize) -> Self {
        if self.json_bytes() <= max {
            return self;
        }
        Self::limited(self.0.as_bytes(), max)
    }

    /// The bytes that it takes in a JSON string.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        json_bytes(&self.0)
    }
}

/// The bytes of printable text in a JSON string (RFC 8259 section 7).
fn json_bytes(text: &str) -> usize {
    let is_escaped = |byte: &&u8| matches!(**byte, b'"' | b'\\');
    text.len() + text.as_bytes().iter().filter(is_escaped).count()
}

/// The escaped text of the first bytes, at most `max` bytes in a JSON string, and how many bytes
/// those are.
fn escape(bytes: &[u8], max: usize) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len().min(max));
    let (mut taken, mut size) = (0, 0);
    escape_while(&mut text, bytes, &[], |text, before, bytes| {
        size += json_bytes(&text[before..]);
        let fits = size <= max;
        if fits {
            taken += bytes;
        } else {
            text.truncate(before);
        }
        fits
    });
    (text, taken)
}

impl From<&str> for Printable {
    fn from(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }
}

impl From<&OsStr> for Printable {
    fn from(text: &OsStr) -> Self {
        Self::from_bytes(text.as_bytes())
    }
}

impl From<&Path> for Printable {
    fn from(path: &Path) -> Self {
        Self::from(path.as_os_str())
    }
}

impl Borrow<str> for Printable {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Deref for Printable {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_forges_a_line_or_drives_a_terminal_gets_through() {
        let cases: [(&[u8], &str); 10] = [
            (b"nginx: worker", "nginx: worker"),
            ("grüße-日本".as_bytes(), "grüße-日本"),
            (b"a\nb\r\tc", "a\\nb\\r\\tc"),
            (b"\x1b[31mred", "\\u{1b}[31mred"),
            (b"bell\x07 del\x7f", "bell\\u{7} del\\u{7f}"),
            ("c1 \u{9b}31m".as_bytes(), "c1 \\u{9b}31m"),
            ("rtl \u{202e}gpj.exe".as_bytes(), "rtl \\u{202e}gpj.exe"),
            ("line\u{2028}sep".as_bytes(), "line\\u{2028}sep"),
            (b"bad \xff\xc3 utf8", "bad \\xff\\xc3 utf8"),
            (b"dev-disk-by\\x2duuid.swap", "dev-disk-by\\x2duuid.swap"),
        ];
        for (bytes, printed) in cases {
            assert_eq!(&*Printable::from_bytes(bytes), printed);
        }
    }

    #[test]
    fn text_is_cut_between_its_characters_and_says_how_long_it_was() {
        let cases: [(&[u8], usize, &str); 8] = [
            (b"abc", 3, "abc"),
            (b"abcd", 3, "abc...(+1 bytes)"),
            ("grüße".as_bytes(), 3, "gr...(+5 bytes)"),
            (b"a\x1bb", 7, "a...(+2 bytes)"),
            (b"a\x1bb", 8, "a\\u{1b}...(+1 bytes)"),
            (b"\xff\xff", 9, "\\xff...(+1 bytes)"),
            (b"\"\"\"", 5, "\"\"...(+1 bytes)"),
            (b"abc", 0, "...(+3 bytes)"),
        ];
        for (bytes, max, expected) in cases {
            let text = Printable::limited(bytes, max);
            assert_eq!(&*text, expected);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(json.len(), text.json_bytes() + 2);
            let note = text.find("...").map_or(0, |at| text.len() - at);
            assert!(text.json_bytes() <= max + note);
        }
    }

    #[test]
    fn no_byte_at_all_is_printed_raw_when_it_is_a_control() {
        for byte in 0..=u8::MAX {
            let text = Printable::from_bytes(&[b'a', byte, b'b']);
            assert!(
                !text.chars().any(char::is_control),
                "{byte:#x} gave {text:?}"
            );
        }
    }
}
