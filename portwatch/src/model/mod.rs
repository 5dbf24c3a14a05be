//! The types that every other module speaks in: events, sockets, transports, severities, printable
//! text and the deny rules of the BPF programs.
#![forbid(unsafe_code)]

mod deny;
mod event;
mod key;
mod origin;
mod printable;
mod session;
mod severity;
mod transport;

pub use self::{
    deny::{DenyRule, DenyRules},
    event::{CloseKind, ConnectOutcome, Event, EventKind, ExecInfo, FileId, Received, Task},
    key::{PortKey, SocketKey},
    origin::Origin,
    printable::Printable,
    session::{Direction, EndedBy, Session, Sessions},
    severity::Severity,
    transport::Transport,
};
