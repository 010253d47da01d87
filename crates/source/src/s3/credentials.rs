//! Credentials by reference: where they are, never what they are. Loaded when needed, refreshed before they expire.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider, EnvCredentialProvider,
    IMDSv2CredentialProvider, ProfileCredentialProvider, RequestSigner, SSOCredentialProvider,
};
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, Env, ProvideCredential, ProvideCredentialDyn, Signer};
use reqsign_file_read_tokio::TokioFileRead;

use penstock_types::{Error, ErrorKind, Result};

use super::http::{HttpClient, TokenHttp};
use crate::environment::Environment;

/// Where nobody says which one it is.
pub(crate) const DEFAULT_REGION: &str = "us-east-1";
/// What has no expiry of its own (files, profiles) is read again after this time, so that a rotation is noticed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(600);
/// Refused credentials are not loaded again more often.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);
/// A credentials file is a few lines.
const MAX_CREDENTIALS_FILE_BYTES: u64 = 64 << 10;

/// Where credentials are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reference {
    /// Environment, shared files, web identity, container and instance services, in this order.
    Chain,
    /// `AWS_ACCESS_KEY_ID` and its companions of the node's environment.
    Env,
    /// None: requests are not signed.
    Anonymous,
    /// A profile of the shared files.
    Profile(String),
    /// A file in the format of the shared credentials file, profile `default`.
    File(PathBuf),
}

impl Reference {
    /// Parses `chain`, `env`, `anonymous`, `profile:NAME` or `file:PATH`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "chain" => Ok(Self::Chain),
            None if text == "env" => Ok(Self::Env),
            None if text == "anonymous" => Ok(Self::Anonymous),
            Some(("profile", name)) if !name.is_empty() => Ok(Self::Profile(name.to_owned())),
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(PathBuf::from(path))),
            // The text is not repeated: somebody may have put a key there.
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                "use the credentials reference",
                "it is none of the known forms",
            )
            .advise("write chain, env, anonymous, profile:NAME or file:/ABSOLUTE/PATH")),
        }
    }

    /// Whether a token service may have to be asked.
    pub(crate) fn may_ask_services(&self) -> bool {
        matches!(self, Self::Chain | Self::Profile(_))
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chain => f.write_str("chain"),
            Self::Env => f.write_str("env"),
            Self::Anonymous => f.write_str("anonymous"),
            Self::Profile(name) => write!(f, "profile:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Signs requests with credentials that it keeps fresh.
pub(crate) struct RequestSigning {
    signer: Mutex<Signer<Credential>>,
    provider: Provider,
    identity: Arc<Mutex<Option<String>>>,
    reloaded: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for RequestSigning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestSigning")
    }
}

impl RequestSigning {
    /// `None` for anonymous access.
    pub(crate) fn new(
        reference: &Reference,
        region: &str,
        environment: &Environment,
        client: &HttpClient,
    ) -> Option<Self> {
        let sources: Vec<Box<dyn ProvideCredentialDyn<Credential = Credential>>> = match reference {
            Reference::Anonymous => return None,
            Reference::Env => vec![Box::new(EnvCredentialProvider::new())],
            Reference::Profile(name) => vec![
                Box::new(ProfileCredentialProvider::new().with_profile(name)),
                Box::new(SSOCredentialProvider::new().with_profile(name)),
            ],
            Reference::File(path) => vec![Box::new(PrivateFile { path: path.clone() })],
            Reference::Chain => vec![
                Box::new(EnvCredentialProvider::new()),
                Box::new(ProfileCredentialProvider::new()),
                Box::new(SSOCredentialProvider::new()),
                Box::new(AssumeRoleWithWebIdentityCredentialProvider::new()),
                Box::new(ECSCredentialProvider::new()),
                Box::new(IMDSv2CredentialProvider::new()),
            ],
        };
        let identity = Arc::new(Mutex::new(None));
        let provider =
            Provider { reference: reference.clone(), sources: Arc::new(sources), identity: identity.clone() };
        let context = Context::new()
            .with_file_read(TokioFileRead)
            .with_http_send(TokenHttp(client.clone()))
            .with_env(environment.clone());
        let signer =
            Signer::new(context, provider.clone(), RequestSigner::new("s3", region).with_standard_session_token());
        Some(Self { signer: Mutex::new(signer), provider, identity, reloaded: Mutex::new(None) })
    }

    /// Adds the signature to a request whose other headers are complete.
    pub(crate) async fn sign(&self, action: &str, parts: &mut http::request::Parts) -> Result<()> {
        let signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        signer.sign(parts, None).await.map_err(|error| {
            let kind = match error.kind() {
                reqsign_core::ErrorKind::RequestInvalid => ErrorKind::InvalidInput,
                _ if error.is_retryable() => ErrorKind::Unavailable,
                _ => ErrorKind::PermissionDenied,
            };
            Error::new(kind, action, format!("no credentials ({}): {error}", self.provider.reference))
                .advise(self.provider.advice(error.kind()))
        })
    }

    /// Forgets what is loaded: the store said that it is not valid any more. Many requests find that out at once,
    /// so once a second is enough; `false` where it was done a moment ago and did not help.
    pub(crate) fn reload(&self) -> bool {
        let mut reloaded = self.reloaded.lock().unwrap_or_else(PoisonError::into_inner);
        if reloaded.is_some_and(|reloaded| reloaded.elapsed() < RELOAD_PAUSE) {
            return false;
        }
        *reloaded = Some(Instant::now());
        let mut signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner);
        *signer = signer.clone().with_credential_provider(self.provider.clone());
        true
    }

    /// The access key in use, shortened.
    pub(crate) fn identity(&self) -> Option<String> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Asks its sources in order. Remembers the shortened access key and gives what never expires a time to be read again.
#[derive(Clone)]
struct Provider {
    reference: Reference,
    sources: Arc<Vec<Box<dyn ProvideCredentialDyn<Credential = Credential>>>>,
    identity: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Provider({})", self.reference)
    }
}

