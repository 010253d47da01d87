//! From an answer that is no success to an error that says the cause and the fix.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use penstock_types::{Error, ErrorKind};

use super::xml;

/// The store's words are cut off here: messages stay one readable line.
const MAX_MESSAGE_CHARS: usize = 200;
/// Nobody waits longer because a header says so.
const MAX_RETRY_AFTER_MS: u64 = 60_000;

/// How the reason of a missing bucket begins.
pub(crate) const NO_BUCKET: &str = "there is no bucket";

/// What a status means depends on what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A read of one version.
    PinnedRead,
    /// A write or deletion with a condition.
    ConditionalWrite,
    /// Anything else.
    Plain,
}

/// An answer that is no success.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub code: String,
    message: String,
    region: Option<String>,
    request_id: Option<String>,
    retry_after_ms: Option<u64>,
    /// Whether the body is an S3 error document (or there is no body, as for HEAD).
    is_s3: bool,
}

/// What messages need to know of the source.
pub(crate) struct Surroundings<'a> {
    pub bucket: &'a str,
    pub endpoint: &'a str,
    pub region: &'a str,
    pub credentials: &'a str,
    pub clock_skew_ms: Option<i64>,
}

impl Refusal {
    /// Reads status, headers and body. `status` may be 200: some operations fail after it was sent.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Self {
        let document = xml::parse_error(body);
        let is_s3 = document.is_some() || body.is_empty();
        let document = document.unwrap_or_default();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let delay_s = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
        Self {
            status,
            code: document.code,
            message: document.message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE_CHARS).collect(),
            region: document.region.or_else(|| text("x-amz-bucket-region")),
            request_id: document.request_id.or_else(|| text("x-amz-request-id")),
            retry_after_ms: delay_s
                .filter(|delay| delay.is_finite() && *delay >= 0.0)
                .map(|delay| ((delay * 1000.0) as u64).min(MAX_RETRY_AFTER_MS)),
            is_s3,
        }
    }

    /// Whether the answer says too little to name the cause: HEAD has no body.
    pub(crate) fn is_silent(&self) -> bool {
        self.code.is_empty() && matches!(self.status.as_u16(), 301 | 400 | 401 | 403)
    }

    /// The error of an operation that was answered so.
    pub(crate) fn error(&self, action: &str, purpose: Purpose, around: &Surroundings<'_>) -> Error {
        let (kind, reason, advice) = self.verdict(purpose, around);
        let mut error = Error::new(kind, action, reason).fact("status", self.status.as_u16());
        if let Some(advice) = advice {
            error = error.advise(advice);
        }
        if !self.code.is_empty() {
            error = error.fact("code", &self.code);
        }
        if let Some(id) = &self.request_id {
            error = error.fact("request_id", id.escape_default());
        }
        if let Some(delay_ms) = self.retry_after_ms {
            error = error.retry_after_ms(delay_ms);
        }
        error
    }

    fn verdict(&self, purpose: Purpose, around: &Surroundings<'_>) -> (ErrorKind, String, Option<String>) {
        if let Some(verdict) = self.verdict_by_code(around) {
            return verdict;
        }
        if !self.is_s3 && self.status.is_client_error() {
            return (
                ErrorKind::Unavailable,
                format!("{} answers, but not as an S3 store does", around.endpoint),
                Some("check the endpoint: it must be the store's S3 address, not its console".to_owned()),
            );
        }
        self.verdict_by_status(purpose, around)
    }

    fn verdict_by_code(&self, around: &Surroundings<'_>) -> Option<(ErrorKind, String, Option<String>)> {
        let verdict = |kind, reason: String, advice: &str| Some((kind, reason, Some(advice.to_owned())));
        let Surroundings { bucket, endpoint, region, credentials, .. } = around;
        match self.code.as_str() {
            "NoSuchBucket" => verdict(
                ErrorKind::NotFound,
                format!("{NO_BUCKET} {bucket} at {endpoint}"),
                "check the bucket's name and the endpoint",
            ),
            "InvalidBucketName" => verdict(
                ErrorKind::NotFound,
                format!("the store takes {bucket} for no bucket's name"),
                "check the bucket's name",
            ),
            "SignatureDoesNotMatch" => verdict(
                ErrorKind::PermissionDenied,
                format!("the secret key does not belong to the access key (credentials {credentials})"),
                "check the secret access key",
            ),
            // versitygw says it with 404, which must not become "no such object".
            "InvalidAccessKeyId" | "XAdminUserNotFound" => verdict(
                ErrorKind::PermissionDenied,
                format!("the store does not know the access key (credentials {credentials})"),
                "check the access key id, and that the endpoint is the right store",
            ),
            "ExpiredToken" | "TokenRefreshRequired" | "ExpiredTokenException" => verdict(
                ErrorKind::PermissionDenied,
                format!("the session token has expired (credentials {credentials})"),
                "log in again, or renew the temporary credentials",
            ),
            "InvalidToken" => verdict(
                ErrorKind::PermissionDenied,
                format!("the session token is not valid (credentials {credentials})"),
                "check AWS_SESSION_TOKEN: it must come with the access key, or be absent",
            ),
            "RequestTimeTooSkewed" | "RequestExpired" => verdict(
                ErrorKind::PermissionDenied,
                format!("this machine's clock {} the store's", skew_text(around.clock_skew_ms)),
                "set the machine's clock (NTP)",
            ),
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationQueryParametersError"
            | "IllegalLocationConstraintException"
            | "InvalidRegion" => Some(self.wrong_region(bucket, region)),
            "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "Busy" => Some((ErrorKind::RateLimited, self.slow_down_text(), None)),
            "RequestTimeout" | "IncompleteBody" => {
                Some((ErrorKind::Unavailable, "the store did not get the request in time".to_owned(), None))
            }
            "ConditionalRequestConflict" | "OperationAborted" => {
                Some((ErrorKind::Unavailable, "another write of the key is under way".to_owned(), None))
            }
            "InternalError" | "ServiceUnavailable" if self.status.is_success() => {
                Some((ErrorKind::Unavailable, format!("the store failed: {}", self.words()), None))
            }
            _ => None,
        }
    }

    fn verdict_by_status(&self, purpose: Purpose, around: &Surroundings<'_>) -> (ErrorKind, String, Option<String>) {
        let Surroundings { bucket, region, credentials, .. } = around;
        match self.status.as_u16() {
            301 | 302 | 303 | 307 | 308 => self.wrong_region(bucket, region),
            404 if purpose == Purpose::PinnedRead => {
                (ErrorKind::StaleVersion, "the object was deleted".to_owned(), None)
            }
            404 if purpose == Purpose::ConditionalWrite && self.code != "NoSuchUpload" => {
                (ErrorKind::Conflict, "the object is gone".to_owned(), None)
            }
            404 => (
                ErrorKind::NotFound,
                if self.code.is_empty() { "no such object".to_owned() } else { self.words() },
                None,
            ),
            409 if purpose == Purpose::ConditionalWrite => (ErrorKind::Conflict, self.words(), None),
            412 if purpose == Purpose::PinnedRead => {
                (ErrorKind::StaleVersion, "the object changed".to_owned(), Some("open it again".to_owned()))
            }
            412 => (ErrorKind::Conflict, "the object is not what the write was decided on".to_owned(), None),
            416 => (ErrorKind::InvalidInput, "the range is not inside the object".to_owned(), None),
            401 | 403 => (
                ErrorKind::PermissionDenied,
                format!("the store denies it to us (credentials {credentials}): {}", self.words()),
                Some(format!("grant these credentials access to bucket {bucket}, or use others")),
            ),
            // A store that lets everybody in may not even know what a signature is.
            501 if self.message.contains("authentication") => (
                ErrorKind::Unsupported,
                format!("the store takes no credentials (credentials {credentials}): {}", self.words()),
                Some("attach it with --credentials anonymous".to_owned()),
            ),
            405 | 501 => (ErrorKind::Unsupported, format!("the store cannot do that: {}", self.words()), None),
            429 | 503 => (ErrorKind::RateLimited, self.slow_down_text(), None),
            408 | 500..=599 => (ErrorKind::Unavailable, format!("the store failed: {}", self.words()), None),
            400..=499 => (ErrorKind::InvalidInput, format!("the store refuses the request: {}", self.words()), None),
            _ => (ErrorKind::Corrupt, format!("the store answers in a way S3 does not: {}", self.words()), None),
        }
    }

    /// The signature is for another region: to this one we are strangers.
    fn wrong_region(&self, bucket: &str, region: &str) -> (ErrorKind, String, Option<String>) {
        match &self.region {
            Some(right) if right != region => (
                ErrorKind::PermissionDenied,
                format!("bucket {bucket} is in region {right}, not in {region}"),
                Some(format!("attach it with --region {right}")),
            ),
            _ => (
                ErrorKind::PermissionDenied,
                format!("the store sends us elsewhere: {}", self.words()),
                Some(format!("check the endpoint, and that {region} is the region of bucket {bucket}")),
            ),
        }
    }

    fn slow_down_text(&self) -> String {
        format!("the store asks for fewer requests: {} {}", self.status.as_u16(), self.words())
    }

    /// The store's own words, or the status where it has none.
    fn words(&self) -> String {
        match (self.code.is_empty(), self.message.is_empty()) {
            (false, false) => format!("{}: {}", self.code, self.message),
            (false, true) => self.code.clone(),
            _ => self.status.canonical_reason().unwrap_or("no reason given").to_lowercase(),
        }
    }
}

