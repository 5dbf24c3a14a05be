//! How far a scan looks: what is known already need not be read again, and whoever bound a socket or
//! is related to that process probably has it open.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    linux::{cgroup, stat::Stat},
    model::PortKey,
};

/// What is known before a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Cookies of the sockets whose holders are known.
    pub known: HashSet<u64>,
    /// Cookies of the tracked sockets whose holders are to be looked for.
    pub pending: HashSet<u64>,
    /// The processes that took those.
    pub processes: Vec<u32>,
    /// Where those are, if that is known of each: inodes of network namespaces, and ports.
    pub places: Option<(HashSet<u64>, RangeInclusive<u16>)>,
    /// What it is not to show.
    pub left_out: LeftOut,
}

/// Sockets that a scan does not show, since there are too many like them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The cookies of those that are known, with whatever their tracker keeps of each.
    pub cookies: Arc<HashMap<u64, u32>>,
    /// Network namespaces (None: not known) and ports on which there are more.
    pub places: HashSet<(Option<u64>, PortKey)>,
    /// The cookies of those that it shows there all the same; needed only with places.
    pub tracked: HashSet<u64>,
}

impl LeftOut {
    /// Whether nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cookies.is_empty() && self.places.is_empty()
    }

    /// Whether the socket with that cookie at that place is one of those that are not known.
    pub(super) fn is_surplus(&self, cookie: Option<u64>, netns: u64, port_key: PortKey) -> bool {
        !self.places.is_empty()
            && cookie.is_none_or(|cookie| !self.tracked.contains(&cookie))
            && [Some(netns), None]
                .iter()
                .any(|netns| self.places.contains(&(*netns, port_key)))
    }
}

/// How far a scan looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All sockets, and the descriptors of every process.
    All,
    /// All sockets; of those that are not known, the holders: among the processes that probably are,
    /// then among all others until each has one.
    Changes(Targets),
    /// The pending sockets, and which of the processes that probably have them open do.
    Holders(Targets),
}

/// Processes that are looked at before all others, at most.
const LIKELY: usize = 256;

/// Threads whose children are looked for.
const THREADS: usize = 64;

/// Processes of a cgroup that are looked at: in one of many, most have nothing to do with each other.
const CGROUP: usize = 64;

impl Targets {
    /// The processes that probably have the pending sockets open: those that took them, their
    /// parents, children, and those in the same cgroups.
    pub(super) fn likely(&self) -> Vec<u32> {
        let hierarchy = cgroup::root();
        let mut likely = Vec::new();
        let mut seen = HashSet::new();
        let mut cgroups = HashSet::new();
        for pid in &self.processes {
            let directory = PathBuf::from(format!("/proc/{pid}"));
            let parent = read(&directory.join("stat")).and_then(|text| Stat::parse(&text));
            let mut all = vec![*pid];
            all.extend(parent.map(|stat| stat.ppid).filter(|pid| *pid != 0));
            // A child is that of the thread that forked it. Missing without `CONFIG_PROC_CHILDREN`.
            let threads = fs::read_dir(directory.join("task"));
            for thread in threads.into_iter().flatten().flatten().take(THREADS) {
                let children = read(&thread.path().join("children"));
                all.extend(numbers(&children.unwrap_or_default()));
            }
            let path = read(&directory.join("cgroup"))
                .and_then(|text| cgroup::in_v2(&text).map(<[u8]>::to_vec));
            if let Some(path) = path
                && cgroups.insert(path.clone())
                && let Some(hierarchy) = &hierarchy
            {
                let members = cgroup::directory(hierarchy, &path).join("cgroup.procs");
                let members = read(&members).unwrap_or_default();
                if numbers(&members).count() <= CGROUP {
                    all.extend(numbers(&members));
                }
            }
            likely.extend(all.into_iter().filter(|pid| seen.insert(*pid)));
            if likely.len() >= LIKELY {
                likely.truncate(LIKELY);
                break;
            }
        }
        likely
    }
}

/// The beginning of a file, which ends with the last of many numbers that is whole.
fn read(path: &Path) -> Option<Vec<u8>> {
    const MAX: u64 = 16 << 10;
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

fn numbers(text: &[u8]) -> impl Iterator<Item = u32> {
    let words = text.split(u8::is_ascii_whitespace);
    words.filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_children_are_looked_at_after_the_process_itself() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let likely = |pid| {
            let processes = vec![pid, pid];
            let targets = Targets {
                processes,
                ..Targets::default()
            };
            targets.likely()
        };
        let me = std::process::id();
        let (of_child, mine) = (likely(child.id()), likely(me));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(of_child[..2], [child.id(), me]);
        assert_eq!(mine[0], me);
        assert!(mine.contains(&child.id()));
        assert_eq!(likely(child.id()), [child.id()], "it has ended");
        for list in [of_child, mine] {
            let distinct: HashSet<u32> = list.iter().copied().collect();
            assert_eq!(distinct.len(), list.len());
        }
    }
}