impl Provider {
    fn advice(&self, failure: reqsign_core::ErrorKind) -> String {
        match &self.reference {
            Reference::Env => "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment the node starts in, \
                               and start the node again"
                .to_owned(),
            Reference::Profile(name) => {
                format!("add keys for [{name}] to ~/.aws/credentials, or run aws sso login --profile {name}")
            }
            Reference::File(path) if failure == reqsign_core::ErrorKind::PermissionDenied => {
                format!("chmod 600 {}", path.display())
            }
            Reference::File(path) => {
                format!("write [default], aws_access_key_id and aws_secret_access_key into {}", path.display())
            }
            Reference::Chain | Reference::Anonymous => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, configure a profile, or attach with --credentials anonymous"
                    .to_owned()
            }
        }
    }
}

impl ProvideCredential for Provider {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        let mut first_failure = None;
        for source in self.sources.iter() {
            match source.provide_credential_dyn(context).await {
                Ok(Some(mut credential)) => {
                    let reload = Timestamp::now() + RELOAD_INTERVAL;
                    credential.expires_in.get_or_insert(reload);
                    *self.identity.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(shortened(&credential.access_key_id));
                    return Ok(Some(credential));
                }
                Ok(None) => {}
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        Err(first_failure.unwrap_or_else(|| reqsign_core::Error::config_invalid("none were found")))
    }
}

/// The ends of an access key id: enough to know which, of no use to anybody else.
fn shortened(access_key_id: &str) -> String {
    const SHOWN: usize = 4;
    let characters: Vec<char> = access_key_id.chars().collect();
    if characters.len() <= 2 * SHOWN {
        return format!("{}…", characters.iter().take(2).collect::<String>());
    }
    let head: String = characters[..SHOWN].iter().collect();
    let tail: String = characters[characters.len() - SHOWN..].iter().collect();
    format!("{head}…{tail}")
}

/// Credentials in a file that only its owner can read.
#[derive(Debug)]
struct PrivateFile {
    path: PathBuf,
}

impl ProvideCredential for PrivateFile {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        let path = self.path.clone();
        let text = tokio::task::spawn_blocking(move || read_private(&path))
            .await
            .map_err(|_| reqsign_core::Error::unexpected("reading the file was given up"))??;
        let value = |name: &str| value_in_section(&text, "default", name).map(str::to_owned);
        match (value("aws_access_key_id"), value("aws_secret_access_key")) {
            (Some(access_key_id), Some(secret_access_key)) => Ok(Some(Credential {
                access_key_id,
                secret_access_key,
                session_token: value("aws_session_token"),
                expires_in: None,
            })),
            _ => Err(reqsign_core::Error::config_invalid(format!(
                "{} has no aws_access_key_id and aws_secret_access_key in [default]",
                self.path.display()
            ))),
        }
    }
}

fn read_private(path: &Path) -> reqsign_core::Result<String> {
    use std::io::Read;
    let shown = path.display();
    let failed = |error: std::io::Error| {
        reqsign_core::Error::config_invalid(format!("{shown} cannot be read: {}", error.kind()))
    };
    // Checked on the open file: what was checked is what is read.
    let file = std::fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(reqsign_core::Error::config_invalid(format!("{shown} is not a file")));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(reqsign_core::Error::permission_denied(format!(
            "others can read {shown} (mode {:03o})",
            metadata.mode() & 0o777
        )));
    }
    let mut text = String::new();
    file.take(MAX_CREDENTIALS_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Value of `name` in `[section]` of a file in the format of AWS.
pub(crate) fn value_in_section<'a>(text: &'a str, section: &str, name: &str) -> Option<&'a str> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = header.trim() == section;
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            return Some(value.trim()).filter(|value| !value.is_empty());
        }
    }
    None
}

/// The region where none was given: environment, then the profile, then AWS's first one.
pub(crate) fn default_region(reference: &Reference, environment: &Environment) -> String {
    let from_environment = || environment.var("AWS_REGION").or_else(|| environment.var("AWS_DEFAULT_REGION"));
    let from_profile = || {
        let profile = match reference {
            Reference::Profile(name) => name.clone(),
            _ => environment.var("AWS_PROFILE").unwrap_or_else(|| "default".to_owned()),
        };
        let path = match environment.var("AWS_CONFIG_FILE") {
            Some(path) => PathBuf::from(path),
            None => environment.home_dir()?.join(".aws/config"),
        };
        let text = std::fs::read_to_string(path).ok()?;
        let section = if profile == "default" { profile } else { format!("profile {profile}") };
        value_in_section(&text, &section, "region").map(str::to_owned)
    };
    let found = match reference {
        Reference::Profile(_) => from_profile().or_else(from_environment),
        _ => from_environment().or_else(from_profile),
    };
    found.unwrap_or_else(|| DEFAULT_REGION.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_a_reference_that_is_written_as_it_was_or_is_refused_without_being_repeated(
            text in "(chain|env|anonymous|profile|file){0,1}(:){0,2}(/|[a-z]|\\PC){0,12}",
        ) {
            match Reference::parse(&text) {
                Ok(reference) => prop_assert_eq!(reference.to_string(), text),
                // The same for every text: somebody may have put a key there.
                Err(error) => prop_assert_eq!(Some(error), Reference::parse("").err()),
            }
        }
    }
}
