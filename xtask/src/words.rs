//! Checks the project's wording: docs/glossary.md has one name for one thing, and this lists
//! the names that it replaced.

#![forbid(unsafe_code)]

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

/// Banned words and what to write instead. A word also matches as a part of an identifier (`snake_case`,
/// `CamelCase`), words of a phrase across line ends; `*` stands for up to four words.
const BANNED: &[(&str, &str)] = &[
    ("adopt", "mark_existing"),
    ("adopted", "existing, marked"),
    ("adoption", "ExistingSocket"),
    ("adopts", "mark_existing"),
    ("bad days", "errors"),
    ("bystander", "unwatched"),
    ("bystanders", "unwatched"),
    ("collapse", "aggregate"),
    ("collapsed", "aggregated"),
    ("collapses", "aggregates"),
    ("collapsing", "aggregating"),
    ("folder", "directory"),
    ("folders", "directories"),
    ("imageless", "exec_info_error"),
    ("in vain", "MAX_EMPTY_POLLS, without result"),
    ("is kernels", "is_kernel_socket"),
    ("kernel side", "BPF programs"),
    ("last words", "verifier log"),
    ("likewise", "also"),
    ("loudest", "max_severity"),
    ("nobodys", "unowned_once"),
    ("occupancies", "tracked sockets"),
    ("occupancy", "tracked socket"),
    ("occupant", "socket mark"),
    ("occupants", "socket marks"),
    ("on pain of", "or"),
    ("quiet", "aggregation"),
    ("refusal", "deny"),
    ("refusals", "denials"),
    ("refuse", "deny"),
    ("refused", "denied; failed"),
    ("refuses", "denies; fails"),
    ("refusing", "denying"),
    ("registry s word", "registry entry"),
    ("stranger", "untracked listener"),
    ("strangers", "untracked listeners"),
    ("sum up", "summarize"),
    ("summed up", "counted in a summary"),
    ("survey", "scan"),
    ("surveyor", "ScanScheduler"),
    ("surveys", "scans"),
    ("taker", "binder, owner"),
    ("takers", "binders, owners"),
    ("tell", "report, show"),
    ("telling", "reporting"),
    ("tells", "reports, shows"),
    ("the stay", "the lifetime"),
    ("its stay", "its lifetime"),
    ("a stay", "a lifetime"),
    ("told", "reported; counted"),
    ("unlooked", "holders_pending"),
    ("untold", "unreported; counted"),
    ("what * comes to", "the sum, the result"),
    ("what * come to", "the sum, the result"),
];

/// Lines that may have a banned word: a file or a directory with its `/` (empty for all files), a text that
/// the line contains in lower case, and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("xtask/src/words.rs", "", "the list itself, and its tests"),
    ("CHANGELOG.md", "collapse", "names the old key and flag"),
    (
        "docs/",
        "`[collapse]`",
        "documents that the old table is still read",
    ),
    (
        "docs/",
        "--no-collapse",
        "documents that the old flag is still read",
    ),
    (
        "portwatch/src/commands/run.rs",
        "collapse",
        "the old flag is still read",
    ),
    (
        "portwatch/src/config/",
        "collapse",
        "the old table is still read",
    ),
    (
        "portwatch/tests/",
        "collapse",
        "tests that the old names are still read",
    ),
    ("taplo.toml", "array_auto_collapse", "an option of taplo"),
    ("", "connection refused", "the text of ECONNREFUSED"),
    ("", "--quiet", "an option of cargo and others"),
    ("", "cargo_term_quiet", "a variable of cargo"),
    (
        "xtask/src/vm/guest.rs",
        "quiet loglevel",
        "a parameter of the kernel's command line",
    ),
];

/// The files that are checked, by their ends.
const CHECKED: [&str; 6] = [".json", ".md", ".rs", ".toml", ".yaml", ".yml"];

/// Checks every tracked file, its name included.
///
/// # Errors
///
/// When git or a file cannot be read, and when a file has a banned word; each is printed to stderr before.
pub(crate) fn check() -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .output()
        .context("starting git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", output.status);
    }
    let files = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
    let mut count = 0;
    for file in files.split_terminator('\0') {
        // A file that is deleted but not yet committed.
        if !CHECKED.iter().any(|end| file.ends_with(end)) || !fs::exists(file)? {
            continue;
        }
        let text = fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        for problem in problems(file, &text) {
            eprintln!("{problem}");
            count += 1;
        }
    }
    if count > 0 {
        bail!(
            "{count} banned words; the glossary is docs/glossary.md, the list in xtask/src/words.rs"
        );
    }
    Ok(())
}

