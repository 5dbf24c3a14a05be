//! Text from outside, made safe to print.

use std::{borrow::Borrow, ffi::OsStr, fmt, ops::Deref, os::unix::ffi::OsStrExt as _, path::Path};

use serde::Serialize;

use crate::util::escape_to;

/// Text that cannot end a line, drive a terminal, reorder or hide what is displayed: see
/// [`escape_to`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Printable(String);

impl Printable {
    /// Escapes `bytes`, which may hold anything.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(bytes.len());
        escape_to(&mut text, bytes, &[]);
        Self(text)
    }
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
