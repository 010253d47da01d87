//! The compiled module `penstock._core`: the node for the process that hosts it, and the thin synchronous client for
//! every other one. Translates between Python and Rust; decides nothing.
//!
//! The client has no threads and no runtime. Its locks are held only by threads that are attached to the
//! interpreter, and never across I/O, so that a fork cannot copy a locked one; what must be held across I/O is never
//! used again in a child.

mod client;
mod core;
mod entry;
mod errors;
mod file;
mod link;
mod node;
mod remote;
mod view;
mod writer;

use pyo3::prelude::*;

#[pymodule(name = "_core")]
fn core_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<core::Core>()?;
    module.add_class::<entry::PyEntry>()?;
    module.add_class::<file::File>()?;
    module.add_class::<link::Lease>()?;
    module.add_class::<node::PyNode>()?;
    module.add_class::<remote::Remote>()?;
    module.add_class::<view::View>()?;
    module.add_class::<writer::Writer>()?;
    module.add_function(wrap_pyfunction!(core::crc32c, module)?)?;
    module.add_function(wrap_pyfunction!(core::shared_core, module)?)?;
    module.add_function(wrap_pyfunction!(errors::error_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(file::reopen, module)?)?;
    module.add_function(wrap_pyfunction!(node::end_connection, module)?)?;
    client::fork::register(module)
}
