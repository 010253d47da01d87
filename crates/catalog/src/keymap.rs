//! Keys as paths: a pure, reversible mapping (`docs/adr/0001-keys-as-paths.md`). Both sides are relative: keys to an
//! attachment's prefix, paths to where it is attached.

/// What a component begins with when it does not stand for itself.
const RESERVED: &str = "@%";
/// Ends a reserved component that names an object whose plain name a directory has.
const BESIDE_MARK: &str = "%";
/// Ends a reserved component that goes on in the next one.
const MORE_MARK: &str = "%+";
/// Longest name that file systems take, bytes.
pub(crate) const NAME_LIMIT: usize = 255;
/// Bytes of a long component in each piece of it: three characters a byte, prefix and mark still fit a name.
pub(crate) const PIECE: usize = 80;

/// How an object's own name is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Under its own name.
    Plain,
    /// Under a reserved name, because keys below `key/` make its own name a directory.
    Beside,
}

/// What a path can stand for; whether it exists is for the source to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The attached prefix itself.
    Root,
    /// The object with this key, or the directory of the keys below `key/`.
    Name(Vec<u8>),
    /// The object with this key, which lies beside a directory of that name.
    Beside(Vec<u8>),
    /// A step into a component that is too long for one name: the long components that begin with these bytes.
    Piece(Vec<u8>),
}

/// The path of an object.
pub(crate) fn encode(key: &[u8], shape: Shape) -> String {
    let mut path = String::with_capacity(key.len() + 8);
    let mut components = key.split(|&byte| byte == b'/').peekable();
    while let Some(component) = components.next() {
        let last = components.peek().is_none();
        push_component(component, if last { shape } else { Shape::Plain }, &mut path);
        if !last {
            path.push('/');
        }
    }
    path
}

/// What a path stands for; `None` for a path that no key has.
pub(crate) fn decode(path: &str) -> Option<Place> {
    if path.is_empty() {
        return Some(Place::Root);
    }
    let mut key = Vec::with_capacity(path.len());
    let mut kind = Kind::Whole;
    for (position, name) in path.split('/').enumerate() {
        if position > 0 && kind == Kind::Whole {
            key.push(b'/');
        }
        kind = match (kind, name.strip_prefix(RESERVED)) {
            (Kind::Beside, _) | (Kind::More, None) => return None,
            (Kind::Whole, None) => {
                key.extend_from_slice(name.as_bytes());
                Kind::Whole
            }
            (_, Some(body)) => push_unescaped(body, &mut key)?,
        };
    }
    let place = match kind {
        Kind::Whole => Place::Name(key),
        Kind::Beside => Place::Beside(key),
        Kind::More => Place::Piece(key),
    };
    // One spelling per place: whatever would be written otherwise is no path.
    place.has_path(path).then_some(place)
}

/// The bytes of the names, from the first, that a component has as a path: one name, or a chain of pieces.
pub(crate) fn push_component(component: &[u8], shape: Shape, path: &mut String) {
    if shape == Shape::Plain
        && let Some(name) = plain(component)
    {
        path.push_str(name);
        return;
    }
    let start = path.len();
    path.push_str(RESERVED);
    push_escaped(component, path);
    if path.len() - start + BESIDE_MARK.len() > NAME_LIMIT {
        path.truncate(start);
        let mut pieces = component.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            path.push_str(RESERVED);
            push_escaped(piece, path);
            if pieces.peek().is_some() {
                path.push_str(MORE_MARK);
                path.push('/');
            }
        }
    }
    if shape == Shape::Beside {
        path.push_str(BESIDE_MARK);
    }
}

/// Whether a component takes more than one name, so that its path goes through pieces.
pub(crate) fn is_long(component: &[u8], shape: Shape) -> bool {
    if component.len() * 3 + RESERVED.len() + BESIDE_MARK.len() <= NAME_LIMIT {
        return false;
    }
    if shape == Shape::Plain && plain(component).is_some() {
        return false;
    }
    let mut escaped = String::new();
    push_escaped(component, &mut escaped);
    escaped.len() + RESERVED.len() + BESIDE_MARK.len() > NAME_LIMIT
}

/// The name of one piece of a long component that goes on.
pub(crate) fn piece_name(piece: &[u8]) -> String {
    let mut name = String::from(RESERVED);
    push_escaped(piece, &mut name);
    name.push_str(MORE_MARK);
    name
}

