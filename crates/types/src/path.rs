//! Paths of the tree: absolute, normal, UTF-8. What a key cannot say as a path is encoded by the catalog.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// Absolute path in the tree: begins with `/`, no empty, `.` or `..` component, no trailing `/` but the root's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TreePath(Arc<str>);

impl TreePath {
    /// The root of the tree.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Parses a path, dropping repeated and trailing slashes.
    ///
    /// # Errors
    /// `InvalidInput` when it is not absolute, or has `.`, `..` or a NUL byte in it.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason: &str| Error::new(ErrorKind::InvalidInput, format!("use path {text:?}"), reason);
        let Some(rest) = text.strip_prefix('/') else {
            return Err(invalid("it is not absolute").advise("paths of the tree begin with /"));
        };
        if text.contains('\0') {
            return Err(invalid("it contains a NUL byte"));
        }
        if rest.split('/').any(|part| part == "." || part == "..") {
            return Err(invalid("it contains . or .. as a component").advise("give the path without them"));
        }
        if is_normal(text) {
            return Ok(Self(text.into()));
        }
        let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
        Ok(Self(format!("/{}", parts.join("/")).into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// Last component; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.rfind('/') {
            Some(0) | None => Some(Self::root()),
            Some(position) => Some(Self(self.0[..position].into())),
        }
    }

    /// This directory's child `name`, or a deeper path `a/b` below it.
    pub fn join(&self, name: &str) -> Self {
        if name.is_empty() {
            return self.clone();
        }
        if self.is_root() { Self(format!("/{name}").into()) } else { Self(format!("{}/{name}", self.0).into()) }
    }

    /// What follows `ancestor`, without a leading slash (empty for the same path); `None` when not below it.
    pub fn below(&self, ancestor: &TreePath) -> Option<&str> {
        if ancestor.is_root() {
            return Some(&self.0[1..]);
        }
        let rest = self.0.strip_prefix(ancestor.as_str())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

fn is_normal(text: &str) -> bool {
    text == "/" || (!text.ends_with('/') && !text.contains("//"))
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_is_normalised_and_never_leaves_the_tree() {
        assert_eq!(TreePath::parse("//a///b/").unwrap().as_str(), "/a/b");
        assert_eq!(TreePath::parse("/").unwrap(), TreePath::root());
        for bad in ["", "a", "/a/../b", "/./a", "/a\0"] {
            assert_eq!(TreePath::parse(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }

    #[test]
    fn below_matches_whole_components_only() {
        let path = TreePath::parse("/data/train").unwrap();
        assert_eq!(path.below(&TreePath::parse("/data").unwrap()), Some("train"));
        assert_eq!(path.below(&TreePath::parse("/dat").unwrap()), None);
        assert_eq!(path.below(&path), Some(""));
        assert_eq!(path.below(&TreePath::root()), Some("data/train"));
        assert_eq!(path.parent(), Some(TreePath::parse("/data").unwrap()));
        assert_eq!(TreePath::root().join("a/b").as_str(), "/a/b");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_a_normal_path_that_stays_in_the_tree(text in "(/|\\.|\\.\\.|a|\u{0}|\\PC){0,12}") {
            if let Ok(path) = TreePath::parse(&text) {
                prop_assert_eq!(TreePath::parse(path.as_str()), Ok(path.clone()));
                prop_assert!(path.as_str().starts_with('/') && !path.as_str().contains("//"));
                prop_assert!(path.is_root() || !path.as_str().ends_with('/'));
                prop_assert!(path.as_str().split('/').all(|part| part != "." && part != ".."));
                prop_assert!(path.below(&TreePath::root()).is_some());
                if let Some(parent) = path.parent() {
                    prop_assert_eq!(parent.join(path.name()), path.clone());
                    prop_assert_eq!(path.below(&parent), Some(path.name()));
                }
            }
        }
    }
}
