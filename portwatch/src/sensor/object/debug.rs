//! The BPF programs' log lines, on stderr: for debugging the eBPF programs only.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

use crate::util::console::log as log_line;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        log_line(&format!("BPF programs: {}", record.args()));
    }

    fn flush(&self) {}
}

/// Prints what the BPF programs log, for as long as the runtime lives.
pub(in crate::sensor) fn forward_log(ebpf: &mut Ebpf) {
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => return log_line(&format!("no log of the BPF programs: {error}")),
    };
    // SAFETY: the logger owns the descriptor of its map and keeps it open until it is dropped.
    let logger = match unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) } {
        Ok(logger) => logger,
        Err(error) => return log_line(&format!("no log of the BPF programs: {error}")),
    };
    tokio::spawn(read(logger));
}

async fn read(mut logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>) {
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.clear_ready();
        logger.get_mut().flush();
    }
}
