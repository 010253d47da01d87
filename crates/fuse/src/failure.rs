//! Errors as the numbers that a kernel understands, and their way into the log.

use std::sync::Mutex;
use std::time::Duration;

use fuser::Errno;
use penstock_types::{Clock, Error, ErrorKind};

/// Lines about failed requests that a mount writes within [`LOG_WINDOW`]; further ones are counted.
const LOG_LINES_MAX: u32 = 10;
/// After so long the count begins again.
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// What the caller of a system call sees. `EAGAIN` would say that a read of a file can be polled for, which it cannot.
pub fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::RateLimited | ErrorKind::ResourceLimit | ErrorKind::Cancelled => Errno::EIO,
        other => Errno::from_i32(other.errno()),
    }
}

/// Writes failures to the log: never more than a few at a time, as a broken source fails every request.
#[derive(Default)]
pub struct FailureLog {
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    began: Duration,
    lines: u32,
    left_out: u64,
}

impl FailureLog {
    /// Logs that `operation` failed, unless the failure is an ordinary answer.
    pub fn note(&self, clock: &dyn Clock, operation: &str, target: &str, error: &Error) {
        if is_ordinary(error.kind()) {
            return;
        }
        let Some(left_out) = self.admit(clock.monotonic()) else { return };
        let code = error.kind().code();
        tracing::warn!(code, operation, mount = target, left_out, %error, "request of the kernel failed");
    }

    /// How many lines were left out before this one; `None` when this one is left out, too.
    fn admit(&self, now: Duration) -> Option<u64> {
        let mut window = self.window.lock().expect("no panic while lines are counted");
        if now.saturating_sub(window.began) >= LOG_WINDOW {
            (window.began, window.lines) = (now, 0);
        }
        if window.lines == LOG_LINES_MAX {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

/// What a program may ask for in vain every day.
fn is_ordinary(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::NotEmpty
            | ErrorKind::CrossDevice
            | ErrorKind::InvalidInput
            | ErrorKind::ReadOnly
            | ErrorKind::StaleVersion
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_says_try_again_to_who_cannot_poll() {
        for kind in ErrorKind::ALL {
            assert_ne!(errno(*kind), Errno::EAGAIN, "{kind:?}");
        }
        assert_eq!(errno(ErrorKind::StaleVersion), Errno::ESTALE);
        assert_eq!(errno(ErrorKind::Timeout), Errno::ETIMEDOUT);
    }

    #[test]
    fn a_source_that_fails_every_request_fills_no_log() {
        let log = FailureLog::default();
        let admitted = (0..1000).filter(|_| log.admit(Duration::from_secs(100)).is_some()).count();
        assert_eq!(admitted, LOG_LINES_MAX as usize);
        assert_eq!(log.admit(Duration::from_secs(100) + LOG_WINDOW), Some(1000 - u64::from(LOG_LINES_MAX)));
    }
}
