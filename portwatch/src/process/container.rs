//! Containers, by the names that runtimes give to their cgroups.

use serde::Serialize;

use super::cgroup::paths;
use crate::model::Printable;

/// The container that a process runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Its id or name, as its runtime calls it.
    pub id: Printable,
    /// `docker`, `containerd`, `cri-o`, `podman`, `runc`, `crun`, `lxc` or `systemd-nspawn`; None where
    /// the name of the cgroup does not show it (Kubernetes with cgroupfs).
    pub runtime: Option<&'static str>,
}

/// Prefixes of the cgroup `PREFIX-ID` or `PREFIX-ID.scope`, where ID is 64 hexadecimal digits.
/// Monitors (`libpod-conmon-ID.scope`, `crio-conmon-ID.scope`) are outside the container.
const PREFIXES: [(&str, &str); 6] = [
    // moby, daemon/oci_linux.go, WithCgroups, with systemd.
    ("docker-", "docker"),
    // containerd, internal/cri/server/podsandbox/helpers_linux.go, getCgroupsPath.
    ("cri-containerd-", "containerd"),
    // nerdctl, pkg/cmd/container/run_cgroup_linux.go, generateCgroupPath.
    ("nerdctl-", "containerd"),
    // cri-o, internal/config/cgmgr, CrioPrefix.
    ("crio-", "cri-o"),
    // podman, libpod/container_internal_linux.go, getOCICgroupPath: with systemd and cgroupfs, and
    // with `--cgroups=split`.
    ("libpod-", "podman"),
    ("libpod-payload-", "podman"),
];

/// Prefixes of the cgroup `PREFIX-NAME.scope`, where the runtime itself was called, with any name and
/// without a path for the cgroup.
const SCOPES: [(&str, &str); 2] = [
    // runc, libcontainer/specconv/spec_linux.go, CreateCgroupConfig, with systemd.
    ("runc-", "runc"),
    // crun, src/libcrun/cgroup-systemd.c, get_systemd_scope_and_slice.
    ("crun-", "crun"),
];

/// Parents of the cgroup `PARENT/ID`, where ID is 64 hexadecimal digits.
const PARENTS: [(&str, &str); 5] = [
    // moby, daemon/oci_linux.go, WithCgroups, with cgroupfs.
    ("docker", "docker"),
    // Namespaces of containerd, the parent in `WithNamespacedCgroup` (pkg/oci/spec_opts.go).
    ("default", "containerd"),
    ("k8s.io", "containerd"),
    ("moby", "containerd"),
    // podman, libpod/container.go, CgroupfsDefaultCgroupParent.
    ("libpod_parent", "podman"),
];

/// The innermost container that one of the cgroups (proc_pid_cgroup(5)) belongs to.
pub(super) fn of(cgroups: &[u8]) -> Option<Container> {
    paths(cgroups).find_map(|(_, path)| {
        let names = names(path);
        (0..names.len()).rev().find_map(|index| at(&names, index))
    })
}

/// The outermost container on a cgroup's path, and the index of the directory that names it. All below
/// it is its own.
pub(super) fn outermost(path: &[u8]) -> Option<(usize, Container)> {
    let names = names(path);
    (0..names.len()).find_map(|index| Some((index, at(&names, index)?)))
}

/// The directories on a path. A name that is not UTF-8 is of no runtime, and must not hide those above
/// it.
fn names(path: &[u8]) -> Vec<&str> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .map(|name| std::str::from_utf8(name).unwrap_or_default())
        .collect()
}

/// The container that the directory with that index names.
fn at(names: &[&str], index: usize) -> Option<Container> {
    let name = names.get(index)?;
    let parent = index.checked_sub(1).map_or("", |parent| names[parent]);
    let child = names.get(index + 1).copied();
    let (id, runtime) = by_prefix(name)
        .or_else(|| by_scope(name))
        .or_else(|| by_parent(parent, name))
        .or_else(|| by_lxc(parent, name))
        .or_else(|| by_nspawn(name, child))?;
    Some(Container {
        id: Printable::limited(&id, super::MAX_CONTAINER),
        runtime,
    })
}

/// Id and runtime.
type Named = (Vec<u8>, Option<&'static str>);

fn by_prefix(name: &str) -> Option<Named> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    PREFIXES.iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix).filter(|id| is_id(id))?;
        Some((id.into(), Some(*runtime)))
    })
}

fn by_scope(name: &str) -> Option<Named> {
    let name = name.strip_suffix(".scope")?;
    SCOPES.iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix).filter(|id| !id.is_empty())?;
        Some((unescape(id), Some(*runtime)))
    })
}

fn by_parent(parent: &str, name: &str) -> Option<Named> {
    // runc with a path meant for systemd and cgroupfs: `SLICE:cri-containerd:ID`.
    if let Some((_, id)) = name.rsplit_once(":cri-containerd:") {
        return is_id(id).then(|| (id.into(), Some("containerd")));
    }
    let runtime = PARENTS.iter().find(|(known, _)| *known == parent);
    is_id(name).then(|| (name.into(), runtime.map(|(_, runtime)| *runtime)))
}

/// `lxc.payload.NAME` from LXC 4.0 on, `lxc/NAME` before (src/lxc/cgroups/cgfsng.c).
fn by_lxc(parent: &str, name: &str) -> Option<Named> {
    let name = match name.strip_prefix("lxc.payload.") {
        Some(name) => name,
        None => Some(name).filter(|_| matches!(parent, "lxc" | "lxc.payload"))?,
    };
    (!name.is_empty()).then(|| (name.into(), Some("lxc")))
}

