//! Which events are aggregated together.

use crate::{
    model::{PortKey, Printable},
    process::Process,
    tracker::{TrackedEvent, TrackedSocket},
};

/// Events of one group can be one burst. A group never crosses a network namespace, a user or a
/// cgroup: nobody's noise hides another's events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// A program that a user runs in a cgroup; which process of it does not matter.
    Program {
        /// Inode of the network namespace.
        netns: Option<u64>,
        /// Real user id.
        uid: u32,
        /// The executable, or the thread's name where that is unknown.
        exe: Printable,
        /// The script, where the executable is its interpreter.
        script: Option<Printable>,
        /// The path in the v2 hierarchy.
        cgroup: Option<Printable>,
    },
    /// A port in a network namespace, whoever takes it.
    Port(Option<u64>, PortKey),
}

impl Group {
    /// The groups of an event: its program's, where that is known, and its port's.
    pub(super) fn all_of(event: &TrackedEvent) -> [Option<Self>; 2] {
        let program = event.process.as_deref();
        [
            program.map(|process| Self::of_program(process, event.netns)),
            Some(Self::Port(event.netns, event.port_key)),
        ]
    }

    fn of_program(process: &Process, netns: Option<u64>) -> Self {
        Self::Program {
            netns,
            uid: process.uid,
            exe: process.exe.as_ref().unwrap_or(&process.comm).clone(),
            script: process.script.clone(),
            cgroup: process.cgroup.clone(),
        }
    }

    /// Whether the socket belongs to the group.
    #[must_use]
    pub fn has(&self, socket: &TrackedSocket) -> bool {
        match self {
            Self::Port(netns, port_key) => (*netns, *port_key) == (socket.netns, socket.port_key),
            Self::Program { .. } => socket
                .process
                .as_deref()
                .is_some_and(|process| *self == Self::of_program(process, socket.netns)),
        }
    }
}
