//! Loads the configuration again, beside the event loop and for a limited time.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};

use crate::util::contained;

/// How long a load may take before the previous rules are kept: a file system or a name service (for
/// rules with user names) that does not answer takes minutes or for ever.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Loads, one at a time. A request during a load leads to another load after it.
pub(super) struct Reloader<T> {
    limit: Duration,
    running: Option<Running<T>>,
    is_requested: bool,
}

struct Running<T> {
    result: oneshot::Receiver<Result<T>>,
    deadline: Instant,
    /// Past the deadline: its result is not used.
    is_late: bool,
}

impl<T: Send + 'static> Reloader<T> {
    pub(super) const fn new() -> Self {
        Self::with_limit(TIME_LIMIT)
    }

    const fn with_limit(limit: Duration) -> Self {
        Self {
            limit,
            running: None,
            is_requested: false,
        }
    }

    /// Loads after now.
    pub(super) const fn request(&mut self) {
        self.is_requested = true;
    }

    /// Waits for what a load ends with: once for each request that no other has followed, and for a load
    /// that is late. For ever without one. May be cancelled.
    pub(super) async fn loaded(
        &mut self,
        load: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut load = Some(load);
        loop {
            if self.running.is_none() && std::mem::take(&mut self.is_requested) {
                let Some(load) = load.take() else {
                    std::future::pending::<()>().await;
                    continue;
                };
                self.running = Some(self.start(load)?);
            }
            let Some(running) = &mut self.running else {
                return std::future::pending().await;
            };
            if running.is_late {
                if std::mem::take(&mut self.is_requested) {
                    return Err(anyhow!("an earlier load has not ended yet"));
                }
                // Ended or given up: the next request can be followed.
                drop((&mut running.result).await);
                self.running = None;
                continue;
            }
            tokio::select! {
                biased;
                result = &mut running.result => {
                    self.running = None;
                    return result.unwrap_or_else(|_| Err(anyhow!("the load ended without a result")));
                }
                () = sleep_until(running.deadline) => {
                    running.is_late = true;
                    return Err(anyhow!("the load takes longer than {:?}", self.limit));
                }
            }
        }
    }

    fn start(&self, load: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Running<T>> {
        let (sender, result) = oneshot::channel();
        contained::spawn("reload", load, move |loaded| {
            // Nobody waits for it when the monitor has ended.
            drop(sender.send(loaded.unwrap_or_else(|problem| Err(anyhow!(problem)))));
        })?;
        let now = Instant::now();
        Ok(Running {
            result,
            deadline: now.checked_add(self.limit).unwrap_or(now),
            is_late: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn block_on<F: Future>(future: F) -> F::Output {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_load_that_hangs_is_reported_and_the_next_one_after_it_counts() {
        block_on(async {
            let mut reloader = Reloader::with_limit(Duration::from_millis(20));
            let (resume, resumed) = mpsc::channel::<()>();
            reloader.request();
            let hanging = move || {
                resumed.recv()?;
                Ok("late")
            };
            let error = reloader.loaded(hanging).await.unwrap_err();
            assert_eq!(error.to_string(), "the load takes longer than 20ms");
            // It still hangs.
            reloader.request();
            let error = reloader.loaded(|| Ok("skipped")).await.unwrap_err();
            assert_eq!(error.to_string(), "an earlier load has not ended yet");
            resume.send(()).unwrap();
            let (next, mut never) = (async { "nothing" }, Box::pin(reloader.loaded(|| Ok("x"))));
            tokio::select! {
                biased;
                _ = &mut never => panic!("nothing was requested"),
                text = next => assert_eq!(text, "nothing"),
            }
            drop(never);
            // Until the thread has ended, it is still late.
            loop {
                reloader.request();
                match reloader.loaded(|| Ok("new")).await {
                    Ok(text) => break assert_eq!(text, "new"),
                    Err(error) => {
                        assert_eq!(error.to_string(), "an earlier load has not ended yet");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                let wait = Duration::from_millis(1);
                drop(tokio::time::timeout(wait, reloader.loaded(|| Ok("none"))).await);
            }
        });
    }

    #[test]
    fn a_panic_in_a_load_is_an_error() {
        block_on(async {
            let mut reloader = Reloader::new();
            for _ in 0..2 {
                reloader.request();
                let error = reloader.loaded(|| -> Result<()> { panic!("broken") });
                let error = error.await.unwrap_err().to_string();
                assert_eq!(error, "an error in portwatch: broken");
            }
            reloader.request();
            assert_eq!(reloader.loaded(|| Ok(())).await.unwrap(), ());
        });
    }
}
