//! The question that an attach asks first: can we read this, and if not, why and what now.

use std::time::{Duration, Instant};

use penstock_types::{Error, ErrorKind, ListRequest, ObjectKey, Priority, Result, Source};

/// Clocks that differ by more make stores refuse signatures (their limit is 15 minutes) or soon will.
const NOTABLE_SKEW_S: f64 = 300.0;

/// What a probe found.
#[derive(Clone, PartialEq, Debug)]
pub struct Probe {
    /// Time of one listing, milliseconds.
    pub latency_ms: f64,
    /// How far this machine's clock is ahead of the source's, seconds, where the source tells its time.
    pub clock_skew_s: Option<f64>,
    /// Who we are to the source, shortened.
    pub identity: Option<String>,
}

/// Asks the source for one entry below `prefix`.
///
/// # Errors
/// The cause and the fix, within `deadline`: wrong bucket, key, secret, endpoint, region, expired token, clock.
pub async fn probe(source: &dyn Source, prefix: &ObjectKey, deadline: Duration) -> Result<Probe> {
    let action = format!("attach {}", source.describe(prefix));
    let request = ListRequest {
        prefix: prefix.clone(),
        delimited: true,
        limit: 1,
        priority: Priority::Foreground,
        ..ListRequest::default()
    };
    let asked_before = source.observed().retries;
    let started = Instant::now();
    let answer = tokio::time::timeout(deadline, source.list(request)).await;
    let observed = source.observed();
    let clock_skew_s = observed.clock_skew_ms.map(|skew_ms| skew_ms as f64 / 1000.0);
    match answer {
        Ok(Ok(_)) => Ok(Probe {
            latency_ms: started.elapsed().as_secs_f64() * 1000.0,
            clock_skew_s,
            identity: observed.identity,
        }),
        Ok(Err(error)) => Err(with_clock(not_misused(error).during(action), clock_skew_s)),
        Err(_) => Err(late(action, deadline, observed.retried.filter(|_| observed.retries > asked_before))),
    }
}

/// No listing came in time; `met` is the last failure after which it was asked for again.
fn late(action: String, deadline: Duration, met: Option<Error>) -> Error {
    let reason = format!("no listing came within {:.0} s", deadline.as_secs_f64());
    match met {
        None => Error::new(ErrorKind::Timeout, action, reason)
            .advise("check host and port of the endpoint, firewalls and proxies in between, or attach again later"),
        Some(met) => Error::new(ErrorKind::Timeout, action, format!("{reason}; before that: {}", met.reason()))
            .advise(met.advice().unwrap_or("the source answers, but not this: attach again later")),
    }
}

/// The question was ours: a source that takes it for wrong input cannot be worked with, whatever is attached.
fn not_misused(error: Error) -> Error {
    match error.kind() {
        ErrorKind::InvalidInput => error.with_kind(ErrorKind::Unsupported),
        _ => error,
    }
}

/// A refusal with a clock far off is likely to be about the clock, whatever the store says.
fn with_clock(error: Error, clock_skew_s: Option<f64>) -> Error {
    match clock_skew_s {
        Some(skew) if skew.abs() > NOTABLE_SKEW_S && error.kind() == ErrorKind::PermissionDenied => {
            error.fact("clock_skew_s", format!("{skew:.0}"))
        }
        _ => error,
    }
}
