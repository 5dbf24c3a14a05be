//! The one escaping of text from outside, by Unicode general category.

use std::{borrow::Cow, fmt::Write as _};

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// Combining marks in a row that are printed on one base; further ones would cover other lines.
const MAX_MARKS: usize = 4;

/// Characters that look like a blank or like nothing although their category is that of a letter, a
/// mark or a symbol: the visible part of `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt,
/// Unicode 16), and BRAILLE PATTERN BLANK.
const BLANK: [(char, char); 10] = [
    ('\u{34f}', '\u{34f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{2065}', '\u{2065}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Appends `bytes` to `text` so that they cannot end a line, drive a terminal, reorder or hide what is
/// displayed: `\n`, `\r` and `\t` as such, other characters that have no shape of their own as `\u{..}`,
/// bytes that are not UTF-8 as `\xNN`. Characters in `kept` stand for themselves. The backslash is
/// itself: the escapes are for reading, not for decoding.
pub fn escape_to(text: &mut String, bytes: &[u8], kept: &[char]) {
    escape_while(text, bytes, kept, |_, _, _| true);
}

/// As [`escape_to`], one character or one byte that is not UTF-8 after the other, until `goes_on` is
/// false. It gets the text, how long that was before, and the bytes that were taken.
pub fn escape_while(
    text: &mut String,
    bytes: &[u8],
    kept: &[char],
    mut goes_on: impl FnMut(&mut String, usize, usize) -> bool,
) {
    // How many more combining marks the last character carries.
    let mut marks_left = 0;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let (before, length) = (text.len(), character.len_utf8());
            let kind = match kept.contains(&character) {
                true => Kind::Other,
                false => kind(character),
            };
            let is_printed = match kind {
                Kind::Base => {
                    marks_left = MAX_MARKS;
                    true
                }
                Kind::Other => {
                    marks_left = 0;
                    true
                }
                Kind::Mark => {
                    let has_base = marks_left > 0;
                    marks_left = marks_left.saturating_sub(1);
                    has_base
                }
                Kind::Hidden => {
                    marks_left = 0;
                    false
                }
            };
            match character {
                _ if is_printed => text.push(character),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                _ => {
                    // Writing to a String does not fail.
                    let _ = write!(text, "\\u{{{:x}}}", u32::from(character));
                }
            }
            if !goes_on(text, before, length) {
                return;
            }
        }
        for byte in chunk.invalid() {
            marks_left = 0;
            let before = text.len();
            let _ = write!(text, "\\x{byte:02x}");
            if !goes_on(text, before, 1) {
                return;
            }
        }
    }
}

/// `text` of several lines with everything but its line ends escaped.
#[must_use]
pub fn escape_lines(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    let mut escaped = String::with_capacity(text.len());
    escape_to(&mut escaped, text, &['\n']);
    escaped
}

/// Text without NUL as a shell reads one word, so that no name looks like more than one.
#[must_use]
pub fn quote(text: &str) -> Cow<'_, str> {
    shlex::try_quote(text).unwrap_or(Cow::Borrowed(text))
}

enum Kind {
    /// A letter or a number: combining marks may follow.
    Base,
    Mark,
    /// Punctuation or a symbol.
    Other,
    Hidden,
}

fn kind(character: char) -> Kind {
    // Most of what is printed, without a look at the tables.
    match character {
        _ if character.is_ascii_alphanumeric() => return Kind::Base,
        ' '..='~' => return Kind::Other,
        _ => {}
    }
    if BLANK
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&character))
    {
        return Kind::Hidden;
    }
    match get_general_category(character) {
        Category::UppercaseLetter
        | Category::LowercaseLetter
        | Category::TitlecaseLetter
        | Category::ModifierLetter
        | Category::OtherLetter
        | Category::DecimalNumber
        | Category::LetterNumber
        | Category::OtherNumber => Kind::Base,
        Category::NonspacingMark | Category::EnclosingMark | Category::SpacingMark => Kind::Mark,
        Category::ClosePunctuation
        | Category::ConnectorPunctuation
        | Category::CurrencySymbol
        | Category::DashPunctuation
        | Category::FinalPunctuation
        | Category::InitialPunctuation
        | Category::MathSymbol
        | Category::ModifierSymbol
        | Category::OpenPunctuation
        | Category::OtherPunctuation
        | Category::OtherSymbol => Kind::Other,
        // Control, format, line and paragraph separators, private use, surrogates, unassigned, and every
        // space but the ASCII one, which is a base for nothing.
        _ => Kind::Hidden,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(text: &str) -> String {
        let mut escaped = String::new();
        escape_to(&mut escaped, text.as_bytes(), &[]);
        escaped
    }

    #[test]
    fn what_has_no_shape_of_its_own_is_escaped() {
        let hidden = [
            // Control, bidirectional control, format, soft hyphen, interlinear annotation.
            '\u{0}',
            '\u{1b}',
            '\u{7f}',
            '\u{9b}',
            '\u{202e}',
            '\u{2066}',
            '\u{200b}',
            '\u{200d}',
            '\u{feff}',
            '\u{ad}',
            '\u{61c}',
            '\u{fff9}',
            '\u{110bd}',
            '\u{13430}',
            '\u{1d173}',
            // Separators and spaces.
            '\u{2028}',
            '\u{2029}',
            '\u{a0}',
            '\u{2003}',
            '\u{3000}',
            '\u{1680}',
            '\u{202f}',
            // Fillers and blanks.
            '\u{2800}',
            '\u{115f}',
            '\u{1160}',
            '\u{3164}',
            '\u{ffa0}',
            '\u{34f}',
            '\u{17b4}',
            // Variation selectors and tags.
            '\u{180b}',
            '\u{180f}',
            '\u{fe00}',
            '\u{fe0f}',
            '\u{e0100}',
            '\u{e01ef}',
            '\u{e0001}',
            '\u{e0041}',
            // Private use, unassigned, noncharacters.
            '\u{e000}',
            '\u{f8ff}',
            '\u{10fffd}',
            '\u{378}',
            '\u{2065}',
            '\u{fdd0}',
            '\u{ffff}',
        ];
        for character in hidden {
            let text = escaped(&format!("a{character}b"));
            assert!(!text.contains(character), "{:x}", u32::from(character));
            assert!(text.starts_with("a\\") && text.ends_with('b'), "{text}");
        }
    }

    #[test]
    fn letters_and_symbols_of_every_script_are_themselves() {
        for text in [
            "grüße",
            "日本",
            "Ωμέγα",
            "ελ-γ",
            "हिन्दी",
            "ภาษาไทย",
            "e\u{301}",
            "한글",
            "عربي",
            "→ € ½ ☃ 😀",
        ] {
            assert_eq!(escaped(text), text);
        }
    }

    #[test]
    fn a_combining_mark_needs_a_base_and_few_fit_on_one() {
        assert_eq!(escaped("\u{301}a"), "\\u{301}a");
        assert_eq!(escaped(" \u{301}"), " \\u{301}");
        assert_eq!(escaped("[\u{20dd}]"), "[\\u{20dd}]");
        assert_eq!(escaped("\u{1b}\u{301}"), "\\u{1b}\\u{301}");
        let many = escaped(&format!("a{}", "\u{301}".repeat(6)));
        assert_eq!(many, "a\u{301}\u{301}\u{301}\u{301}\\u{301}\\u{301}");
    }

    #[test]
    fn lines_keep_their_ends_only() {
        assert_eq!(escape_lines("a\tb\n\u{1b}c\r\n"), "a\\tb\n\\u{1b}c\\r\n");
    }
}