/// `systemd-nspawn@NAME.service`, or `machine-NAME.scope` with the child that nspawn moves the
/// container into (src/nspawn/nspawn-cgroup.c): virtual machines have such scopes, too. The name in
/// a scope is escaped (systemd-escape(1), src/machine/machine.c).
fn by_nspawn(name: &str, child: Option<&str>) -> Option<Named> {
    const RUNTIME: Option<&str> = Some("systemd-nspawn");
    if let Some(name) = name.strip_prefix("systemd-nspawn@") {
        return Some((name.strip_suffix(".service")?.into(), RUNTIME));
    }
    let name = name.strip_prefix("machine-")?.strip_suffix(".scope")?;
    (child == Some("payload")).then(|| (unescape(name), RUNTIME))
}

/// Decodes `\xNN` (systemd-escape(1)).
fn unescape(name: &str) -> Vec<u8> {
    let mut parts = name.split("\\x");
    let mut bytes: Vec<u8> = parts.next().unwrap_or_default().into();
    for part in parts {
        match part.get(..2).map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                bytes.extend_from_slice(&part.as_bytes()[2..]);
            }
            _ => {
                bytes.extend_from_slice(b"\\x");
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    bytes
}

/// Most runtimes name containers by 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn cgroup_names_of_each_runtime_name_the_container() {
        let docker = Some((ID, Some("docker")));
        let containerd = Some((ID, Some("containerd")));
        let crio = Some((ID, Some("cri-o")));
        let podman = Some((ID, Some("podman")));
        let lxc = Some(("web", Some("lxc")));
        let nspawn = |name| Some((name, Some("systemd-nspawn")));
        let unknown = Some((ID, None));
        let cases = [
            // PREFIXES
            ("/system.slice/docker-ID.scope", docker),
            ("/system.slice/docker-ID.scope/init.scope", docker),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
                docker,
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ID.scope",
                containerd,
            ),
            ("/system.slice/nerdctl-ID.scope", containerd),
            ("/kubepods.slice/kubepods-pod1.slice/crio-ID.scope", crio),
            (
                "/kubepods.slice/kubepods-pod1.slice/crio-ID.scope/container",
                crio,
            ),
            ("/kubepods/burstable/pod1/crio-ID", crio),
            (
                "/kubepods.slice/kubepods-pod1.slice/crio-conmon-ID.scope",
                None,
            ),
            ("/machine.slice/libpod-ID.scope", podman),
            (
                "/machine.slice/libpod-ID.scope/container/system.slice/x.service",
                podman,
            ),
            (
                "/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope",
                podman,
            ),
            ("/machine.slice/libpod-conmon-ID.scope", None),
            ("/libpod_parent/libpod-ID", podman),
            ("/libpod_parent/conmon", None),
            ("/system.slice/web.service/libpod-payload-ID", podman),
            (
                "/system.slice/web.service/libpod-payload-ID/container",
                podman,
            ),
            ("/system.slice/web.service/supervisor", None),
            ("/system.slice/web.service/runtime", None),
            // SCOPES
            ("/system.slice/runc-web.scope", Some(("web", Some("runc")))),
            ("/user.slice/crun-a.b.scope/x", Some(("a.b", Some("crun")))),
            ("/system.slice/runc-.scope", None),
            ("/system.slice/crun-web.service", None),
            // PARENTS
            ("/docker/ID", docker),
            ("/docker/ID/docker/ID", docker),
            ("/default/ID", containerd),
            ("/k8s.io/ID", containerd),
            ("/moby/ID", containerd),
            ("/libpod_parent/ID", podman),
            (
                "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:ID",
                containerd,
            ),
            ("/kubepods/burstable/pod1/ID", unknown),
            // Amazon ECS.
            ("/ecs/task/ID", unknown),
            // LXC
            ("/lxc/web/init.scope", lxc),
            ("/lxc.payload.web/system.slice/x.service", lxc),
            ("/lxc.payload/web", lxc),
            ("/lxc.monitor.web", None),
            ("/lxc.payload.", None),
            // systemd-nspawn
            (
                "/machine.slice/systemd-nspawn@web.service/payload",
                nspawn("web"),
            ),
            ("/machine.slice/machine-web.scope/payload", nspawn("web")),
            (
                "/machine.slice/machine-my\\x2dweb.scope/payload",
                nspawn("my-web"),
            ),
            (
                "/machine.slice/machine-a\\xzz.scope/payload",
                nspawn("a\\xzz"),
            ),
            (
                "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt",
                None,
            ),
            // No container
            ("/system.slice/docker.service", None),
            ("/system.slice/docker-0123.scope", None),
        ];
        for (path, expected) in cases {
            let line = format!("0::{}\n", path.replace("ID", ID));
            let found = of(line.as_bytes());
            let found = found.as_ref().map(|found| (&*found.id, found.runtime));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn the_outermost_container_names_what_is_below_it() {
        let id = |digit: &str| digit.repeat(64);
        let path = format!("/docker/{}/system.slice/libpod-{}.scope", id("a"), id("b"));
        let (index, container) = outermost(path.as_bytes()).unwrap();
        assert_eq!((index, &*container.id), (1, &*id("a")));
        assert_eq!(outermost(b"/system.slice/x.service"), None);
    }

    #[test]
    fn neither_another_hierarchy_nor_an_odd_name_below_hides_the_container() {
        for cgroups in ["5:memory:/docker/ID\n0::/\n", "0::/docker/ID/\u{1}/x\n"] {
            assert!(
                of(cgroups.replace("ID", ID).as_bytes()).is_some(),
                "{cgroups}"
            );
        }
        let cgroups = [b"0::/docker/", ID.as_bytes(), b"/\xff\xfe\n"].concat();
        assert!(of(&cgroups).is_some());
    }
}
