//! User names.

use std::collections::HashMap;

use nix::unistd::{Uid, User};

use crate::model::Printable;

/// User names by id. A name service can be slow, so each id is asked for once.
#[derive(Debug, Default)]
pub(super) struct Users(HashMap<u32, Option<Printable>>);

/// Ids that are remembered; past that, all are forgotten.
const BOUND: usize = 4096;

impl Users {
    pub(super) fn name(&mut self, uid: u32) -> Option<Printable> {
        if self.0.len() >= BOUND {
            self.0.clear();
        }
        self.0
            .entry(uid)
            .or_insert_with(|| {
                let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
                Some(Printable::from(user.name.as_str()))
            })
            .clone()
    }
}
