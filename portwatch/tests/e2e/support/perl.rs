//! Perl that takes ports, in a process of its own: what another test's thread starts has a copy of this
//! process's descriptors until it runs its program, and keeps a port taken that was closed here.

use std::process::Command;

/// Runs a Perl script in the current thread's namespace to its end.
pub fn perl(script: &str) {
    let status = Command::new("perl").args(["-e", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

/// Perl that binds and closes a UDP socket on 976 that often.
pub fn binds(times: usize) -> String {
    format!(
        "use Socket; for (1..{times}) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; close $s }}"
    )
}
