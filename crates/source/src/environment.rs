//! The environment as a value, so that tests have their own and nothing else is ambient.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Variables and home directory of the process, or what a test says they are.
#[derive(Clone, Default)]
pub struct Environment {
    variables: Arc<HashMap<String, String>>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process, as it is now.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::of(std::env::vars_os().filter_map(text), std::env::home_dir())
    }

    /// Just these variables and this home directory. An empty variable counts as none, as with AWS's own tools.
    pub fn of(variables: impl IntoIterator<Item = (String, String)>, home: Option<PathBuf>) -> Self {
        let variables = variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        Self { variables: Arc::new(variables), home }
    }
}

impl std::fmt::Debug for Environment {
    /// Values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Environment({} variables)", self.variables.len())
    }
}

impl reqsign_core::Env for Environment {
    fn var(&self, key: &str) -> Option<String> {
        self.variables.get(key).cloned()
    }

    fn vars(&self) -> HashMap<String, String> {
        HashMap::clone(&self.variables)
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.home.clone()
    }
}
