//! `cargo xtask dist`: static executables and packages, the same bytes for the same commit.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, run, target, tools};

/// Options of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Architectures: x86_64, aarch64 [default: both]
    architectures: Vec<String>,
    /// Leave out the RPM packages
    #[arg(long)]
    no_rpm: bool,
    /// Build everything twice, and fail if the bytes differ
    #[arg(long)]
    twice: bool,
}

/// An architecture that executables are built for.
#[derive(Clone, Copy)]
struct Architecture {
    name: &'static str,
    target: &'static str,
    /// What links; None for rustc's choice.
    linker: Option<&'static str>,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "x86_64",
        target: "x86_64-unknown-linux-musl",
        linker: None,
    },
    Architecture {
        name: "aarch64",
        target: "aarch64-unknown-linux-musl",
        // Brings what a cross compiler would be needed for.
        linker: Some("rust-lld"),
    },
];

/// What sha256sum(1) checks.
const SUMS: &str = "SHA256SUMS";

/// Where everything is left, wherever cargo builds: portwatch/Cargo.toml names files in it.
fn directory() -> PathBuf {
    "target/dist".into()
}

/// Builds everything.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    let chosen = choose(&options.architectures)?;
    make(&chosen, options.no_rpm)?;
    if options.twice {
        let first = fs::read_to_string(directory().join(SUMS))?;
        for architecture in &chosen {
            fs::remove_dir_all(target().join(architecture.target))?;
        }
        make(&chosen, options.no_rpm)?;
        let second = fs::read_to_string(directory().join(SUMS))?;
        if first != second {
            bail!("the second build differs:\n{first}\n{second}");
        }
        println!("built twice: the same bytes");
    }
    println!("{}", directory().display());
    Ok(())
}

fn make(chosen: &[Architecture], no_rpm: bool) -> Result<()> {
    tools::set_up()?;
    tools::set_up_dist()?;
    let directory = directory();
    // What an earlier run left is not part of this one.
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("emptying {}", directory.display()));
        }
        _ => fs::create_dir_all(&directory)?,
    }
    let source = Source::find()?;
    for architecture in chosen {
        build(*architecture, &source)?;
    }
    document(&source, &directory)?;
    for architecture in chosen {
        let executable = executable(*architecture);
        let name = format!("portwatch-{}-linux", architecture.name);
        fs::copy(executable, directory.join(name))?;
        package(*architecture, &source, &directory, no_rpm)?;
    }
    sums(&directory)
}

/// The Debian package for this machine.
pub(crate) fn debian_package() -> Result<PathBuf> {
    run_all(&Options {
        architectures: vec![env::consts::ARCH.to_owned()],
        no_rpm: true,
        twice: false,
    })?;
    let mut entries = fs::read_dir(directory())?.flatten().map(|one| one.path());
    let found = entries.find(|path| path.extension().is_some_and(|one| one == "deb"));
    found.context("no Debian package was made")
}

fn choose(names: &[String]) -> Result<Vec<Architecture>> {
    if names.is_empty() {
        return Ok(ARCHITECTURES.to_vec());
    }
    let find = |name: &String| {
        let found = ARCHITECTURES.iter().find(|one| one.name == name);
        found.copied().with_context(|| {
            let known = ARCHITECTURES.map(|one| one.name).join(", ");
            format!("unknown architecture {name:?} (known: {known})")
        })
    };
    names.iter().map(find).collect()
}

/// What is built.
struct Source {
    commit: String,
    /// Of the commit, in seconds since 1970: the time of all files.
    time: String,
    version: String,
}

impl Source {
    fn find() -> Result<Self> {
        let git = |arguments: &[&str]| output(Command::new("git").args(arguments));
        let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?;
        if !git(&["status", "--porcelain"])?.is_empty() {
            commit.push_str("-changed");
        }
        let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let mut agents = packages.filter(|package| package["name"] == "portwatch");
        let version = agents.next().and_then(|agent| agent["version"].as_str());
        Ok(Self {
            commit,
            time: git(&["log", "-1", "--format=%ct"])?,
            version: version.context("no version of portwatch")?.to_owned(),
        })
    }

