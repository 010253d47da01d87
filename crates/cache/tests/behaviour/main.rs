//! What the cache promises, tried from outside.

mod eviction;
mod faults;
mod filling;
mod integrity;
mod restart;
mod shrinking;
mod support;