fn skew_text(skew_ms: Option<i64>) -> String {
    match skew_ms {
        Some(skew_ms) if skew_ms > 0 => format!("is {} ahead of", long_time(skew_ms.unsigned_abs())),
        Some(skew_ms) if skew_ms < 0 => format!("is {} behind", long_time(skew_ms.unsigned_abs())),
        _ => "is not".to_owned(),
    }
}

/// In the largest unit that it has at least two of.
fn long_time(ms: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(24 * 60 * 60, "days"), (60 * 60, "hours"), (60, "minutes")];
    let seconds = ms / 1000;
    match UNITS.iter().find(|(unit, _)| seconds >= 2 * unit) {
        Some((unit, name)) => format!("{} {name}", (seconds + unit / 2) / unit),
        None => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AROUND: Surroundings<'_> = Surroundings {
        bucket: "b",
        endpoint: "http://h",
        region: "us-east-1",
        credentials: "env",
        clock_skew_ms: Some(3_600_000),
    };

    fn error(status: u16, body: &str, purpose: Purpose) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Refusal::read(status, &HeaderMap::new(), &Bytes::from(body.to_owned())).error("read s3://b/k", purpose, &AROUND)
    }

    fn coded(status: u16, code: &str) -> Error {
        error(status, &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"), Purpose::PinnedRead)
    }

    #[test]
    fn every_wrong_credential_has_its_own_cause_and_fix() {
        for (code, status, word) in [
            ("SignatureDoesNotMatch", 403, "secret"),
            ("InvalidAccessKeyId", 403, "access key"),
            ("XAdminUserNotFound", 404, "access key"),
            ("ExpiredToken", 400, "expired"),
            ("RequestTimeTooSkewed", 403, "60 minutes ahead"),
            ("InvalidToken", 400, "session token"),
        ] {
            let error = coded(status, code);
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{code}");
            assert!(error.reason().contains(word), "{error}");
            assert!(error.advice().is_some(), "{error}");
        }
    }

    #[test]
    fn a_clock_that_is_years_off_is_told_in_days() {
        assert_eq!(skew_text(Some(91_214_358_000)), "is 1056 days ahead of");
        assert_eq!(skew_text(Some(-7_300_000)), "is 2 hours behind");
        assert_eq!(skew_text(Some(-119_000)), "is 119 s behind");
        assert_eq!(skew_text(None), "is not");
    }

    #[test]
    fn a_store_without_credentials_says_so() {
        let body = "<Error><Code>NotImplemented</Code><Message>there is no authentication provider</Message></Error>";
        let error = error(501, body, Purpose::Plain);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.advice(), Some("attach it with --credentials anonymous"));
        assert_eq!(coded(501, "NotImplemented").advice(), None);
    }

    #[test]
    fn a_wrong_region_names_the_right_one() {
        let body =
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>m</Message><Region>eu-west-3</Region></Error>";
        let error = error(400, body, Purpose::Plain);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(error.advice(), Some("attach it with --region eu-west-3"));
    }

    #[test]
    fn the_same_status_means_what_the_request_makes_of_it() {
        assert_eq!(error(412, "", Purpose::PinnedRead).kind(), ErrorKind::StaleVersion);
        assert_eq!(error(412, "", Purpose::ConditionalWrite).kind(), ErrorKind::Conflict);
        assert_eq!(error(404, "", Purpose::ConditionalWrite).kind(), ErrorKind::Conflict);
        assert_eq!(error(404, "", Purpose::PinnedRead).kind(), ErrorKind::StaleVersion);
        assert_eq!(error(404, "", Purpose::Plain).kind(), ErrorKind::NotFound);
        assert_eq!(
            error(404, "<Error><Code>NoSuchUpload</Code></Error>", Purpose::ConditionalWrite).kind(),
            ErrorKind::NotFound
        );
        assert_eq!(error(503, "", Purpose::PinnedRead).kind(), ErrorKind::RateLimited);
        assert_eq!(coded(409, "ConditionalRequestConflict").kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn a_wish_for_fewer_requests_is_told_in_the_stores_own_words() {
        let told = |error: Error| error.reason().to_owned();
        assert_eq!(told(coded(503, "SlowDown")), "the store asks for fewer requests: 503 SlowDown: m");
        assert_eq!(told(error(429, "", Purpose::Plain)), "the store asks for fewer requests: 429 too many requests");
    }

    #[test]
    fn a_web_page_is_no_store() {
        let error = error(404, "<html>not found</html>", Purpose::Plain);
        assert!(error.to_string().contains("not as an S3 store"), "{error}");
    }

    #[test]
    fn the_wish_to_wait_is_kept_within_bounds() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "2".parse().unwrap());
        let read = |headers: &HeaderMap| Refusal::read(StatusCode::SERVICE_UNAVAILABLE, headers, &Bytes::new());
        let delay = |headers: &HeaderMap| read(headers).error("a", Purpose::Plain, &AROUND).requested_delay_ms();
        assert_eq!(delay(&headers), Some(2000));
        headers.insert("retry-after", "86400".parse().unwrap());
        assert_eq!(delay(&headers), Some(MAX_RETRY_AFTER_MS));
        headers.insert("retry-after", "soon".parse().unwrap());
        assert_eq!(delay(&headers), None);
    }
}
