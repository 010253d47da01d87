//! Who may ask: signatures, anonymity, regions and session tokens, refused with the codes that S3 gives.

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::host::{S3Host, VirtualHost};
use s3s::{S3Result, s3_error};

/// Knows one pair of keys.
pub struct Keys {
    access_key: String,
    secret_key: SecretKey,
}

impl Keys {
    /// The pair that is known.
    pub fn new(access_key: &str, secret_key: &str) -> Self {
        Self { access_key: access_key.into(), secret_key: secret_key.into() }
    }
}

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == self.access_key {
            Ok(self.secret_key.clone())
        } else {
            Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
        }
    }
}

/// What is checked once the signature is known to be right.
pub struct Rules {
    /// Unsigned requests pass.
    pub anonymous: bool,
    /// The only region that signatures may name.
    pub region: Option<String>,
    /// The session token that must come along.
    pub session_token: Option<String>,
}

#[async_trait]
impl S3Access for Rules {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return if self.anonymous { Ok(()) } else { Err(s3_error!(AccessDenied, "Access Denied")) };
        }
        let header = |name: &str| context.headers().get(name).and_then(|value| value.to_str().ok());
        if let (Some(expected), Some(signed)) = (&self.region, header("authorization").and_then(region_of))
            && signed != expected
        {
            return Err(s3_error!(
                AuthorizationHeaderMalformed,
                "The authorization header is malformed; the region '{signed}' is wrong; expecting '{expected}'"
            ));
        }
        if let Some(expected) = &self.session_token
            && header("x-amz-security-token") != Some(expected)
        {
            return Err(s3_error!(InvalidToken, "The provided token is malformed or otherwise invalid."));
        }
        Ok(())
    }
}

/// The region in the credential scope of a version 4 signature: `Credential=KEY/DATE/REGION/s3/aws4_request`.
fn region_of(authorization: &str) -> Option<&str> {
    let (_, credential) = authorization.split_once("Credential=")?;
    credential.split(',').next()?.rsplit('/').nth(2)
}

/// Takes the bucket from the host name below one domain; any other host is asked by path.
pub struct Domain(pub String);

impl S3Host for Domain {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let name = host.split(':').next().unwrap_or(host);
        let bucket = name.strip_suffix(&self.0).and_then(|rest| rest.strip_suffix('.'));
        let plain = VirtualHost::new(host);
        Ok(match bucket {
            Some(bucket) => plain.with_bucket(bucket),
            None => plain,
        })
    }
}
