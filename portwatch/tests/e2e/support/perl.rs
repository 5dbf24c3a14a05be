//! Perl that takes ports, in a process of its own: what another test's thread starts has a copy of this
//! process's descriptors until it runs its program, and keeps a port taken that was closed here.

use std::process::Command;

/// Runs a Perl script in the current thread's namespace to its end.
pub fn perl(script: &str) {
    let status = Command::new("perl").args(["-e", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

/// Perl's `take($socket, $address)`: binds what the same program had closed a moment ago. Whoever reads
/// /proc/PID/fd just then, as the snapshots of other tests do, keeps it in use for a little longer.
pub const TAKE: &str = "use Socket qw(:all); use Errno 'EADDRINUSE'; \
    sub take($$) { my ($socket, $address) = @_; for (1..1000) { bind($socket, $address) and return; \
    $! == EADDRINUSE or last; select(undef, undef, undef, 0.001) } die \"bind: $!\" } ";

/// Perl that binds and closes a UDP socket on 976 that often.
pub fn binds(times: usize) -> String {
    format!(
        "{TAKE} for (1..{times}) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         take($s, sockaddr_in(976, INADDR_LOOPBACK)); close $s }}"
    )
}
