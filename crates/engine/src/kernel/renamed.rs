//! Where files went that were renamed under nodes that the kernel still holds: it gives the new name to the node that it
//! has, which stands for the old one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// Renames that are remembered: more than the kernel keeps names of.
const RENAMED_MAX: usize = 65_536;

/// Renames of files in a mount, oldest first.
#[derive(Default)]
pub struct Renamed(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// By the path before: the one after, and when that was, as lookups are counted.
    to: HashMap<String, Vec<(String, u64)>>,
    oldest_first: VecDeque<String>,
}

impl Renamed {
    /// Notes that a file has another path since the lookup `at`.
    pub fn note(&self, from: &str, to: &str, at: u64) {
        let mut known = self.known();
        known.to.entry(from.to_owned()).or_default().push((to.to_owned(), at));
        known.oldest_first.push_back(from.to_owned());
        if known.oldest_first.len() > RENAMED_MAX
            && let Some(oldest) = known.oldest_first.pop_front()
            && let Some(all) = known.to.get_mut(&oldest)
        {
            all.remove(0);
            if all.is_empty() {
                known.to.remove(&oldest);
            }
        }
    }

    /// Where a file is now whose name was looked up last at `told`, when it was at `path`.
    pub fn follow(&self, path: String, mut told: u64) -> String {
        let (known, mut path) = (self.known(), path);
        while let Some((to, at)) = known.to.get(&path).and_then(|all| all.iter().find(|(_, at)| *at > told)) {
            (path, told) = (to.clone(), *at);
        }
        path
    }

    /// A directory has another path from now on: so has everything that was renamed below it.
    pub fn move_directory(&self, from: &str, to: &str) {
        let mut known = self.known();
        if known.to.is_empty() {
            return;
        }
        let moved = |path: String| match path.strip_prefix(from) {
            Some(below) if below.starts_with('/') => format!("{to}{below}"),
            _ => path,
        };
        let all = std::mem::take(&mut known.to).into_iter();
        known.to = all
            .map(|(path, renamed)| (moved(path), renamed.into_iter().map(|(to, at)| (moved(to), at)).collect()))
            .collect();
        known.oldest_first.iter_mut().for_each(|path| *path = moved(std::mem::take(path)));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("no panic while renames are held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_follows_the_renames_after_its_lookup_and_no_others() {
        let renamed = Renamed::default();
        renamed.note("/d/a", "/d/z", 5);
        renamed.note("/d/a", "/d/y", 8);
        renamed.note("/d/z", "/d/a", 9);
        let now = |told| renamed.follow("/d/a".into(), told);
        assert_eq!((now(3), now(6), now(9)), ("/d/a".to_owned(), "/d/y".to_owned(), "/d/a".to_owned()));
        renamed.move_directory("/d", "/e");
        assert_eq!(renamed.follow("/e/a".into(), 6), "/e/y");
        assert_eq!(renamed.follow("/d/a".into(), 6), "/d/a");
    }

    #[test]
    fn what_was_exchanged_is_followed_to_the_other_name_and_not_back() {
        let renamed = Renamed::default();
        renamed.note("/a", "/b", 5);
        renamed.note("/b", "/a", 5);
        let now = |path: &str, told| renamed.follow(path.into(), told);
        assert_eq!((now("/a", 3), now("/b", 3), now("/a", 6)), ("/b".to_owned(), "/a".to_owned(), "/a".to_owned()));
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten() {
        let renamed = Renamed::default();
        (0..=RENAMED_MAX).for_each(|number| renamed.note(&format!("/{number}"), "/to", 1));
        assert_eq!(renamed.follow("/0".into(), 0), "/0");
        assert_eq!(renamed.follow("/1".into(), 0), "/to");
    }
}
