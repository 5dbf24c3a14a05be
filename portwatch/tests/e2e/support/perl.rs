//! Perl scripts that bind ports. They run in a process of their own because a child that another
//! test forks holds copies of this process's sockets until execve(2), so that a port closed here
//! would stay in use.

use std::process::Command;

/// Runs a Perl script in the current thread's namespace to its end.
pub fn perl(script: &str) {
    let status = Command::new("perl").args(["-e", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

/// Perl's `rebind($socket, $address)`: binds a port that the same program closed a moment ago.
/// Repeats on EADDRINUSE: a scan of another test's monitor, which reads /proc/PID/fd, holds a
/// reference to the closed socket for a moment.
pub const REBIND: &str = "use Socket qw(:all); use Errno 'EADDRINUSE'; \
    sub rebind($$) { my ($socket, $address) = @_; for (1..1000) { bind($socket, $address) and return; \
    $! == EADDRINUSE or last; select(undef, undef, undef, 0.001) } die \"bind: $!\" } ";

/// Perl that binds and closes a UDP socket on 976, `times` times.
pub fn bind_and_close(times: usize) -> String {
    format!(
        "{REBIND} for (1..{times}) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); close $s }}"
    )
}
