//! The state that container runtimes of root keep: what a container's name is checked against. All of
//! it is below /run, which is in memory, so that looking for it does not block.

use std::path::Path;

use rustix::fs::lstat;

use super::Container;
use crate::linux::hierarchy::is_roots_alone;

/// By runtime, a path that exists while a container does: `*` stands for its id.
const STATES: [(&str, &str); 14] = [
    // containerd, core/runtime/v2/bundle.go, NewBundle: a directory for each task, by namespace. moby,
    // daemon/config, has the namespace "moby", and may start a containerd of its own
    // (daemon/internal/libcontainerd/supervisor).
    ("docker", "containerd/io.containerd.runtime.v2.task/moby/*"),
    (
        "docker",
        "docker/containerd/daemon/io.containerd.runtime.v2.task/moby/*",
    ),
    ("docker", "docker/runtime-runc/moby/*"),
    (
        "containerd",
        "containerd/io.containerd.runtime.v2.task/k8s.io/*",
    ),
    (
        "containerd",
        "containerd/io.containerd.runtime.v2.task/default/*",
    ),
    (
        "containerd",
        "containerd/io.containerd.runtime.v2.task/moby/*",
    ),
    // containers/storage, store.go, ContainerRunDirectory, with the run root of root
    // (types/options_linux.go, defaultRunRoot) and the two drivers that need no file system of their own.
    ("cri-o", "containers/storage/overlay-containers/*"),
    ("cri-o", "containers/storage/vfs-containers/*"),
    ("podman", "containers/storage/overlay-containers/*"),
    ("podman", "containers/storage/vfs-containers/*"),
    // runc, main.go, and crun, src/libcrun/status.c, get_run_directory: the default `--root`.
    ("runc", "runc/*"),
    ("crun", "crun/*"),
    // LXC, src/lxc/lxclock.c, lxclock_name, with the default path of containers.
    ("lxc", "lxc/lock/var/lib/lxc/.*"),
    // systemd, src/machine/machine.c, machine_new.
    ("systemd-nspawn", "systemd/machines/*"),
];

/// The runtime whose state names that container; None for one that no runtime of root knows.
pub(super) fn of(container: &Container) -> Option<&'static str> {
    below(Path::new("/run"), container)
}

fn below(run: &Path, container: &Container) -> Option<&'static str> {
    let id: &str = &container.id;
    if id.is_empty() || id.starts_with('.') || id.contains(['/', '\\']) {
        return None;
    }
    let mut states = STATES.iter().filter(|(runtime, _)| {
        // Kubernetes with cgroupfs: one of its runtimes.
        container.runtime.map_or(
            matches!(*runtime, "containerd" | "cri-o" | "docker"),
            |name| name == *runtime,
        )
    });
    states
        .find(|(_, path)| is_roots(run, Path::new(&path.replace('*', id))))
        .map(|(runtime, _)| *runtime)
}

/// Whether `path` below `run` exists, and only root can have put it there. Its own owner does not
/// matter: it can be root of the container's user namespace.
fn is_roots(run: &Path, path: &Path) -> bool {
    let mut at = run.to_owned();
    path.components().all(|name| {
        let parent = lstat(&at).is_ok_and(|stat| is_roots_alone(&stat));
        at.push(name);
        parent
    }) && lstat(&at).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Uid, chown};

    use super::*;
    use crate::model::Printable;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn container(id: &str, runtime: Option<&'static str>) -> Container {
        Container {
            id: Printable::from(id),
            runtime,
        }
    }

    #[test]
    fn each_runtimes_state_verifies_its_containers_and_no_others() {
        for (runtime, path) in STATES {
            let run = tempfile::tempdir().unwrap();
            let found = |id, runtime| below(run.path(), &container(id, runtime));
            assert_eq!(found(ID, Some(runtime)), None, "{path}");
            fs::create_dir_all(run.path().join(path.replace('*', ID))).unwrap();
            assert_eq!(found(ID, Some(runtime)), Some(runtime), "{path}");
            assert_eq!(found(&ID[1..], Some(runtime)), None, "{path}");
            assert_eq!(found(ID, Some("other")), None, "{path}");
        }
        for (by, path) in [("containerd", STATES[3].1), ("cri-o", STATES[6].1)] {
            let run = tempfile::tempdir().unwrap();
            fs::create_dir_all(run.path().join(path.replace('*', ID))).unwrap();
            assert_eq!(below(run.path(), &container(ID, None)), Some(by));
        }
    }

    #[test]
    fn state_that_is_not_roots_and_odd_names_verify_nothing() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir_all(run.path().join("runc/web")).unwrap();
        let found = |id| below(run.path(), &container(id, Some("runc")));
        assert_eq!(found("web"), Some("runc"));
        for id in ["", ".", "..", "../runc", "/web", "a\\x2fb"] {
            assert_eq!(found(id), None, "{id}");
        }
        let nobody = Some(Uid::from_raw(65_534));
        for (path, expected) in [("runc/web", Some("runc")), ("runc", None), ("", None)] {
            let path = run.path().join(path);
            chown(&path, nobody, None).unwrap();
            assert_eq!(found("web"), expected, "{}", path.display());
            chown(&path, Some(Uid::ROOT), None).unwrap();
        }
    }
}
