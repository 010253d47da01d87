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
    // That no single try was answered either says nothing new, and advises a deadline that is not this one.
    match met.filter(|met| met.kind() != ErrorKind::Timeout) {
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
        // A listing finds something or nothing. "Not there" without a word more is no S3 store, or another's proxy.
        ErrorKind::NotFound if error.advice().is_none() => {
            error.advise("check the bucket's name, and that the endpoint is the store's S3 address")
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn advice_after(met: Option<Error>) -> String {
        late("attach s3://b/".to_owned(), Duration::from_secs(10), met).to_string()
    }

    #[test]
    fn tries_that_were_not_answered_are_no_news_to_who_was_not_answered() {
        let silent =
            Error::new(ErrorKind::Timeout, "list s3://b/", "no answer within 5.0 s").advise("raise the deadline");
        assert_eq!(advice_after(Some(silent)), advice_after(None));
        let refused =
            Error::new(ErrorKind::Unavailable, "list s3://b/", "the connection was refused").advise("start it");
        assert!(advice_after(Some(refused)).contains("before that: the connection was refused; start it"));
    }

    #[test]
    fn a_listing_that_is_not_found_says_what_to_look_at() {
        let bare = not_misused(Error::new(ErrorKind::NotFound, "list s3://b/", "no such object"));
        assert!(bare.advice().is_some_and(|advice| advice.contains("the endpoint")));
        let told = not_misused(Error::new(ErrorKind::NotFound, "list s3://b/", "no such bucket").advise("make it"));
        assert_eq!(told.advice(), Some("make it"));
    }
}
