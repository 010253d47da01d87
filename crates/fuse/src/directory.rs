//! A directory that is being read: the kernel asks by position, the tree gives pages one after another.

use std::sync::{Arc, Mutex, MutexGuard};

use penstock_types::{NodeId, NodePage};

/// An open directory. Keeps one page of names, and where each page before it began: a directory of any size streams,
/// and a program can still go back in it.
pub struct OpenDirectory {
    /// Which directory.
    pub node: NodeId,
    pages: Mutex<Pages>,
}

/// A page of names, as the tree gave it after so many orders to take something back.
#[derive(Debug)]
pub struct Page {
    pub names: NodePage,
    pub orders: u64,
}

/// Where the names from a position on are.
#[derive(Debug)]
pub enum Place {
    /// In this page, from this index on.
    Here(Arc<Page>, usize),
    /// Nowhere: the directory ends before.
    End,
    /// In the page after `after`, which begins at `start`, or further on.
    Ask {
        /// Position of the page's first name.
        start: u64,
        /// What to pass to the tree.
        after: Option<String>,
    },
}

#[derive(Default)]
struct Pages {
    /// The page that was read last and the position of its first name.
    current: Option<(u64, Arc<Page>)>,
    /// Where pages begin, ascending, without the first.
    begun: Vec<(u64, String)>,
}

impl OpenDirectory {
    /// Nothing read yet.
    pub fn new(node: NodeId) -> Self {
        Self { node, pages: Mutex::default() }
    }

    /// Forgets what was read: a directory that is read again from its beginning shows what is there now.
    pub fn rewind(&self) {
        *self.pages() = Pages::default();
    }

    /// Where the name at `position` is.
    pub fn find(&self, position: u64) -> Place {
        let pages = self.pages();
        if let Some((start, page)) = &pages.current
            && position >= *start
        {
            let index = position - start;
            if index < page.names.entries.len() as u64 {
                return Place::Here(Arc::clone(page), usize::try_from(index).expect("it is in the page"));
            }
            if page.names.next.is_none() {
                return Place::End;
            }
        }
        match pages.begun.iter().rev().find(|(start, _)| *start <= position) {
            None => Place::Ask { start: 0, after: None },
            Some((start, after)) => Place::Ask { start: *start, after: Some(after.clone()) },
        }
    }

    /// Keeps the page that was asked for.
    pub fn keep(&self, start: u64, page: Page) {
        let mut pages = self.pages();
        if let Some(next) = &page.names.next {
            let following = (start + page.names.entries.len() as u64, next.clone());
            if !pages.begun.contains(&following) {
                // The directory has changed since the pages behind this one were read.
                pages.begun.retain(|(begun, _)| *begun <= start && *begun < following.0);
                pages.begun.push(following);
            }
        }
        pages.current = Some((start, Arc::new(page)));
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("no panic while a page is looked at")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use penstock_types::{ListedNode, Looked};

    use super::*;

    fn page(names: std::ops::Range<u64>, next: bool) -> Page {
        let looked = Looked { found: None, name_valid: Duration::ZERO, attributes_valid: Duration::ZERO };
        let next = next.then(|| names.end.to_string());
        let entries =
            names.map(|name| ListedNode { name: name.to_string().into(), looked, token: Arc::new(()) }).collect();
        Page { names: NodePage { entries, next }, orders: 0 }
    }

    /// Reads `position` of a directory of `count` names in pages of ten; how many pages it took, and the name.
    fn read(directory: &OpenDirectory, position: u64, count: u64) -> (usize, Option<String>) {
        for asked in 0..100 {
            match directory.find(position) {
                Place::Here(page, index) => return (asked, Some(page.names.entries[index].name.to_string())),
                Place::End => return (asked, None),
                Place::Ask { start, after } => {
                    let first = after.map_or(0, |after| after.parse().unwrap());
                    directory.keep(start, page(first..count.min(first + 10), first + 10 < count));
                }
            }
        }
        panic!("the directory has no end");
    }

    #[test]
    fn a_directory_streams_and_a_program_may_go_back_in_it() {
        let directory = OpenDirectory::new(NodeId::ROOT);
        for position in 0..95 {
            let (asked, name) = read(&directory, position, 95);
            assert_eq!((asked, name), (usize::from(position % 10 == 0), Some(position.to_string())));
        }
        assert_eq!(read(&directory, 95, 95), (0, None));
        assert_eq!(read(&directory, 12, 95), (1, Some("12".into())));
        assert_eq!(read(&directory, 71, 95), (1, Some("71".into())), "later pages are not walked to again");
    }

    #[test]
    fn a_directory_that_shrinks_while_it_is_read_again_still_ends() {
        let directory = OpenDirectory::new(NodeId::ROOT);
        assert_eq!(read(&directory, 30, 95).1, Some("30".into()));
        assert_eq!(read(&directory, 0, 4), (1, Some("0".into())));
        assert_eq!(read(&directory, 30, 4).1, None);
    }

    #[test]
    fn pages_without_a_name_are_passed_over() {
        let directory = OpenDirectory::new(NodeId::ROOT);
        for next in ["a", "b"] {
            let names = NodePage { entries: Vec::new(), next: Some(next.into()) };
            directory.keep(0, Page { names, orders: 0 });
        }
        assert!(matches!(directory.find(0), Place::Ask { start: 0, after: Some(after) } if after == "b"));
        directory.keep(0, page(0..3, false));
        assert!(matches!(directory.find(2), Place::Here(_, 2)));
    }
}
