//! Asks the source what a name is.

use futures_util::future;
use penstock_types::{ErrorKind, ListRequest, ObjectKey, ObjectStat, Posix, Result, Source};

use crate::Item;
use crate::keymap::{self, PIECE, Place, Shape};
use crate::known::Answer;
use crate::shadows::directory_of;

/// Longest key a store takes, bytes; a longer one names nothing.
pub(crate) const KEY_LIMIT: usize = 1024;
/// Keys of one page while pieces of a long component are looked for.
const PIECE_PAGE_KEYS: usize = 100;

/// What a place below `attached` is: a HEAD of the key and a LIST of what would be below it, at the same time. With it
/// comes what was said of the object.
///
/// Cost: two requests, one round trip; one request where only one makes sense.
pub(crate) async fn ask(source: &dyn Source, attached: &ObjectKey, place: &Place) -> Result<(Answer, Posix)> {
    let nothing_said = |answer| (answer, Posix::default());
    let (key, beside) = match place {
        Place::Root => return Ok(nothing_said(Answer::Found(Item::Directory))),
        Place::Piece(bytes) => return ask_for_piece(source, attached, bytes).await.map(nothing_said),
        Place::Name(key) => (attached.join(key), false),
        Place::Beside(key) => (attached.join(key), true),
    };
    if key.as_bytes().len() > KEY_LIMIT || (!source.capabilities().binary_keys && key.as_str().is_none()) {
        return Ok(nothing_said(Answer::Absent));
    }
    let request = ListRequest {
        prefix: ObjectKey::new(directory_of(key.as_bytes())),
        delimited: true,
        limit: 1,
        ..ListRequest::default()
    };
    let (object, below) = future::join(source.stat(&key), source.list(request)).await;
    let object = match object {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let below = below.map(|page| !page.objects.is_empty() || !page.prefixes.is_empty());
    let said = |object: &ObjectStat| Posix::of(&object.metadata);
    let said = object.as_ref().ok().and_then(Option::as_ref).map(said).unwrap_or_default();
    Ok((decide(key, beside, object, below)?, said))
}

/// A directory has the name before an object has; the object is then shown under its reserved name.
fn decide(key: ObjectKey, beside: bool, object: Result<Option<ObjectStat>>, below: Result<bool>) -> Result<Answer> {
    let below = match (below, &object) {
        (Ok(below), _) => below,
        // Credentials may be entitled to read objects and not to list them: then no directory can be seen.
        (Err(error), Ok(Some(_))) if error.kind() == ErrorKind::PermissionDenied => false,
        (Err(error), _) => return Err(error),
    };
    if below && !beside {
        return Ok(Answer::Found(Item::Directory));
    }
    match object? {
        Some(object) if below == beside && !is_marker(&key, object.attributes.size) => {
            Ok(Answer::Found(Item::File { key, attributes: object.attributes }))
        }
        _ => Ok(Answer::Absent),
    }
}

/// An empty object whose key ends in `/` is the directory of that name.
fn is_marker(key: &ObjectKey, size: u64) -> bool {
    size == 0 && key.as_bytes().ends_with(b"/")
}

/// As much of a prefix as can be asked for: a piece may end inside a character.
pub(crate) fn sayable(prefix: &[u8]) -> &[u8] {
    let valid = prefix.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
    &prefix[..valid]
}

/// Whether a component that is too long for one name begins with these bytes.
async fn ask_for_piece(source: &dyn Source, attached: &ObjectKey, bytes: &[u8]) -> Result<Answer> {
    let base = bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let full = attached.join(bytes);
    let prefix = ObjectKey::new(sayable(full.as_bytes()).to_vec());
    let mut request = ListRequest { prefix, delimited: true, limit: PIECE_PAGE_KEYS, ..ListRequest::default() };
    loop {
        let page = source.list(request.clone()).await?;
        let prefixes = page.prefixes.iter().map(ObjectKey::as_bytes);
        let keys = page.objects.iter().map(|object| object.key.as_bytes()).chain(prefixes);
        for key in keys.filter(|key| key.starts_with(full.as_bytes())) {
            let tail = &key[attached.as_bytes().len() + base..];
            let slash = tail.iter().position(|&byte| byte == b'/');
            let component = &tail[..slash.unwrap_or(tail.len())];
            // An object may be long only under its reserved name; whether it has one is for the listing to say.
            if keymap::is_long(component, Shape::Plain) && component.len() > bytes.len() - base {
                debug_assert!((bytes.len() - base).is_multiple_of(PIECE));
                return Ok(Answer::Found(Item::Directory));
            }
        }
        request.continuation = page.continuation;
        if request.continuation.is_none() {
            return Ok(Answer::Absent);
        }
    }
}
