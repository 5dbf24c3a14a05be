//! Work in which a panic ends the work and not the process.

use std::{cell::Cell, io, panic, thread};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Stack of a thread that parses what comes from outside, in bytes.
const STACK: usize = 8 << 20;

/// From now on a panic ends the process, except in [`spawn`]: a thread that is gone while the others go
/// on would be a monitor that only looks alive.
pub fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        report(panic);
        if !IS_CONTAINED.get() {
            std::process::abort();
        }
    }));
}

/// Starts `work` on a thread of its own. A panic in it is an error.
///
/// # Errors
///
/// When no thread can be started.
pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    then: impl FnOnce(Result<T, String>) + Send + 'static,
) -> io::Result<()> {
    let thread = thread::Builder::new().name(name.into()).stack_size(STACK);
    thread.spawn(move || {
        IS_CONTAINED.set(true);
        // Nothing that the work has used is used afterwards.
        let result = panic::catch_unwind(panic::AssertUnwindSafe(work));
        IS_CONTAINED.set(false);
        then(result.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("an error in portwatch: {}", text.unwrap_or_default())
        }));
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panic_is_an_error_of_the_work_alone() {
        let (sender, results) = mpsc::channel();
        for index in [1_usize, 7] {
            let sender = sender.clone();
            spawn(
                "test",
                move || [10, 20, 30][index],
                move |result| sender.send(result).unwrap(),
            )
            .unwrap();
            let result = results.recv().unwrap();
            match index {
                1 => assert_eq!(result, Ok(20)),
                _ => assert!(result.unwrap_err().contains("out of bounds")),
            }
        }
    }
}
