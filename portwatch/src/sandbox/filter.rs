//! The filter of system calls (seccomp(2)).
#![forbid(unsafe_code)]

use std::env::consts::ARCH;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use super::calls::{self, Call, Condition};

/// Filters for one process, to be installed in this order.
pub(super) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Those of the monitor.
    pub(super) fn of_monitor() -> Result<Self, String> {
        let absent = calls::ABSENT.map(|number| (number, Vec::new()));
        Ok(Self(vec![
            // The kernel takes the more severe of two filters' answers.
            compile(
                absent.into(),
                SeccompAction::Errno(libc::ENOSYS as u32),
                SeccompAction::Allow,
            )?,
            compile(
                calls::of_monitor(std::process::id()),
                SeccompAction::Allow,
                SeccompAction::Trap,
            )?,
        ]))
    }

    /// That of the helper, which has nobody to report a denied call to.
    pub(super) fn of_helper() -> Result<Self, String> {
        let calls = calls::of_helper();
        compile(calls, SeccompAction::Allow, SeccompAction::KillProcess)
            .map(|filter| Self(vec![filter]))
    }

    /// Filters the calling thread and those that it starts. Sets no_new_privs.
    pub(super) fn install(&self) -> Result<(), String> {
        self.0
            .iter()
            .try_for_each(|filter| apply_filter(filter).map_err(text))
    }

    fn install_in_all_threads(&self) -> Result<(), String> {
        self.0
            .iter()
            .try_for_each(|filter| apply_filter_all_threads(filter).map_err(text))
    }
}

/// Filters this process for good.
pub(super) fn install_in_all_threads() -> Result<(), String> {
    Filters::of_monitor()?.install_in_all_threads()
}

/// The crate's error names its source only in its own text.
fn text(error: Error) -> String {
    error.to_string()
}

fn compile(
    calls: Vec<Call>,
    matched: SeccompAction,
    other: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(ARCH).map_err(|error| error.to_string())?;
    let rules = calls.into_iter().map(|(number, alternatives)| {
        let rules: Result<Vec<_>, _> = alternatives.into_iter().map(rule).collect();
        Ok((number, rules?))
    });
    let rules: Result<_, seccompiler::BackendError> = rules.collect();
    rules
        .and_then(|rules| SeccompFilter::new(rules, other, matched, arch))
        .and_then(TryInto::try_into)
        .map_err(|error| error.to_string())
}

fn rule(conditions: Vec<Condition>) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<_>, _> = conditions
        .into_iter()
        .map(|(argument, mask, value)| {
            let operator = SeccompCmpOp::MaskedEq(mask);
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        })
        .collect();
    SeccompRule::new(conditions?)
}
