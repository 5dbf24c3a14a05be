//! Containers, by what their runtimes call the cgroups they make.

use serde::Serialize;

use super::cgroup::paths;
use crate::model::Printable;

/// The container that a process runs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Its id or name, as its runtime calls it.
    pub id: Printable,
    /// `docker`, `containerd`, `cri-o`, `podman`, `lxc` or `systemd-nspawn`; None where the name of
    /// the cgroup does not say (Kubernetes with cgroupfs).
    pub runtime: Option<&'static str>,
}

/// The innermost container that one of the cgroups (proc_pid_cgroup(5)) belongs to.
pub(super) fn of(cgroups: &[u8]) -> Option<Container> {
    paths(cgroups).find_map(in_path)
}

fn in_path(path: &[u8]) -> Option<Container> {
    let path = std::str::from_utf8(path).ok()?;
    let names: Vec<&str> = path.split('/').collect();
    (0..names.len()).rev().find_map(|index| {
        let name = names[index];
        let above = index.checked_sub(1).map_or("", |above| names[above]);
        let below = names.get(index + 1).copied();
        by_scope(name)
            .or_else(|| by_folder(above, name))
            .or_else(|| by_nspawn(name, below))
            .map(|(id, runtime)| Container {
                id: Printable::from(id),
                runtime,
            })
    })
}

/// `docker-ID.scope` and the like, where systemd makes the cgroups; podman without systemd makes
/// `libpod-ID`. Its monitors (`libpod-conmon-`, `crio-conmon-`) are not in the container.
fn by_scope(name: &str) -> Option<(&str, Option<&'static str>)> {
    const PREFIXES: [(&str, &str); 5] = [
        ("docker-", "docker"),
        ("cri-containerd-", "containerd"),
        ("nerdctl-", "containerd"),
        ("crio-", "cri-o"),
        ("libpod-", "podman"),
    ];
    let name = name.strip_suffix(".scope").unwrap_or(name);
    PREFIXES.iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix).filter(|id| is_id(id))?;
        Some((id, Some(*runtime)))
    })
}

/// `docker/ID`, `lxc.payload.NAME`, `kubepods/.../ID`, where the runtime makes the cgroups.
fn by_folder<'a>(above: &str, name: &'a str) -> Option<(&'a str, Option<&'static str>)> {
    if let Some(name) = name.strip_prefix("lxc.payload.") {
        return Some((name, Some("lxc")));
    }
    if matches!(above, "lxc" | "lxc.payload") && !name.is_empty() {
        return Some((name, Some("lxc")));
    }
    if let Some((_, id)) = name.rsplit_once(":cri-containerd:") {
        return is_id(id).then_some((id, Some("containerd")));
    }
    let runtime = match above {
        "docker" => Some("docker"),
        "default" | "k8s.io" | "moby" => Some("containerd"),
        "libpod_parent" => Some("podman"),
        _ => None,
    };
    is_id(name).then_some((name, runtime))
}

/// `systemd-nspawn@NAME.service`; `machine-NAME.scope` only with the folder that nspawn puts its
/// payload into, since virtual machines are called so too.
fn by_nspawn<'a>(name: &'a str, below: Option<&str>) -> Option<(&'a str, Option<&'static str>)> {
    const RUNTIME: Option<&str> = Some("systemd-nspawn");
    if let Some(name) = name.strip_prefix("systemd-nspawn@") {
        return Some((name.strip_suffix(".service")?, RUNTIME));
    }
    let name = name.strip_prefix("machine-")?.strip_suffix(".scope")?;
    (below == Some("payload")).then_some((name, RUNTIME))
}

/// Runtimes name containers by 64 hexadecimal digits.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// Id and runtime.
    type Named = Option<(&'static str, Option<&'static str>)>;

    #[test]
    fn each_runtimes_cgroups_name_the_container() {
        let cases: [(&str, Named); 21] = [
            ("/docker/ID", Some((ID, Some("docker")))),
            ("/system.slice/docker-ID.scope", Some((ID, Some("docker")))),
            (
                "/system.slice/docker-ID.scope/init.scope",
                Some((ID, Some("docker"))),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
                Some((ID, Some("docker"))),
            ),
            ("/docker/ID/docker/ID", Some((ID, Some("docker")))),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-ID.scope",
                Some((ID, Some("containerd"))),
            ),
            (
                "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:ID",
                Some((ID, Some("containerd"))),
            ),
            ("/default/ID", Some((ID, Some("containerd")))),
            (
                "/system.slice/nerdctl-ID.scope",
                Some((ID, Some("containerd"))),
            ),
            ("/kubepods/burstable/pod1/ID", Some((ID, None))),
            (
                "/kubepods.slice/kubepods-pod1.slice/crio-ID.scope",
                Some((ID, Some("cri-o"))),
            ),
            (
                "/kubepods.slice/kubepods-pod1.slice/crio-conmon-ID.scope",
                None,
            ),
            (
                "/machine.slice/libpod-ID.scope/container",
                Some((ID, Some("podman"))),
            ),
            ("/machine.slice/libpod-conmon-ID.scope", None),
            ("/libpod_parent/libpod-ID", Some((ID, Some("podman")))),
            ("/lxc/web/init.scope", Some(("web", Some("lxc")))),
            (
                "/lxc.payload.web/system.slice/x.service",
                Some(("web", Some("lxc"))),
            ),
            ("/lxc.monitor.web", None),
            (
                "/machine.slice/systemd-nspawn@web.service/payload",
                Some(("web", Some("systemd-nspawn"))),
            ),
            (
                "/machine.slice/machine-web.scope/payload",
                Some(("web", Some("systemd-nspawn"))),
            ),
            (
                "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt",
                None,
            ),
        ];
        for (path, expected) in cases {
            let line = format!("0::{}\n", path.replace("ID", ID));
            let found = of(line.as_bytes());
            let found = found.as_ref().map(|found| (&*found.id, found.runtime));
            assert_eq!(found, expected, "{path}");
        }
        // Version 1: the second hierarchy's path says nothing.
        let hybrid = format!("5:memory:/docker/{ID}\n0::/\n");
        assert!(of(hybrid.as_bytes()).is_some());
        assert!(of(b"0::/system.slice/docker.service\n").is_none());
    }
}
