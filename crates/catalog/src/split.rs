//! Where to cut a range of keys so that several requests list it at once. Pure. Nobody knows how keys are spread; the
//! cuts follow what the keys seen so far show, and a cut that turns out to have nothing behind it costs one request.

use crate::chunk::shared_length;

/// What is known of a range of keys whose listing has begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    /// The first key listed.
    pub(crate) first: &'a [u8],
    /// The last key listed; cuts come after it.
    pub(crate) position: &'a [u8],
    /// The last key that may belong to the range; `None` for the end of the prefix.
    pub(crate) end: Option<&'a [u8]>,
    /// Length of what all keys of the listing begin with.
    pub(crate) prefix: usize,
    /// The cut that the range began with, behind which there were keys: they vary where it was made.
    pub(crate) after: Option<&'a [u8]>,
    /// Pages listed so far, in hundredths.
    pub(crate) listed_percent: usize,
}

/// Up to `wanted` keys after `position` and before `end`, ascending: likely to cut what is left into parts worth a
/// request. `/` is never put into a cut, so that one is never inside a common prefix.
pub(crate) fn cuts(span: Span<'_>, wanted: usize) -> Vec<Vec<u8>> {
    let valid = span.position.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let levels: Vec<(usize, char)> = valid.char_indices().filter(|&(at, _)| at >= span.prefix).collect();
    // Where the keys listed differ; a step there is a known part of a page, further right only crumbs.
    let seen = varies_from(span.first, span.position);
    // Further left it is known of some place that keys vary, and a step there is more than has been listed.
    let varies = span.after.map_or(seen, |after| varies_from(after, span.first).min(after.len() - 1)).min(seen);
    let mut cuts: Vec<Vec<u8>> = Vec::new();
    let fixed = |digit: bool| {
        let left = levels.iter().filter(move |&&(at, _)| at < varies);
        left.filter(move |(_, character)| character.is_ascii_digit() == digit)
    };
    // Left of that each digit asks how far a counter goes: one cut a place, no more is known.
    for &(at, character) in fixed(true) {
        add(&mut cuts, span, at, &steps(character)[..1], wanted);
    }
    let counts = !cuts.is_empty();
    for &(at, character) in levels.iter().filter(|&&(at, _)| (varies..seen).contains(&at)) {
        // Behind a 9 a decimal counter has nothing, but a hexadecimal one six parts in sixteen: worth one cut.
        if character != '9' || (at == varies && !counts) {
            add(&mut cuts, span, at, &steps(character), wanted);
        }
    }
    if let Some(&(at, character)) = levels.iter().find(|&&(at, _)| at == seen) {
        add(&mut cuts, span, at, &strides(span, at, character), wanted);
    }
    // One cut behind the last letter that is the same in all keys finds whatever is named otherwise.
    if let Some(&(at, character)) = fixed(false).next_back() {
        let steps = steps(character);
        add(&mut cuts, span, at, &steps[..steps.len().min(1)], wanted);
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Characters in the place where the listed keys differ, as far apart as a page reaches at the pace so far.
fn strides(span: Span<'_>, at: usize, character: char) -> Vec<char> {
    let first = span.first.get(at).copied().map_or(character, char::from);
    let (Some(from), Some(to)) = (first.to_digit(36), character.to_digit(36)) else { return Vec::new() };
    let passed = (to.saturating_sub(from) + 1) as usize;
    let stride = (passed * 100).div_ceil(span.listed_percent.max(1)).max(1);
    let end = if character.is_ascii_digit() {
        '9'
    } else if character.is_ascii_lowercase() {
        'z'
    } else {
        'Z'
    };
    (character..=end).step_by(stride).skip(1).collect()
}

/// Evenly chosen elements, `wanted` at most, of known keys that are good places to cut at, ascending.
pub(crate) fn spread<T: Clone>(known: &[T], wanted: usize) -> Vec<T> {
    let wanted = wanted.min(known.len());
    (0..wanted).map(|part| known[part * known.len() / wanted].clone()).collect()
}

/// Where in a key the left-most character is that differs between the first and the last key seen.
fn varies_from(first: &[u8], last: &[u8]) -> usize {
    let mut at = shared_length(first, last);
    // The beginning of the character, where bytes differ inside one.
    while at > 0 && last.get(at).is_some_and(|byte| byte & 0xc0 == 0x80) {
        at -= 1;
    }
    at
}

fn add(cuts: &mut Vec<Vec<u8>>, span: Span<'_>, at: usize, steps: &[char], wanted: usize) {
    let room = wanted.saturating_sub(cuts.len());
    let fits = |cut: &Vec<u8>| span.end.is_none_or(|end| cut.as_slice() < end);
    let found: Vec<Vec<u8>> = steps
        .iter()
        .map(|step| {
            let mut cut = span.position[..at].to_vec();
            cut.extend_from_slice(step.encode_utf8(&mut [0; 4]).as_bytes());
            cut
        })
        .filter(fits)
        .collect();
    cuts.extend(spread(&found, room));
}

/// Characters that may follow in this place of a key: the other digits after a digit; for anything else the next
/// ones at growing distance, for one cannot know how far its alphabet goes.
fn steps(character: char) -> Vec<char> {
    let code = character as u32;
    let (distances, end): (&[u32], u32) = match character {
        '0'..='8' => (&[1, 2, 3, 4, 5, 6, 7, 8, 9], '9' as u32),
        'a'..='y' => (&[1, 2, 4, 8, 16], 'z' as u32),
        'A'..='Y' => (&[1, 2, 4, 8, 16], 'Z' as u32),
        '.' => (&[2], '0' as u32),
        '\0'..='\x7e' => (&[1], 0x7f),
        _ => (&[1, 16, 256, 4096], 0x0010_ffff),
    };
    distances.iter().map(|distance| code + distance).filter(|&next| next <= end).filter_map(char::from_u32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(cuts: Vec<Vec<u8>>) -> Vec<String> {
        cuts.into_iter().map(|cut| String::from_utf8(cut).unwrap()).collect()
    }

    #[test]
    fn numbered_names_are_cut_at_their_digits_first() {
        let span = Span {
            first: b"d/img_0000000.jpg",
            position: b"d/img_0000999.jpg",
            end: None,
            prefix: 2,
            after: None,
            listed_percent: 100,
        };
        let found = text(cuts(span, 16));
        assert_eq!(found, ["d/img_0001", "d/img_001", "d/img_01", "d/img_1", "d/img`"]);
        let proven = Span {
            first: b"d/img_0100000.jpg",
            position: b"d/img_0100999.jpg",
            end: Some(b"d/img_1"),
            after: Some(b"d/img_01"),
            ..span
        };
        let found = text(cuts(proven, 8));
        for expected in ["d/img_02", "d/img_03", "d/img_04", "d/img_05", "d/img_06", "d/img_07", "d/img_08", "d/img_09"]
        {
            assert!(found.contains(&expected.into()), "{expected} is not in {found:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_ascend_inside_the_range_and_are_as_many_as_wanted_at_most(
            position in "p[a-z0-9_./\u{e9}\u{5bb6}~]{0,12}",
            end in proptest::option::of("p[a-z0-9_./\u{e9}\u{5bb6}~]{0,12}"),
            first in "p[a-z0-9_./\u{e9}\u{5bb6}~]{0,12}",
            listed_percent in 0usize..300,
            wanted in 0usize..20,
        ) {
            let end = end.filter(|end| *end > position);
            let first = if first > position { &position } else { &first };
            let span = Span {
                first: first.as_bytes(),
                position: position.as_bytes(),
                end: end.as_deref().map(str::as_bytes),
                prefix: 1,
                after: None,
                listed_percent,
            };
            let found = cuts(span, wanted);
            prop_assert!(found.len() <= wanted);
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
            for cut in found {
                prop_assert!(cut.as_slice() > position.as_bytes() && std::str::from_utf8(&cut).is_ok());
                prop_assert!(end.as_ref().is_none_or(|end| cut.as_slice() < end.as_bytes()));
                prop_assert!(cut[shared_length(&cut, position.as_bytes())..].iter().all(|&byte| byte != b'/'));
            }
        }
    }
}