/// The component as a name, where it can stand for itself.
pub(crate) fn plain(component: &[u8]) -> Option<&str> {
    if component.is_empty() || component.len() > NAME_LIMIT || component == b"." || component == b".." {
        return None;
    }
    if component.starts_with(RESERVED.as_bytes()) {
        return None;
    }
    let name = std::str::from_utf8(component).ok()?;
    let ordinary = if name.is_ascii() {
        !name.bytes().any(|byte| byte.is_ascii_control())
    } else {
        !name.chars().any(char::is_control)
    };
    ordinary.then_some(name)
}

impl Place {
    /// What every key of the directory begins with, where the place can be a directory.
    pub(crate) fn directory_prefix(&self) -> Option<Vec<u8>> {
        match self {
            Place::Root => Some(Vec::new()),
            Place::Name(key) => {
                let mut prefix = Vec::with_capacity(key.len() + 1);
                prefix.extend_from_slice(key);
                prefix.push(b'/');
                Some(prefix)
            }
            Place::Piece(bytes) => Some(bytes.clone()),
            Place::Beside(_) => None,
        }
    }

    fn has_path(&self, path: &str) -> bool {
        match self {
            Place::Root => path.is_empty(),
            Place::Name(key) => encode(key, Shape::Plain) == path,
            Place::Beside(key) => encode(key, Shape::Beside) == path,
            Place::Piece(bytes) => encode_piece(bytes) == path,
        }
    }
}

/// The path of a step into a long component; `bytes` ends with whole pieces of it.
fn encode_piece(bytes: &[u8]) -> String {
    let start = bytes.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let mut path = if start == 0 { String::new() } else { encode(&bytes[..start - 1], Shape::Plain) + "/" };
    for (position, piece) in bytes[start..].chunks(PIECE).enumerate() {
        if position > 0 {
            path.push('/');
        }
        path.push_str(&piece_name(piece));
    }
    path
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Beside,
    More,
}

/// Appends what the body of a reserved name stands for.
fn push_unescaped(body: &str, key: &mut Vec<u8>) -> Option<Kind> {
    let (text, kind) = if let Some(text) = body.strip_suffix(MORE_MARK) {
        (text, Kind::More)
    } else if let Some(text) = body.strip_suffix(BESIDE_MARK) {
        (text, Kind::Beside)
    } else {
        (body, Kind::Whole)
    };
    let bytes = unescaped(text)?;
    key.extend_from_slice(&bytes);
    (kind != Kind::More || bytes.len() == PIECE).then_some(kind)
}

/// The bytes that [`push_escaped`] wrote as `text`; escapes it would not have written are read all the same.
pub(crate) fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut unescaped = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
            unescaped.push(u8::try_from(value).ok()?);
        } else {
            unescaped.push(byte);
        }
    }
    Some(unescaped)
}

/// Appends `%` and every byte that cannot stand in a name as `%NN`, the rest as it is.
pub(crate) fn push_escaped(bytes: &[u8], text: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character == '%' || character.is_control() {
                let mut buffer = [0; 4];
                character.encode_utf8(&mut buffer).bytes().for_each(|byte| push_percent(byte, text));
            } else {
                text.push(character);
            }
        }
        chunk.invalid().iter().for_each(|&byte| push_percent(byte, text));
    }
}