/// One message per banned word in a file's name and text: `FILE:LINE: WORD: REPLACEMENT`, lines from 1, the
/// name as line 0.
fn problems(file: &str, text: &str) -> Vec<String> {
    let named = find(file)
        .into_iter()
        .filter(|_| !is_excepted(file, ""))
        .map(|(_, word, instead)| (0, word, instead));
    let lines: Vec<&str> = text.lines().collect();
    let written = find(text).into_iter().filter(|(line, ..)| {
        let text = lines.get(line - 1).copied().unwrap_or_default();
        !is_excepted(file, text)
    });
    named
        .chain(written)
        .map(|(line, word, instead)| format!("{file}:{line}: \"{word}\": write {instead}"))
        .collect()
}

fn is_excepted(file: &str, line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    EXCEPTIONS
        .iter()
        .any(|(under, text, _)| file.starts_with(under) && line.contains(text))
}

/// A word in lower case, its line from 1, and whether a phrase can go on from the word before.
struct Token {
    word: String,
    line: usize,
    continues: bool,
}

/// The banned words of a text in its order: line, word, replacement.
fn find(text: &str) -> Vec<(usize, &'static str, &'static str)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for (index, first) in tokens.iter().enumerate() {
        for &(phrase, instead) in BANNED {
            let mut words = phrase.split(' ');
            if words.next() == Some(&first.word) && follows(&tokens[index + 1..], words) {
                found.push((first.line, phrase, instead));
            }
        }
    }
    found
}

/// Whether the tokens begin with these words.
fn follows<'a>(tokens: &[Token], mut words: impl Iterator<Item = &'a str> + Clone) -> bool {
    let Some(word) = words.next() else {
        return true;
    };
    if word == "*" {
        return (0..=4).any(|skipped| {
            tokens
                .get(..skipped)
                .is_some_and(|gap| gap.iter().all(|token| token.continues))
                && follows(&tokens[skipped..], words.clone())
        });
    }
    tokens
        .split_first()
        .is_some_and(|(token, rest)| token.continues && token.word == word && follows(rest, words))
}

/// Splits into runs of letters, at non-letters and where a capital follows a small letter.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut line = 1;
    let mut before = ' ';
    let mut continues = false;
    for character in text.chars() {
        if character.is_alphabetic() {
            let starts =
                !before.is_alphabetic() || (before.is_lowercase() && character.is_uppercase());
            match tokens.last_mut() {
                Some(token) if !starts => token.word.extend(character.to_lowercase()),
                _ => tokens.push(Token {
                    word: character.to_lowercase().collect(),
                    line,
                    continues,
                }),
            }
            continues = true;
        } else {
            // Ends of lines, the marks of comments and lists, and what joins identifiers.
            continues &= character.is_whitespace() || "/!#>*_-'`".contains(character);
            line += usize::from(character == '\n');
        }
        before = character;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_words_are_found_in_prose_names_and_across_lines() {
        for (text, expected) in [
            ("It is told.", vec![(1, "told")]),
            ("fn is_told_now() {}", vec![(1, "told")]),
            (
                "struct KernelSide;\nAdoption",
                vec![(1, "kernel side"), (2, "adoption")],
            ),
            (
                "/// The kernel\n    /// side of it",
                vec![(1, "kernel side")],
            ),
            ("what an open\nport comes to", vec![(1, "what * comes to")]),
            ("what comes to", vec![(1, "what * comes to")]),
            ("the registry's word", vec![(1, "registry s word")]),
            (
                "FOLDER myFolder\n\nFolder",
                vec![(1, "folder"), (1, "folder"), (3, "folder")],
            ),
            // Parts of other words, the ends of sentences, and too long a gap.
            ("retold, folderol, ECONNREFUSED", vec![]),
            ("in the kernel. Side by side", vec![]),
            ("what is one two three four comes to", vec![]),
            ("what happens. It comes to", vec![]),
        ] {
            let found: Vec<(usize, &str)> = find(text)
                .iter()
                .map(|(line, word, _)| (*line, *word))
                .collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn exceptions_hold_for_their_files_and_lines_only() {
        for (file, text, expected) in [
            ("docs/rules.md", "the old `[collapse]` table", 0),
            ("docs/rules.md", "bursts collapse", 1),
            ("README.md", "the old `[collapse]` table", 1),
            ("README.md", "it prints \"Connection refused\"", 0),
            ("README.md", "cargo --quiet\na quiet host", 1),
            ("xtask/src/words.rs", "told", 0),
            ("portwatch/src/refuse.rs", "", 1),
        ] {
            assert_eq!(problems(file, text).len(), expected, "{file}: {text}");
        }
        assert_eq!(
            problems("a/folder.rs", "\ntold"),
            [
                "a/folder.rs:0: \"folder\": write directory",
                "a/folder.rs:2: \"told\": write reported; counted",
            ]
        );
    }

    #[test]
    fn a_list_entry_can_match() {
        for (phrase, _) in BANNED {
            let text = phrase.replace('*', "it");
            assert!(
                find(&text).iter().any(|(_, found, _)| found == phrase),
                "{phrase}"
            );
        }
        for (_, text, _) in EXCEPTIONS {
            assert_eq!(text.to_ascii_lowercase(), *text, "compared in lower case");
        }
    }
}
