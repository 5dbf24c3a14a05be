#!/bin/sh
# Run by the service manager of a booted Debian: installs the package as a user does, and looks at what comes.
exec >/boot-test/transcript 2>&1
fail() { echo "FAILED: $1"; journalctl --no-pager -n 60; echo failed >/boot-test/result; systemctl poweroff --no-block; exit 1; }
step() { echo; echo "== $1"; }
wait_for() { # PATTERN COMMAND...
    pattern=$1; shift
    for _ in $(seq 300); do "$@" 2>/dev/null | grep -q -e "$pattern" && return 0; sleep 0.1; done
    "$@"; fail "no $pattern in: $*"
}
take() { # PORT: nc listens on it for a moment
    nc -l 127.0.0.1 "$1" >/dev/null 2>&1 & nc=$!; sleep 0.5; kill $nc; wait $nc 2>/dev/null
}
alerts() { journalctl --no-pager --unit portwatch "$@"; }
active() { systemctl show portwatch --property ActiveState,NRestarts,MainPID,StatusText; }

step "install"
dpkg --install /boot-test/old.deb || fail "install"
wait_for ActiveState=active active
active
systemctl show portwatch --property StatusText | grep -q armed || fail "no status"
systemctl is-enabled portwatch || fail "not enabled"
alerts --output cat >/boot-test/start
cat /boot-test/start
if grep -q 'could not be given up\|no real-time priority\|no canary\|without CAP_' /boot-test/start; then fail "not whole"; fi

step "an alert in the journal, with its priority"
take 976
wait_for '127.0.0.1:976' alerts --priority warning
alerts --priority warning --output json | grep -q '"PRIORITY":"4"' || fail "no priority"
alerts --priority warning
alerts --priority warning | grep -q 'exe=/' || fail "no executable"
if alerts --priority warning | grep -q 'unverified=[a-z,]*exe'; then fail "an executable of this host is not verified"; fi

step "reload"
printf '[[rule]]\nname = "known"\ndecide = "ignore"\nport = 977\n' >/etc/portwatch/portwatch.toml
portwatch check-config || fail "check-config"
systemctl reload portwatch || fail "reload"
wait_for 'reloaded /etc/portwatch/portwatch.toml: 1 rules' alerts
take 977
take 978
wait_for ':978 ' alerts --priority warning
if alerts --priority warning | grep -q ':977 '; then fail "977 is ignored"; fi

step "the self-test in the sandbox of the unit"
unit=/usr/lib/systemd/system/portwatch.service
[ -e $unit ] || unit=/lib/systemd/system/portwatch.service
sed -e 's/^Type=.*/Type=oneshot/' -e '/^\(WatchdogSec\|Restart\|NotifyAccess\)/d' \
    -e 's|^ExecStart=.*|ExecStart=/usr/sbin/portwatch doctor|' $unit >/run/systemd/system/portwatch-doctor.service
systemctl daemon-reload
systemctl start portwatch-doctor || { journalctl --no-pager --unit portwatch-doctor; fail "doctor"; }
journalctl --no-pager --unit portwatch-doctor --output cat >/boot-test/doctor
cat /boot-test/doctor
for what in capabilities 'system calls' 'helper process'; do
    grep -q "^sandbox: $what  *ok " /boot-test/doctor || fail "sandbox: $what"
done

step "restart after SIGKILL"
systemctl kill --kill-who main --signal KILL portwatch
wait_for NRestarts=1 active
wait_for ActiveState=active active
take 979
wait_for ':979 ' alerts --priority warning

step "upgrade"
before=$(systemctl show portwatch --property MainPID)
dpkg --install --force-confold /boot-test/new.deb || fail "upgrade"
wait_for ActiveState=active active
[ "$(systemctl show portwatch --property MainPID)" != "$before" ] || fail "not restarted"
grep -q known /etc/portwatch/portwatch.toml || fail "the configuration is not kept"

step "remove and purge"
dpkg --remove portwatch || fail "remove"
systemctl is-active portwatch && fail "still runs"
[ -e /etc/portwatch/portwatch.toml ] || fail "remove took the configuration"
dpkg --purge portwatch || fail "purge"
[ ! -e /etc/portwatch ] || fail "purge left /etc/portwatch"
echo; echo passed >/boot-test/result
systemctl poweroff --no-block