fn push_percent(byte: u8, text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(DIGITS[usize::from(byte >> 4)]));
    text.push(char::from(DIGITS[usize::from(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(key: &[u8], shape: Shape) -> Place {
        if shape == Shape::Plain { Place::Name(key.to_vec()) } else { Place::Beside(key.to_vec()) }
    }

    /// Byte strings up to the 1,024 bytes that stores admit, rich in what paths cannot say.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop_oneof![
            Just(b"/".to_vec()),
            Just(b"@%".to_vec()),
            Just(b"%".to_vec()),
            Just(b"%+".to_vec()),
            Just(b"%41".to_vec()),
            Just(b".".to_vec()),
            Just(b"\0".to_vec()),
            Just(b"\x7f".to_vec()),
            Just("\u{85}".as_bytes().to_vec()),
            Just("\u{5bb6}".as_bytes().to_vec()),
            Just(vec![b'x'; 81]),
            Just(vec![0xff; 90]),
            Just(vec![b'y'; 255]),
            proptest::collection::vec(any::<u8>(), 0..6),
        ];
        prop_oneof![
            proptest::collection::vec(odd, 0..12).prop_map(|parts| parts.concat()),
            proptest::collection::vec(any::<u8>(), 0..1024),
        ]
        .prop_map(|mut key: Vec<u8>| {
            key.truncate(1024);
            key
        })
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![Just(Shape::Plain), Just(Shape::Beside)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn every_key_comes_back_from_its_path(key in keys(), shape in shapes()) {
            let path = encode(&key, shape);
            prop_assert_eq!(decode(&path), Some(place(&key, shape)), "{}", path);
        }

        #[test]
        fn every_path_is_made_of_names_that_a_file_system_takes_and_stays_in_the_tree(key in keys(), shape in shapes()) {
            for name in encode(&key, shape).split('/') {
                prop_assert!(!name.is_empty() && name.len() <= NAME_LIMIT, "{}", name);
                prop_assert!(name != "." && name != ".." && !name.chars().any(char::is_control), "{}", name);
            }
        }

        #[test]
        fn every_step_of_a_path_is_a_directory_that_holds_the_key(key in keys(), shape in shapes()) {
            let path = encode(&key, shape);
            for (slash, _) in path.match_indices('/') {
                let prefix = decode(&path[..slash]).expect("a step is a place").directory_prefix().expect("a directory");
                prop_assert!(key.starts_with(&prefix));
            }
        }

        #[test]
        fn a_text_is_the_one_path_of_what_it_stands_for_or_no_path(text in "(@%|%|%\\+|%[0-9A-Fa-f]{2}|/|\\.|a|\u{85}|\u{5bb6}|x{80}){0,9}") {
            if let Some(place) = decode(&text) {
                let again = match &place {
                    Place::Root => String::new(),
                    Place::Name(key) => encode(key, Shape::Plain),
                    Place::Beside(key) => encode(key, Shape::Beside),
                    Place::Piece(bytes) => encode_piece(bytes),
                };
                prop_assert_eq!(again, text);
            }
        }

        #[test]
        fn two_keys_never_share_a_path(a in keys(), b in keys(), x in shapes(), y in shapes()) {
            prop_assume!(a != b || x != y);
            prop_assert_ne!(encode(&a, x), encode(&b, y));
        }

        #[test]
        fn a_component_is_long_exactly_when_its_path_has_several_names(key in keys(), shape in shapes()) {
            let component: Vec<u8> = key.into_iter().filter(|&byte| byte != b'/').collect();
            prop_assert_eq!(is_long(&component, shape), encode(&component, shape).contains('/'));
        }
    }

    #[test]
    fn ordinary_keys_keep_their_names() {
        for key in ["a", "a/b.txt", "100%/x@%y", "Grüße/家.bin", " spaces ", "-", "...", "@", "%41"] {
            assert_eq!(encode(key.as_bytes(), Shape::Plain), key);
        }
    }

    #[test]
    fn odd_keys_have_the_names_that_the_decision_record_shows() {
        let shown: [(&[u8], &str); 12] = [
            (b"a//b", "a/@%/b"),
            (b"/x", "@%/x"),
            (b"a/", "a/@%"),
            (b"", "@%"),
            (b".", "@%."),
            (b"a/../b", "a/@%../b"),
            (b"line\nbreak", "@%line%0Abreak"),
            (b"nul\0", "@%nul%00"),
            (b"\xff\xfe", "@%%FF%FE"),
            (b"@%x", "@%@%25x"),
            (b"@%", "@%@%25"),
            (b"50%\x01", "@%50%25%01"),
        ];
        for (key, path) in shown {
            assert_eq!(encode(key, Shape::Plain), path);
        }
        assert_eq!(encode(b"d/a", Shape::Beside), "d/@%a%");
        let long = vec![b'n'; 256];
        let piece = "n".repeat(80);
        assert_eq!(encode(&long, Shape::Plain), format!("@%{piece}%+/@%{piece}%+/@%{piece}%+/@%{}", "n".repeat(16)));
    }

    #[test]
    fn a_path_that_no_key_has_is_refused() {
        for path in [
            "/", "a//b", "/a", "a/", ".", "a/../b", "a\nb", "@%a", "@%%61", "@%%0a", "@%%4", "@%a%/b", "@%a%+",
            "@%%2F", "x/@%.",
        ] {
            let refused = decode(path).is_none();
            assert_eq!(refused, path != "x/@%.", "{path:?}");
        }
    }
}
