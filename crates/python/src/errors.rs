//! Errors of the core as exceptions of `penstock.errors`.

use penstock_types::{Error, ErrorKind};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// The exception for an error: an instance of `PenstockError`.
pub fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    static FACTORY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let factory = FACTORY.import(py, "penstock.errors", "error_from")?;
    factory.call1((error.kind().code(), error.to_string(), error.action(), error.reason(), error.advice()))
}

/// The error to raise.
pub fn raise(error: &Error) -> PyErr {
    Python::attach(|py| match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failed) => failed,
    })
}

/// The error of ours that was raised; `None` when it was none of ours. Its facts are part of none of its parts.
pub fn ours(py: Python<'_>, raised: &PyErr) -> Option<Error> {
    let part = |name: &str| raised.value(py).getattr(name).and_then(|part| part.extract::<Option<String>>()).ok();
    let code = part("code")??;
    let kind = ErrorKind::ALL.iter().find(|kind| kind.code() == code)?;
    let error = Error::new(*kind, part("action")??, part("reason")??);
    Some(match part("advice")? {
        Some(advice) => error.advise(advice),
        None => error,
    })
}

/// Whether it is an error of ours of that kind.
pub fn is_kind(py: Python<'_>, raised: &PyErr, kind: ErrorKind) -> bool {
    let code = raised.value(py).getattr("code").and_then(|code| code.extract::<String>());
    code.is_ok_and(|code| code == kind.code())
}

/// What a closed file answers.
pub fn closed() -> PyErr {
    PyValueError::new_err("I/O operation on closed file")
}

/// Stable code and errno of every kind, in the order of the reference.
#[pyfunction]
pub fn error_kinds() -> Vec<(&'static str, i32)> {
    ErrorKind::ALL.iter().map(|kind| (kind.code(), kind.errno())).collect()
}
