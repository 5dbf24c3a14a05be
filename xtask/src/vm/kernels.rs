//! Debian's cloud kernels, fetched with a private apt state and unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail};

use crate::{run, tools};

/// A kernel of the matrix.
pub(crate) struct Kernel {
    /// Its name on the command line and in the table.
    pub(super) name: &'static str,
    /// The Debian release that ships it.
    suite: &'static str,
    /// The suite of that release's security updates, if its kernel comes from there.
    security: Option<&'static str>,
    /// QEMU's `-cpu` for it.
    pub(super) cpu: &'static str,
    /// Whether its failure fails the run; sid's can be the kernel's fault.
    pub(super) must_pass: bool,
}

/// QEMU 7.2's cmpxchg16b can leave garbage in the flags register, on which 6.12 crashed in one boot
/// of three; kernels up to that one work without the instruction.
const WITHOUT_CX16: &str = "qemu64,-cx16";

/// Oldest first.
pub(super) static ALL: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suite: "bullseye",
        security: Some("bullseye-security"),
        cpu: WITHOUT_CX16,
        must_pass: true,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        security: None,
        cpu: WITHOUT_CX16,
        must_pass: true,
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        security: None,
        cpu: WITHOUT_CX16,
        must_pass: true,
    },
    Kernel {
        name: "sid",
        suite: "sid",
        security: None,
        cpu: "qemu64",
        must_pass: false,
    },
];

/// A kernel on this disk.
pub(crate) struct Files {
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
    /// As `uname -r` prints it.
    pub(crate) release: String,
}

/// The kernels of those names; all for an empty list.
pub(super) fn select(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    names.iter().map(|name| named(name)).collect()
}

/// The kernel of that name.
pub(crate) fn named(name: &str) -> Result<&'static Kernel> {
    ALL.iter()
        .find(|kernel| kernel.name == name || kernel.suite == name)
        .with_context(|| format!("unknown kernel {name}: use 5.10, 6.1, 6.12 or sid"))
}

/// The meta-package whose dependency is the kernel.
const META: &str = "linux-image-cloud-amd64";

/// apt's private state is one per kernel, but the downloads share one network.
static FETCHING: Mutex<()> = Mutex::new(());

impl Kernel {
    /// The kernel's files, from the user's cache or the host's Debian mirror.
    pub(crate) fn files(&self) -> Result<Files> {
        let directory = tools::cache()?.join("kernels").join(self.suite);
        if let Ok(files) = find(&directory.join("root")) {
            return Ok(files);
        }
        let _alone = FETCHING.lock();
        eprintln!("xtask: fetching Debian's {} kernel", self.suite);
        let unpacking = directory.join("unpacking");
        let _ = fs::remove_dir_all(&unpacking);
        fs::create_dir_all(&unpacking)?;
        let apt = Apt::new(&directory.join("apt"), self)?;
        apt.run("apt-get", &["update"])?;
        let kernel = apt
            .dependency(META, &["linux-image-"])?
            .context("no kernel package in that release")?;
        let mut packages = vec![kernel.clone()];
        // Newer releases split the package.
        packages.extend(apt.dependency(&kernel, &["linux-binary-"])?);
        packages.extend(apt.dependency(&kernel, &["linux-modules-"])?);
        for package in &packages {
            apt.run("apt-get", &["download", package])?;
        }
        unpack(&apt.directory, &unpacking)?;
        let root = directory.join("root");
        let _ = fs::remove_dir_all(&root);
        fs::rename(&unpacking, &root)?;
        fs::remove_dir_all(&apt.directory)?;
        find(&root)
    }

