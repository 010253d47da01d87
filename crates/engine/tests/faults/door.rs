//! Reading as a door does it, with every byte checked.

use std::os::fd::AsFd;
use std::sync::Arc;

use penstock_engine::{Engine, OpenOptions, ReadHint};
use penstock_types::{ByteRange, Result};

use crate::world::{Corpus, path};

/// Opens a file and reads ranges of it: only what is ready, again until all of it came.
pub async fn read_as_a_door(
    corpus: &Corpus,
    engine: &Arc<Engine>,
    name: &str,
    ranges: &[ByteRange],
    hint: ReadHint,
) -> Result<()> {
    let content = &corpus.files[name];
    let file = engine.open(&path(name), OpenOptions::default()).await?;
    assert_eq!(file.size(), content.len() as u64);
    let mut descriptor = file.descriptor();
    for range in ranges {
        let range = range.intersect(ByteRange::new(0, file.size()));
        let mut at = range.start;
        while at < range.end {
            let ready = file.ensure(ByteRange::new(at, range.end), hint).await?;
            descriptor = ready.descriptor.unwrap_or(descriptor);
            let end = ready.range.end.min(range.end);
            assert!(ready.range.start <= at && at < end, "{:?} is ready for {at} of {name}", ready.range);
            let mut out = vec![0; (end - at) as usize];
            let got = rustix::io::pread(descriptor.as_fd(), &mut out[..], at).unwrap();
            assert_eq!(got, out.len(), "what is ready is there");
            assert!(out == content[at as usize..end as usize], "wrong bytes of {name} in {at}..{end}");
            at = end;
        }
    }
    Ok(())
}
