//! Inputs of decoders that are kept as files: what is right and must stay readable, what is wrong and must be refused,
//! what is odd and may be either but must not do harm. The prefix of a file's name says which.

use std::path::Path;

/// What a decoder must make of a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is read: `right-…`.
    Right,
    /// It is refused: `wrong-…`.
    Wrong,
    /// It is read or refused: `odd-…`.
    Odd,
}

/// One input.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Name of its file.
    pub name: String,
    /// What must come of it.
    pub verdict: Verdict,
    /// The input.
    pub bytes: Vec<u8>,
}

/// Reads every sample in `directory`, sorted by name.
///
/// # Panics
/// When the directory cannot be read, has no right and no wrong sample, or holds a file of another name: a corpus
/// that is lost must not pass for one that was tried.
pub fn samples(directory: impl AsRef<Path>) -> Vec<Sample> {
    let directory = directory.as_ref();
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut samples: Vec<Sample> = entries
        .map(|entry| {
            let path = entry.expect("a directory that was opened can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let verdict = match name.split('-').next() {
                Some("right") => Verdict::Right,
                Some("wrong") => Verdict::Wrong,
                Some("odd") => Verdict::Odd,
                _ => panic!("{}: it is neither right, wrong nor odd", path.display()),
            };
            Sample { name, verdict, bytes: read(&path) }
        })
        .collect();
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    for verdict in [Verdict::Right, Verdict::Wrong] {
        let any = samples.iter().any(|sample| sample.verdict == verdict);
        assert!(any, "{} has no {verdict:?} sample", directory.display());
    }
    samples
}

/// Tries a decoder on every sample in `directory`; `reads` says whether it takes the bytes for good.
///
/// # Panics
/// When it does not do what a sample's verdict says.
pub fn check(directory: impl AsRef<Path>, reads: impl Fn(&[u8]) -> bool) {
    for Sample { name, verdict, bytes } in samples(directory) {
        let read = reads(&bytes);
        match verdict {
            Verdict::Right => assert!(read, "{name} is refused"),
            Verdict::Wrong => assert!(!read, "{name} is taken for good"),
            Verdict::Odd => {}
        }
    }
}
