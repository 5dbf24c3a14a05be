//! Input files that decide what is reported: regular, of a bounded size, and under the control of root
//! or of the caller alone.

use std::{
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{major, minor},
    unistd::{getegid, geteuid},
};

/// Why an input file is not read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The system returned an error.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system returned.
        source: io::Error,
    },
    /// It is not a regular file.
    #[error("cannot read {}: it is {kind}, not a regular file", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It is too large.
    #[error("cannot read {}: it has more than the {} KiB that such a file may have", path.display(), max / 1024)]
    Size {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        max: u64,
    },
    /// Somebody else can change it.
    #[error("{} is not used: {reason}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Who can change it, and the way out.
        reason: Reason,
    },
}

/// Who else can change a file.
#[derive(Debug)]
pub struct Reason {
    /// The file, or a directory on the way to it.
    at: PathBuf,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Owner { owner: u32, caller: u32 },
    Writable { mode: u32 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.display();
        match self.fault {
            Fault::Owner { owner, caller: 0 } => write!(
                f,
                "{at} belongs to uid {owner}, who can change the rules: chown root {at}"
            ),
            Fault::Owner { owner, caller } => write!(
                f,
                "{at} belongs to uid {owner}, neither to root nor to uid {caller}: chown {caller} {at}"
            ),
            Fault::Writable { mode } => write!(
                f,
                "{at} is writable by others (mode {:03o}): chmod go-w {at}",
                mode & 0o7777
            ),
        }
    }
}

/// What a file may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// A regular file, or `/dev/null`, which has no contents.
    #[default]
    File,
    /// A pipe of the caller too, named `/dev/stdin` or `/dev/fd/N`. It can be read only once.
    FileOrPipe,
}

/// Reads a file of at most `max` bytes. Symbolic links are followed. The file and each directory on the
/// way to it must belong to root or to the effective user, and nobody else may be able to write to them;
/// a directory may have the sticky bit instead. Does not block on a pipe that is not the caller's.
///
/// # Errors
///
/// [`InputError`].
pub fn read(path: &Path, max: u64, allowed: Allowed) -> Result<Vec<u8>, InputError> {
    let failed = |source| InputError::Io {
        path: path.into(),
        source,
    };
    let is_pipe_allowed = allowed == Allowed::FileOrPipe && is_inherited(path);
    // Opening a device can have effects.
    let before = fs::metadata(path).map_err(failed)?;
    if !is_readable(&before, is_pipe_allowed) {
        return Err(kind_error(path, &before));
    }
    // Neither waits for the other end of a pipe nor makes a terminal the controlling one.
    let mut options = File::options();
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = options.read(true).custom_flags(flags.bits()).open(path);
    let file = file.map_err(failed)?;
    // The file can have been replaced since.
    let metadata = file.metadata().map_err(failed)?;
    if !is_readable(&metadata, is_pipe_allowed) {
        return Err(kind_error(path, &metadata));
    }
    if metadata.is_file() {
        check(path, &metadata)?;
    } else {
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| failed(errno.into()))?;
    }
    let mut bytes = Vec::new();
    let read = file.take(max + 1).read_to_end(&mut bytes);
    read.map_err(failed)?;
    if bytes.len() as u64 > max {
        let path = path.into();
        return Err(InputError::Size { path, max });
    }
    Ok(bytes)
}

/// As [`read`], for UTF-8.
///
/// # Errors
///
/// [`InputError`].
pub fn read_text(path: &Path, max: u64, allowed: Allowed) -> Result<String, InputError> {
    String::from_utf8(read(path, max, allowed)?).map_err(|error| InputError::Io {
        path: path.into(),
        source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
    })
}

/// Whether the path names a descriptor that this process was given.
fn is_inherited(path: &Path) -> bool {
    path == Path::new("/dev/stdin")
        || path.starts_with("/dev/fd")
        || path.starts_with("/proc/self/fd")
}

fn is_readable(metadata: &Metadata, is_pipe_allowed: bool) -> bool {
    let kind = metadata.file_type();
    metadata.is_file() || is_null(metadata) || is_pipe_allowed && kind.is_fifo()
}

/// Whether it is `/dev/null` (drivers/char/mem.c, Linux 6.18).
fn is_null(metadata: &Metadata) -> bool {
    let device = metadata.rdev();
    metadata.file_type().is_char_device() && (major(device), minor(device)) == (1, 3)
}

fn kind_error(path: &Path, metadata: &Metadata) -> InputError {
    let kind = metadata.file_type();
    let path = path.into();
    if kind.is_dir() {
        return InputError::Io {
            path,
            source: nix::errno::Errno::EISDIR.into(),
        };
    }
    let kind = if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "of an unknown kind"
    };
    InputError::Kind { path, kind }
}

/// Fails when somebody else can change the file or put another one in its place.
fn check(path: &Path, metadata: &Metadata) -> Result<(), InputError> {
    let caller = (geteuid().as_raw(), getegid().as_raw());
    let failed = |source| InputError::Io {
        path: path.into(),
        source,
    };
    let untrusted = |at: &Path, fault| InputError::Untrusted {
        path: path.into(),
        reason: Reason {
            at: at.into(),
            fault,
        },
    };
    if let Some(fault) = fault_of_file(metadata.uid(), metadata.mode(), caller.0) {
        return Err(untrusted(path, fault));
    }
    if is_inherited(path) {
        return Ok(());
    }
    // The directories of the name as it was given, and of the file that it leads to.
    let file = fs::canonicalize(path).map_err(failed)?;
    let parent = path.parent().filter(|parent| parent != &Path::new(""));
    let named = fs::canonicalize(parent.unwrap_or(Path::new("."))).map_err(failed)?;
    for directory in named.ancestors().chain(file.ancestors().skip(1)) {
        let metadata = fs::metadata(directory).map_err(failed)?;
        let owner = (metadata.uid(), metadata.gid());
        if let Some(fault) = fault_of_directory(owner, metadata.mode(), caller) {
            return Err(untrusted(directory, fault));
        }
    }
    Ok(())
}

