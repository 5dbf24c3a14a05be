//! The processes that have a socket open, as many as an alert has room for.
#![forbid(unsafe_code)]

use std::{ops::Deref, rc::Rc};

use serde::Serialize;

use crate::{
    inventory::FoundSocket,
    model::Printable,
    process::{Container, Process},
};

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// In the initial pid namespace.
    pub pid: u32,
    /// Its name.
    pub comm: Printable,
    /// Path of the executable.
    pub exe: Option<Printable>,
    /// The user's name, or else the number.
    pub user: Printable,
    /// The systemd unit.
    pub unit: Option<Printable>,
    /// The container.
    pub container: Option<Container>,
    /// Which of `exe`, `unit` and `container` are only claims.
    pub unverified: Vec<&'static str>,
    /// The script, when the executable is its interpreter.
    #[serde(skip)]
    pub script: Option<Printable>,
}

impl Holder {
    /// The bytes that it takes as JSON, at most.
    pub(super) fn json_bytes(&self) -> usize {
        const KEYS: usize = concat!(
            r#"{"pid":4294967295,"comm":"","exe":"","user":"","unit":"","#,
            r#""container":{"id":"","runtime":"systemd-nspawn"}},"#
        )
        .len();
        let container = self.container.as_ref().map(|container| &container.id);
        let maybe = [self.exe.as_ref(), self.unit.as_ref(), container];
        let texts = maybe.into_iter().flatten().chain([&self.comm, &self.user]);
        KEYS + texts.map(Printable::json_bytes).sum::<usize>()
    }
}

impl From<&Process> for Holder {
    fn from(process: &Process) -> Self {
        Self {
            pid: process.pid,
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            user: process
                .user
                .clone()
                .unwrap_or_else(|| Printable::from(process.uid.to_string().as_str())),
            unit: process.unit.clone(),
            container: process.container.clone(),
            unverified: process
                .unverified()
                .into_iter()
                .filter(|key| *key != "cgroup")
                .collect(),
            script: process.script.clone(),
        }
    }
}

/// Bytes of a socket's holders as JSON.
pub(crate) const MAX_HOLDERS_JSON: usize = 3 << 10;

/// The processes that have a socket open, as many as an alert has room for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Those that are named.
    pub list: Rc<[Holder]>,
    /// How many more there are.
    pub omitted: u32,
}

impl Holders {
    /// The first of `all` that there is room for; `omitted` others are not among them.
    pub(crate) fn new(all: impl IntoIterator<Item = Holder>, mut omitted: u32) -> Self {
        let mut left = MAX_HOLDERS_JSON;
        let mut list = Vec::new();
        for holder in all {
            match left.checked_sub(holder.json_bytes()) {
                Some(rest) => {
                    left = rest;
                    list.push(holder);
                }
                None => omitted += 1,
            }
        }
        Self {
            list: list.into(),
            omitted,
        }
    }

    /// These and one more, which is named in any case.
    pub(super) fn with(&self, holder: Holder) -> Self {
        // The newest first, so that it has room.
        let mut all = Self::new(
            [holder].into_iter().chain(self.list.iter().cloned()),
            self.omitted,
        );
        if let Some(list) = Rc::get_mut(&mut all.list) {
            list.rotate_left(1);
        }
        all
    }
}

impl Deref for Holders {
    type Target = [Holder];

    fn deref(&self) -> &[Holder] {
        &self.list
    }
}

/// Who has a socket open by a scan, the owner first.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) holders: &'a [Rc<Process>],
    /// How many more there are.
    pub(super) omitted: u32,
}

impl<'a> From<&'a FoundSocket> for Found<'a> {
    fn from(found: &'a FoundSocket) -> Self {
        Self {
            holders: &found.holders,
            omitted: found.holders_omitted,
        }
    }
}