    /// Passed to whatever puts a commit or a time into a file.
    fn environment(&self) -> [(&'static str, &str); 2] {
        [
            ("PORTWATCH_COMMIT", &self.commit),
            ("SOURCE_DATE_EPOCH", &self.time),
        ]
    }
}

fn executable(architecture: Architecture) -> PathBuf {
    target().join(architecture.target).join("release/portwatch")
}

fn build(architecture: Architecture, source: &Source) -> Result<()> {
    let mut command = cargo();
    command
        .args(["build", "--release", "--locked", "--package", "portwatch"])
        .args(["--target", architecture.target])
        .envs(source.environment())
        // Messages of panics have paths.
        .env("CARGO_ENCODED_RUSTFLAGS", remapped()?.join("\x1f"));
    if let Some(linker) = architecture.linker {
        let target = architecture.target.replace('-', "_").to_uppercase();
        command.env(format!("CARGO_TARGET_{target}_LINKER"), linker);
    }
    run(&mut command)
}

/// The flags that keep this machine's paths out of the executable.
fn remapped() -> Result<Vec<String>> {
    let here = env::current_dir()?;
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok([
        (here.as_path(), "/portwatch"),
        (&*home, "/cargo"),
        (Path::new(&sysroot), "/rust"),
    ]
    .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
    .to_vec())
}

/// Manual pages, completions and changelog, which the packages take from here.
fn document(source: &Source, directory: &Path) -> Result<()> {
    // Any executable that this machine runs says the same.
    let native = ARCHITECTURES
        .iter()
        .find(|one| one.name == env::consts::ARCH)
        .context("no executable is built for this machine")?;
    let native = executable(*native);
    if !native.exists() {
        bail!("{} writes the manual pages: build it too", native.display());
    }
    let man = directory.join("man");
    let completions = directory.join("completions");
    for new in [&man, &completions] {
        fs::create_dir_all(new)?;
    }
    let date = [("SOURCE_DATE_EPOCH", &source.time)];
    run(Command::new(&native).arg("man").arg(&man).envs(date))?;
    for shell in ["bash", "fish", "zsh"] {
        let script = output(Command::new(&native).args(["completions", shell]))?;
        fs::write(completions.join(shell), script + "\n")?;
    }
    let rules = output(
        Command::new("lowdown")
            .args([
                "-s",
                "-Tman",
                "-M",
                "title=portwatch.toml",
                "-M",
                "section=5",
            ])
            .args(["-M", "source=portwatch", "docs/rules.md"]),
    )?;
    // For apropos(1).
    let name = ".SH NAME\nportwatch.toml \\- the configuration of portwatch(8)\n";
    let (title, rest) = rules
        .split_once("\n.SH")
        .context("no section in the manual page")?;
    fs::write(
        man.join("portwatch.toml.5"),
        format!("{title}\n{name}.SH{rest}\n"),
    )?;
    let date = output(
        Command::new("date")
            .args(["--utc", "--rfc-email"])
            .arg(format!("--date=@{}", source.time)),
    )?;
    let changelog = format!(
        "portwatch ({}) stable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {date}\n",
        source.version
    );
    fs::write(directory.join("changelog"), changelog)?;
    Ok(())
}

/// As portwatch/Cargo.toml has it.
const MAINTAINER: &str = "portwatch developers <portwatch@localhost.localdomain>";

fn package(
    architecture: Architecture,
    source: &Source,
    directory: &Path,
    no_rpm: bool,
) -> Result<()> {
    let mut deb = Command::new(tools::CARGO_DEB.install()?);
    run(deb
        .args(["--no-build", "--no-strip", "--package", "portwatch"])
        .args(["--target", architecture.target, "--output"])
        .arg(directory)
        .envs(source.environment()))?;
    if no_rpm {
        return Ok(());
    }
    let mut rpm = Command::new(tools::CARGO_GENERATE_RPM.install()?);
    run(rpm
        .args(["--package", "portwatch", "--target", architecture.target])
        .args(["--auto-req", "disabled", "--source-date", &source.time])
        .arg("--output")
        .arg(directory))
}

/// SHA256SUMS of the files in the directory, for sha256sum(1).
fn sums(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<_> = entries
        .iter()
        .filter(|entry| entry.path().is_file() && entry.file_name() != "changelog")
        .map(fs::DirEntry::file_name)
        .collect();
    names.sort();
    let sums = output(
        Command::new("sha256sum")
            .args(&names)
            .current_dir(directory),
    )?;
    fs::write(directory.join(SUMS), sums + "\n")?;
    Ok(())
}

/// A command's output without the last newline.
fn output(command: &mut Command) -> Result<String> {
    let output = crate::output(command)?;
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