    /// Packages of its release with their dependencies, and its headers, unpacked together in the
    /// user's cache.
    pub(crate) fn packages(&self, release: &str, wanted: &[&str]) -> Result<PathBuf> {
        let directory = tools::cache()?.join("kernels").join(self.suite);
        let root = directory.join(format!("{}-for-{release}", wanted.join("-")));
        if root.exists() {
            return Ok(root);
        }
        let _alone = FETCHING.lock();
        eprintln!(
            "xtask: fetching {} of Debian's {}",
            wanted.join(", "),
            self.suite
        );
        let unpacking = directory.join("unpacking-packages");
        let _ = fs::remove_dir_all(&unpacking);
        fs::create_dir_all(&unpacking)?;
        let apt = Apt::new(&directory.join("apt-packages"), self)?;
        apt.run("apt-get", &["update"])?;
        // Without their dependencies, which include a compiler.
        let headers = format!("linux-headers-{release}");
        let common = apt
            .dependency(&headers, &["linux-headers-"])?
            .with_context(|| format!("Debian no longer has {headers}"))?;
        apt.run("apt-get", &["download", &headers, &common])?;
        let install = [
            "install",
            "--download-only",
            "--no-install-recommends",
            "--yes",
        ];
        apt.run("apt-get", &[&install[..], wanted].concat())?;
        unpack(&apt.directory, &unpacking)?;
        unpack(&apt.directory.join("cache/archives"), &unpacking)?;
        fs::rename(&unpacking, &root)?;
        fs::remove_dir_all(&apt.directory)?;
        Ok(root)
    }
}

/// Unpacks the Debian packages in a directory.
fn unpack(packages: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(packages)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(to))?;
        }
    }
    Ok(())
}

/// The image and the modules in an unpacked package; releases differ in where they put them.
fn find(root: &Path) -> Result<Files> {
    for modules in ["lib/modules", "usr/lib/modules"] {
        let Ok(releases) = fs::read_dir(root.join(modules)) else {
            continue;
        };
        for entry in releases {
            let modules = entry?.path();
            let release = modules
                .file_name()
                .context("a release")?
                .to_string_lossy()
                .into_owned();
            for image in [
                root.join(format!("boot/vmlinuz-{release}")),
                modules.join("vmlinuz"),
            ] {
                if image.exists() {
                    return Ok(Files {
                        image,
                        modules,
                        release,
                    });
                }
            }
        }
    }
    bail!("{} contains no kernel", root.display())
}

/// apt with a state of its own, so that the host's is unchanged.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: &Path, kernel: &Kernel) -> Result<Self> {
        let _ = fs::remove_dir_all(directory);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("status"), "")?;
        let mut sources = source("/debian", kernel.suite)?;
        if let Some(security) = kernel.security {
            sources += &source("/debian-security", security)?;
        }
        fs::write(directory.join("sources.list"), sources)?;
        Ok(Self {
            directory: directory.into(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &str| format!("{name}={value}");
        let path = |part: &str| self.directory.join(part).display().to_string();
        for (name, value) in [
            ("Dir::State", path("")),
            ("Dir::State::status", path("status")),
            ("Dir::State::lists", path("lists")),
            ("Dir::Cache", path("cache")),
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("APT::Architecture", "amd64".into()),
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ] {
            command.args(["-o", &option(name, &value)]);
        }
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        run(self
            .command(program)
            .arg("-qq")
            .args(arguments)
            .stdout(Stdio::null()))
    }

    /// The first package that `package` depends on whose name begins so.
    fn dependency(&self, package: &str, prefixes: &[&str]) -> Result<Option<String>> {
        let output = self
            .command("apt-cache")
            .args(["depends", package])
            .output()?;
        let text = String::from_utf8(output.stdout).context("apt-cache's output")?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .map(str::to_owned))
    }
}

/// A line for sources.list: the host's own mirror of Debian, with that suite.
pub(crate) fn mirror(suite: &str) -> Result<String> {
    source("/debian", suite)
}

/// A line for sources.list: the host's own mirror of that archive, with another suite.
fn source(archive: &str, suite: &str) -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(parts.flatten().map(|entry| entry.path()));
    }
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_default();
        let uri = text
            .split_ascii_whitespace()
            .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with(archive));
        if let Some(uri) = uri {
            let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
            return Ok(format!("deb [signed-by={keys}] {uri} {suite} main\n"));
        }
    }
    bail!("this host's apt has no mirror of Debian's {archive}: this needs one")
}
