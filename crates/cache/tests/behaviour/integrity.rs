//! Damage is found and never served.
