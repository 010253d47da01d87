//! Cutting data into pages and summing them.

use bytes::Bytes;
use penstock_types::PAGE_SIZE;

/// `length` bytes of `data` from `start`, without copying.
pub fn cut(data: &[Bytes], mut start: u64, mut length: u64) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(data.len());
    for part in data {
        let size = part.len() as u64;
        if start >= size {
            start -= size;
            continue;
        }
        let take = (size - start).min(length);
        if take == 0 {
            break;
        }
        parts.push(part.slice(start as usize..(start + take) as usize));
        start = 0;
        length -= take;
    }
    parts
}

/// The CRC32C of each page of `parts`, of which the first byte begins a page.
pub fn sums(parts: &[Bytes]) -> Vec<u32> {
    let length: usize = parts.iter().map(Bytes::len).sum();
    let mut sums = Vec::with_capacity(length.div_ceil(PAGE_SIZE as usize));
    let (mut sum, mut room) = (0, PAGE_SIZE as usize);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(room));
            sum = crc32c::crc32c_append(sum, now);
            room -= now.len();
            rest = later;
            if room == 0 {
                sums.push(std::mem::take(&mut sum));
                room = PAGE_SIZE as usize;
            }
        }
    }
    if room < PAGE_SIZE as usize {
        sums.push(sum);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_and_cuts_do_not_depend_on_how_the_data_came(
            length in 1usize..300_000, seed in any::<u64>(), pieces in prop::collection::vec(any::<prop::sample::Index>(), 0..9),
            start in any::<prop::sample::Index>(),
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let whole: Bytes = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            let mut cuts: Vec<usize> = pieces.iter().map(|piece| piece.index(length)).collect();
            cuts.extend([0, length]);
            cuts.sort_unstable();
            let parts: Vec<Bytes> = cuts.windows(2).map(|pair| whole.slice(pair[0]..pair[1])).collect();
            let expected: Vec<u32> = whole.chunks(PAGE_SIZE as usize).map(crc32c::crc32c).collect();
            prop_assert_eq!(sums(&parts), expected);
            let start = start.index(length);
            let piece = cut(&parts, start as u64, (length - start) as u64 / 2).concat();
            prop_assert_eq!(&piece[..], &whole[start..start + (length - start) / 2]);
        }
    }
}
