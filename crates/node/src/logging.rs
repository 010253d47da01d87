//! The log: one JSON object a line, to the file that the host names, or to standard error.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;

use penstock_types::{Error, ErrorKind, Result};
use tracing_subscriber::EnvFilter;

/// Starts logging for the whole process; later calls change nothing. `level` is `error`, `warn`, `info`, `debug`,
/// `trace`, or a filter of targets as `tracing_subscriber` understands it.
///
/// # Errors
/// `InvalidInput` for a level that is none, `Disk` when the file cannot be opened.
pub fn start_logging(file: Option<&Path>, level: &str) -> Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, format!("log at level {level:?}"), error.to_string())
            .advise("use error, warn, info, debug or trace")
    })?;
    let builder = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter);
    let started = match file {
        None => builder.with_writer(std::io::stderr).try_init(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                Error::new(ErrorKind::Disk, format!("log to {}", path.display()), error.to_string())
                    .advise("make its directory writable")
            })?;
            builder.with_writer(Mutex::new(file)).try_init()
        }
    };
    // A second node in the same process logs to where the first one does.
    drop(started);
    Ok(())
}
