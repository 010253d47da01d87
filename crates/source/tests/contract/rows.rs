//! The implementations: how each is started and opened.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use penstock_source::{Environment, SourceParts, open_in};
use penstock_types::{Metrics, SourceConfig, SourceSpec, SystemClock};

use crate::Bench;
use crate::servers::{ACCESS_KEY, SECRET_KEY, Server};

/// An open source and what keeps it alive.
pub(crate) struct Row {
    pub bench: Bench,
    _alive: Vec<Box<dyn Any>>,
}

const BUCKET: &str = "contract";

/// Nothing of the machine's own environment gets to a source under test.
fn environment() -> Environment {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Environment::of(
        [
            variable("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            variable("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            variable("AWS_EC2_METADATA_DISABLED", "true"),
        ],
        None,
    )
}

fn parts() -> SourceParts {
    SourceParts {
        config: SourceConfig { max_requests: 32, max_attempts: 3, max_bytes_per_s: None, max_upload_bytes_per_s: None },
        deadline: Duration::from_secs(20),
        metrics: Metrics::default(),
        clock: Arc::new(SystemClock::default()),
        seed: 1,
    }
}

fn row(spec: SourceSpec, alive: Vec<Box<dyn Any>>) -> Row {
    let open = move || open_in(&spec, &parts(), &environment()).expect("the spec is right");
    let bench = Bench { source: open(), reopen: Arc::new(open), prefix: String::new() };
    Row { bench, _alive: alive }
}

fn s3(endpoint: String, alive: Vec<Box<dyn Any>>) -> Row {
    let spec = SourceSpec::S3 {
        bucket: BUCKET.to_owned(),
        endpoint: Some(endpoint),
        region: Some("us-east-1".to_owned()),
        virtual_host: None,
        credentials: "env".to_owned(),
    };
    row(spec, alive)
}

pub(crate) fn memory() -> Result<Row, String> {
    Ok(row(SourceSpec::Memory { name: "contract".to_owned() }, Vec::new()))
}

pub(crate) fn file() -> Result<Row, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let spec = SourceSpec::File { directory: directory.path().to_owned() };
    Ok(row(spec, vec![Box::new(directory)]))
}

pub(crate) fn remote() -> Result<Row, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut config = penstock_remote::RemoteConfig::new(directory.path());
    config.credentials = Some((ACCESS_KEY.to_owned(), SECRET_KEY.to_owned()));
    config.region = Some("us-east-1".to_owned());
    let remote = penstock_remote::Remote::start(config).expect("the remote starts");
    remote.create_bucket(BUCKET).expect("a bucket");
    let endpoint = remote.endpoint();
    Ok(s3(endpoint, vec![Box::new(remote), Box::new(directory)]))
}

/// The file that `variable` or `usual` (below the repository) names.
fn tool(variable: &str, usual: &str) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        return if path.exists() { Ok(path) } else { Err(format!("{variable} names a file that is not there")) };
    }
    let repository = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = repository.join(usual);
    if path.exists() { Ok(path) } else { Err(format!("neither {variable} nor {usual} is there")) }
}

pub(crate) fn moto(runtime: &tokio::runtime::Runtime) -> Result<Row, String> {
    let python = tool("PENSTOCK_TEST_MOTO_PYTHON", ".venv/bin/python")?;
    let has_moto = std::process::Command::new(&python).args(["-c", "import moto.server"]).output();
    if !has_moto.is_ok_and(|output| output.status.success()) {
        return Err(format!("{} has no moto[server]", python.display()));
    }
    let server = Server::start(&python, |port| {
        ["-c", "import sys; from moto.server import main; sys.exit(main())", "-H", "127.0.0.1", "-p", &port.to_string()]
            .map(str::to_owned)
            .to_vec()
    })?;
    runtime.block_on(server.make_bucket(BUCKET))?;
    Ok(s3(server.endpoint(), vec![Box::new(server)]))
}

pub(crate) fn versitygw() -> Result<Row, String> {
    versitygw_with(&[])
}

/// The server with files in its bucket's directory that nobody put: they have no ETag.
pub(crate) fn versitygw_with(files: &[(&str, &[u8])]) -> Result<Row, String> {
    let binary = tool("PENSTOCK_TEST_VERSITYGW", ".tools/bin/versitygw")?;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bucket = directory.path().join(BUCKET);
    for (name, content) in files {
        let file = bucket.join(name);
        std::fs::create_dir_all(file.parent().expect("below the bucket")).expect("a directory");
        std::fs::write(file, content).expect("a file");
    }
    std::fs::create_dir_all(&bucket).expect("a bucket");
    let root = directory.path().display().to_string();
    let server = Server::start(&binary, |port| {
        let port = format!("127.0.0.1:{port}");
        ["--port", &port, "--access", ACCESS_KEY, "--secret", SECRET_KEY, "--keep-alive", "--quiet", "posix", &root]
            .map(str::to_owned)
            .to_vec()
    })?;
    Ok(s3(server.endpoint(), vec![Box::new(server), Box::new(directory)]))
}
