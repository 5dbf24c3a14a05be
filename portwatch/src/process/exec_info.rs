//! Executable, script and arguments of a process, from its exec info.
#![forbid(unsafe_code)]

use super::{ExeFlag, MAX_CMDLINE, MAX_EXE, MAX_SCRIPT, Process};
use crate::model::{ExecInfo, Printable};

/// Adds executable, script and arguments.
pub(super) fn set_exec_info(process: &mut Process, info: &ExecInfo) {
    process.exe = info
        .exe
        .as_deref()
        .map(|exe| Printable::limited(exe, MAX_EXE));
    process.exe_flags.clear();
    if info.deleted {
        process.exe_flags.push(ExeFlag::Deleted);
    }
    let is_memfd = |exe: &[u8]| exe.starts_with(b"/memfd:");
    if info.deleted && info.exe.as_deref().is_some_and(is_memfd) {
        process.exe_flags.push(ExeFlag::Memfd);
    }
    process.exe_device = info.exe_file.map(|file| file.device);
    process.exe_inode = info.exe_file.map(|file| file.inode);
    let args = info.args.as_deref();
    process.cmdline = args.map(|args| cmdline(args, info.args_unread));
    process.script = script(info, process.cwd.as_deref());
}

/// Whether the arguments are those of `beginning`, of which the last can be cut.
pub(super) fn begins_with(args: &[Vec<u8>], beginning: &[Vec<u8>]) -> bool {
    let Some((last, whole)) = beginning.split_last() else {
        return false;
    };
    args.get(..whole.len()) == Some(whole)
        && args
            .get(whole.len())
            .is_some_and(|arg| arg.starts_with(last))
}

/// The arguments, cut after [`MAX_CMDLINE`] bytes in total. `unread`: bytes that follow them.
pub(super) fn cmdline(args: &[Vec<u8>], unread: u64) -> Vec<Printable> {
    /// Quotes and comma.
    const PUNCTUATION: usize = 3;
    let mut left = MAX_CMDLINE;
    let mut words = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let word = (left > PUNCTUATION).then(|| Printable::from_bytes(arg));
        let word = word.filter(|word| word.json_bytes() + PUNCTUATION <= left);
        let Some(word) = word else {
            let rest = args.map(|arg| arg.len() as u64 + 1).sum::<u64>() + unread;
            words.push(beginning(arg, left.saturating_sub(PUNCTUATION), rest));
            return words;
        };
        left -= word.json_bytes() + PUNCTUATION;
        words.push(word);
    }
    if unread > 0 {
        let last = words.pop().unwrap_or_else(|| Printable::from(""));
        let text = format!("{last}{}", Printable::cut_mark(unread));
        words.push(Printable::from(text.as_str()));
    }
    words
}

/// As much of `bytes` as [`Printable::limited`] leaves, with a note that counts `more` bytes, too.
fn beginning(bytes: &[u8], max: usize, more: u64) -> Printable {
    let (text, cut) = Printable::split(bytes, max);
    let text = format!("{text}{}", Printable::cut_mark(cut + more));
    Printable::from(text.as_str())
}

/// The script in execve(2), where the executable is its interpreter. The kernel inserts the
/// interpreter and at most one argument before the script's name (fs/binfmt_script.c).
fn script(info: &ExecInfo, cwd: Option<&str>) -> Option<Printable> {
    let (execfn, args) = (info.execfn.as_ref()?, info.args.as_ref()?);
    let [interpreter, rest @ ..] = args.as_slice() else {
        return None;
    };
    let is_argument = rest.iter().take(2).any(|word| word == execfn);
    if !is_argument || interpreter == execfn || info.exe.as_ref() == Some(execfn) {
        return None;
    }
    let name = Printable::limited(execfn, MAX_SCRIPT);
    match cwd {
        Some(cwd) if !name.starts_with('/') => {
            let name = name.strip_prefix("./").unwrap_or(&name);
            let path = format!("{}/{name}", cwd.trim_end_matches('/'));
            Some(Printable::limited(path.as_bytes(), MAX_SCRIPT))
        }
        _ => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_named_beside_its_interpreter() {
        let info = |execfn: &str, exe: &str, args: &[&str]| ExecInfo {
            exe: Some(exe.into()),
            execfn: Some(execfn.into()),
            args: Some(args.iter().map(|word| word.as_bytes().to_vec()).collect()),
            ..ExecInfo::default()
        };
        let cases = [
            (
                info(
                    "/opt/x.py",
                    "/usr/bin/python3.11",
                    &["/usr/bin/python3", "/opt/x.py", "-v"],
                ),
                Some("/opt/x.py"),
            ),
            (
                info("./x", "/usr/bin/perl", &["/usr/bin/perl", "-w", "./x"]),
                Some("/work/x"),
            ),
            (
                info(
                    "/usr/bin/python3",
                    "/usr/bin/python3.11",
                    &["python3", "/opt/x.py"],
                ),
                None,
            ),
            (
                info("/usr/bin/nc", "/usr/bin/nc.openbsd", &["nc", "-l", "976"]),
                None,
            ),
            (
                info("/usr/bin/grep", "/usr/bin/grep", &["grep", "/usr/bin/grep"]),
                None,
            ),
            (info("/bin/x", "/bin/y", &[]), None),
        ];
        for (info, expected) in cases {
            assert_eq!(
                script(&info, Some("/work")).as_deref(),
                expected,
                "{info:?}"
            );
        }
    }
}