fn fault_of_owner(owner: u32, caller: u32) -> Option<Fault> {
    (owner != 0 && owner != caller).then_some(Fault::Owner { owner, caller })
}

fn fault_of_file(owner: u32, mode: u32, caller: u32) -> Option<Fault> {
    let is_writable = mode & 0o022 != 0;
    fault_of_owner(owner, caller).or(is_writable.then_some(Fault::Writable { mode }))
}

/// Owner and caller as user and group. A group of the caller's own may write to a directory: many
/// systems give each user one, and create directories so.
fn fault_of_directory(owner: (u32, u32), mode: u32, caller: (u32, u32)) -> Option<Fault> {
    let is_own_group = owner.1 == 0 || owner.1 == caller.1;
    let others = if is_own_group { 0o002 } else { 0o022 };
    let is_writable = mode & others != 0 && mode & 0o1000 == 0;
    fault_of_owner(owner.0, caller.0).or(is_writable.then_some(Fault::Writable { mode }))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use nix::sys::stat::Mode;

    use super::*;

    const MAX: u64 = 16;

    fn read_file(path: &Path) -> Result<Vec<u8>, String> {
        read(path, MAX, Allowed::File).map_err(|error| error.to_string())
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        fs::write(path("large"), [b'a'; 17]).unwrap();
        fs::write(path("full"), [b'a'; 16]).unwrap();
        symlink("full", path("link")).unwrap();
        symlink("loop", path("loop")).unwrap();
        let cases = [
            (path("fifo"), "it is a pipe, not a regular file"),
            (path("socket"), "it is a socket"),
            ("/dev/zero".into(), "it is a device"),
            ("/dev/tty".into(), "it is a device"),
            (path("large"), "more than the 0 KiB"),
            (path("missing"), "cannot read"),
            (path("loop"), "cannot read"),
            (directory.path().into(), "cannot read"),
        ];
        for (path, problem) in cases {
            let error = read_file(&path).unwrap_err();
            assert!(error.contains(problem), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        for name in ["full", "link"] {
            assert_eq!(read_file(&path(name)), Ok(vec![b'a'; 16]));
        }
        assert_eq!(read_file(Path::new("/dev/null")), Ok(Vec::new()));
    }

    #[test]
    fn a_file_that_others_can_change_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("file");
        fs::write(&file, "x").unwrap();
        let link = directory.path().join("link");
        symlink(&file, &link).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        set(&inner, 0o755).unwrap();
        for (file_mode, directory_mode, problem) in [
            (0o600, 0o755, None),
            (0o644, 0o1777, None),
            (0o644, 0o700, None),
            (
                0o664,
                0o755,
                Some("file is writable by others (mode 664): chmod go-w"),
            ),
            (0o646, 0o755, Some("writable by others (mode 646)")),
            (0o644, 0o757, Some("inner is writable by others (mode 757)")),
        ] {
            set(&file, file_mode).unwrap();
            set(&inner, directory_mode).unwrap();
            for path in [&file, &link] {
                match (read_file(path), problem) {
                    (Ok(_), None) => {}
                    (Err(error), Some(problem)) => {
                        let problem = match path == &link {
                            true => problem.replace("file is", "link is"),
                            false => problem.to_owned(),
                        };
                        assert!(error.contains(&problem), "{error}");
                        assert!(error.contains(" is not used: "), "{error}");
                    }
                    other => panic!("{file_mode:o} {directory_mode:o}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn root_and_the_caller_are_trusted() {
        const READ_ONLY: u32 = 0o100_644;
        let owned = |owner, caller| Some(Fault::Owner { owner, caller });
        for (owner, caller, fault) in [
            (0, 0, None),
            (0, 1000, None),
            (1000, 1000, None),
            (1000, 0, owned(1000, 0)),
            (1001, 1000, owned(1001, 1000)),
        ] {
            assert_eq!(fault_of_file(owner, READ_ONLY, caller), fault);
            let directory = fault_of_directory((owner, 5), 0o40_755, (caller, 6));
            assert_eq!(directory, fault);
        }
        let writable = |mode| Some(Fault::Writable { mode });
        for (group, mode, fault) in [
            (0, 0o775, None),
            (6, 0o775, None),
            (5, 0o775, writable(0o775)),
            (5, 0o1775, None),
            (6, 0o777, writable(0o777)),
        ] {
            assert_eq!(fault_of_directory((0, group), mode, (1000, 6)), fault);
        }
        for (owner, caller, way_out) in [(7, 0, "chown root f"), (7, 8, "chown 8 f")] {
            let reason = Reason {
                at: "f".into(),
                fault: Fault::Owner { owner, caller },
            };
            assert!(reason.to_string().ends_with(way_out), "{reason}");
        }
    }

    #[test]
    fn a_pipe_is_read_where_the_caller_gave_it() {
        use std::{io::Write as _, os::fd::AsRawFd as _};

        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"text").unwrap();
        drop(writer);
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        assert!(read_file(&path).unwrap_err().contains("it is a pipe"));
        assert_eq!(read(&path, MAX, Allowed::FileOrPipe).unwrap(), b"text");
    }
}
