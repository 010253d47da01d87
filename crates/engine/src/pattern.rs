//! What to fetch for a read, from what one handle has read so far. Pure.

use penstock_types::ByteRange;
use serde::{Deserialize, Serialize};

/// Smallest fetch: two pages. Smaller ones cost a round trip for nothing.
pub const RANDOM_UNIT: u64 = 128 * 1024;
/// Largest single request: long enough that its first-byte delay (30 ms) is a small part of its transfer
/// (140 ms at 60 MB/s), short enough that the last ones of a file end together.
pub const PIECE_MAX: u64 = 8 * 1024 * 1024;
/// Smallest request of a sequential run.
const PIECE_MIN: u64 = 1024 * 1024;
/// A request may be as large as this part of what the run has covered before it.
const RAMP: u64 = 4;
/// What is left of an object is spread over at least so many requests.
const TAIL_REQUESTS: u64 = 16;
/// Most bytes fetched ahead of a sequential reader.
pub const WINDOW_MAX: u64 = 128 * 1024 * 1024;
/// What is fetched ahead is at most so many times what has been read in order: a link of 400 MB/s with 30 ms to the
/// first byte is busy from the third round trip on, whatever size the reads are of.
const GROWTH_MAX: u64 = 8;
/// A run of one of these looks like a part of something, so that no more than itself is fetched ahead; each further one
/// makes it likelier that it goes on, up to `GROWTH_MAX`.
const GROWTH_UNIT: u64 = RANDOM_UNIT;
/// A first read at the start of the file of at least this size is taken for the start of a sequential run.
const LARGE_FIRST_READ: u64 = 512 * 1024;
/// A run may come back by so much: a kernel that reads 4 MiB ahead has twice as much asked for at once, in no strict order.
const STEP_BACK_MAX: u64 = 8 * 1024 * 1024;
/// Forward gaps up to this size still count as sequential (readers that skip headers or padding).
const GAP_MAX: u64 = 1024 * 1024;

/// What the reader says of its plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum ReadHint {
    /// Find out from the reads.
    #[default]
    Auto,
    /// The whole object will be read.
    Whole,
    /// Only what is asked for.
    Random,
}

/// What to have under way for a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Bytes to fetch, the read included; clipped to the object.
    pub want: ByteRange,
    /// Where the reader's run began.
    pub from: u64,
    /// Largest request.
    pub piece_max: u64,
    /// Size of the object.
    pub size: u64,
}

impl Plan {
    /// Where a request that begins at `offset` ends. Requests grow from the start of the run and shrink towards the
    /// end of the object, so that they end one after another and never all at once: the link is busy between them
    /// and until the last.
    pub fn piece_end(&self, offset: u64) -> u64 {
        let left = self.size - offset;
        if left < PIECE_MIN + PIECE_MIN / 2 {
            return self.size;
        }
        let grown = offset.saturating_sub(self.from) / RAMP;
        let len = grown.min(left / TAIL_REQUESTS) / PIECE_MIN * PIECE_MIN;
        offset + len.clamp(PIECE_MIN, self.piece_max)
    }
}

/// What one handle has read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pattern {
    /// Where the run began; where its next read is expected; up to where it may read without asking.
    from: u64,
    next: u64,
    handed_out: u64,
    reads: u64,
    /// Bytes of the run that were read, gaps not counted.
    run: u64,
}

impl Pattern {
    /// Notes a read and says what to have under way for it. `size` is the object's.
    pub fn observe(&mut self, read: ByteRange, hint: ReadHint, size: u64) -> Plan {
        let sequential = self.is_sequential(read);
        // What was handed out up to where the reader is now, it has read without asking.
        let unasked = self.handed_out.min(read.start).saturating_sub(self.next);
        self.run = if sequential { self.run + unasked } else { 0 } + read.len();
        if !sequential {
            self.from = read.start;
        }
        let first = self.reads == 0;
        self.next = if sequential { self.next.max(read.end) } else { read.end };
        self.reads += 1;
        match hint {
            ReadHint::Whole => Plan { want: ByteRange::new(0, size), from: 0, piece_max: PIECE_MAX, size },
            ReadHint::Random => random(read, size),
            ReadHint::Auto if !sequential => random(read, size),
            ReadHint::Auto if first && read.len() < LARGE_FIRST_READ => {
                // A header, perhaps: the second read will tell.
                random(read, size)
            }
            ReadHint::Auto => {
                let end = read.end.saturating_add(window(self.run)).min(size);
                let want = ByteRange::new(read.start, end.max(read.end)).rounded_out(RANDOM_UNIT, size);
                Plan { want, from: self.from, piece_max: PIECE_MAX, size }
            }
        }
    }

    /// Notes that the reader may read up to `end` without asking: a run goes on there.
    pub fn handed_out(&mut self, end: u64) {
        self.handed_out = end;
    }

    fn is_sequential(&self, read: ByteRange) -> bool {
        if self.reads == 0 {
            return read.start == 0;
        }
        let latest = self.next.max(self.handed_out).saturating_add(GAP_MAX);
        // Of a long read that was answered in part, the next one begins where that part ended.
        let earliest = self.next.saturating_sub(STEP_BACK_MAX).min(self.handed_out).max(self.from);
        (earliest..=latest).contains(&read.start)
    }
}

/// What to fetch ahead of a reader who has read so many bytes in order.
fn window(run: u64) -> u64 {
    let run = run.min(WINDOW_MAX);
    (run * (run / GROWTH_UNIT).clamp(1, GROWTH_MAX)).min(WINDOW_MAX)
}

fn random(read: ByteRange, size: u64) -> Plan {
    Plan { want: read.rounded_out(RANDOM_UNIT, size), from: read.start, piece_max: PIECE_MAX, size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_random_read_fetches_its_pages_rounded_to_128_kib() {
        let mut pattern = Pattern::default();
        let plan = pattern.observe(ByteRange::new(500 * MIB + 3, 500 * MIB + 4099), ReadHint::Auto, 1024 * MIB);
        assert_eq!(plan.want, ByteRange::new(500 * MIB, 500 * MIB + RANDOM_UNIT));
    }

    #[test]
    fn a_sequential_reader_gets_a_window_that_grows_to_its_bound() {
        let mut pattern = Pattern::default();
        let mut offset = 0;
        let mut ahead = Vec::new();
        for _ in 0..8 {
            let read = ByteRange::new(offset, offset + MIB);
            let plan = pattern.observe(read, ReadHint::Auto, 4096 * MIB);
            ahead.push(plan.want.end - read.end);
            offset += MIB;
        }
        assert_eq!(ahead[..3], [8 * MIB, 16 * MIB, 24 * MIB]);
        pattern.handed_out(24 * MIB);
        let plan = pattern.observe(ByteRange::new(24 * MIB, 25 * MIB), ReadHint::Auto, 4096 * MIB);
        assert_eq!(plan.want.end - 25 * MIB, WINDOW_MAX, "{ahead:?}");
    }

    #[test]
    fn two_small_reads_in_order_fetch_no_more_ahead_than_they_have_read() {
        let mut pattern = Pattern::default();
        pattern.observe(ByteRange::new(7 * MIB, 7 * MIB + 4096), ReadHint::Auto, 64 * MIB);
        pattern.handed_out(7 * MIB + RANDOM_UNIT);
        let read = ByteRange::new(7 * MIB + 4096, 7 * MIB + 100_000);
        let plan = pattern.observe(read, ReadHint::Auto, 64 * MIB);
        assert!(plan.want.end <= 7 * MIB + 2 * RANDOM_UNIT, "{plan:?}");
    }

    #[test]
    fn a_reader_of_small_blocks_has_many_requests_ahead_within_a_few_round_trips() {
        let (mut pattern, mut at) = (Pattern::default(), 0);
        let mut round_trips = 0;
        while at < WINDOW_MAX {
            // It goes on without asking to the end of what was brought.
            let plan = pattern.observe(ByteRange::new(at, at + 64 * 1024), ReadHint::Auto, 4096 * MIB);
            at = plan.want.end;
            pattern.handed_out(at);
            round_trips += 1;
        }
        assert!(round_trips <= 7, "{round_trips}");
    }

    #[test]
    fn the_rest_of_a_read_that_was_answered_in_part_goes_on_with_its_run() {
        let mut pattern = Pattern::default();
        pattern.observe(ByteRange::new(0, 512 * MIB), ReadHint::Auto, 512 * MIB);
        pattern.handed_out(8 * MIB);
        let plan = pattern.observe(ByteRange::new(8 * MIB, 512 * MIB), ReadHint::Auto, 512 * MIB);
        assert_eq!((plan.from, plan.want.end), (0, 512 * MIB));
    }

    #[test]
    fn a_reader_that_comes_back_where_it_may_not_read_on_is_still_sequential() {
        let mut pattern = Pattern::default();
        pattern.observe(ByteRange::new(0, MIB), ReadHint::Auto, 512 * MIB);
        pattern.handed_out(9 * MIB);
        let plan = pattern.observe(ByteRange::new(9 * MIB, 10 * MIB), ReadHint::Auto, 512 * MIB);
        assert!(plan.want.end > 10 * MIB + 64 * MIB && plan.from == 0, "{plan:?}");
        pattern.handed_out(18 * MIB);
        let plan = pattern.observe(ByteRange::new(10 * MIB, 11 * MIB), ReadHint::Auto, 512 * MIB);
        assert!(plan.want.end > 11 * MIB + 64 * MIB && plan.from == 0, "{plan:?}");
    }

    #[test]
    fn pieces_of_a_run_that_come_out_of_order_are_one_run_and_reading_backwards_is_none() {
        let mut pattern = Pattern::default();
        for (position, piece) in [0u64, 1, 3, 2, 5, 7, 4, 6].into_iter().enumerate() {
            let start = piece * RANDOM_UNIT;
            let plan = pattern.observe(ByteRange::new(start, start + RANDOM_UNIT), ReadHint::Auto, 512 * MIB);
            let read = (position as u64 + 1) * RANDOM_UNIT;
            assert!(piece == 0 || plan.want.end >= start + 2 * read, "{piece}: {plan:?}");
        }
        for piece in (100..110u64).rev() {
            let start = piece * RANDOM_UNIT;
            let plan = pattern.observe(ByteRange::new(start, start + RANDOM_UNIT), ReadHint::Auto, 512 * MIB);
            assert_eq!(plan.want.len(), RANDOM_UNIT, "{piece}: {plan:?}");
        }
    }

    #[test]
    fn requests_grow_from_the_start_of_a_run_and_shrink_towards_the_end_of_the_object() {
        let plan = Pattern::default().observe(ByteRange::new(0, MIB), ReadHint::Whole, 512 * MIB);
        let mut lengths = Vec::new();
        let mut at = 0;
        while at < plan.size {
            let end = plan.piece_end(at);
            lengths.push((end - at) / MIB);
            at = end;
        }
        let peak = lengths.iter().position(|length| *length == PIECE_MAX / MIB).unwrap();
        assert_eq!((lengths[0], *lengths.last().unwrap()), (1, 1));
        assert!(lengths[..peak].is_sorted() && lengths[peak..].is_sorted_by(|a, b| a >= b), "{lengths:?}");
    }

    #[test]
    fn a_small_first_read_is_a_header_until_the_second_follows() {
        let mut pattern = Pattern::default();
        assert_eq!(pattern.observe(ByteRange::new(0, 4096), ReadHint::Auto, 64 * MIB).want.len(), RANDOM_UNIT);
        assert!(pattern.observe(ByteRange::new(65_536, 2 * 65_536), ReadHint::Auto, 64 * MIB).want.len() > RANDOM_UNIT);
    }

    proptest! {
        #[test]
        fn a_plan_always_covers_the_read_and_stays_inside_the_object(
            reads in proptest::collection::vec((0u64..1 << 30, 1u64..8 * MIB), 1..20),
            size in 1u64..1 << 31,
        ) {
            let mut pattern = Pattern::default();
            for (start, len) in reads {
                let start = start % size;
                let read = ByteRange::new(start, (start + len).min(size));
                let plan = pattern.observe(read, ReadHint::Auto, size);
                prop_assert!(plan.want.contains(read) && plan.want.end <= size);
                let first = plan.piece_end(plan.want.start) - plan.want.start;
                prop_assert!(first >= PIECE_MIN.min(size - plan.want.start) && first <= PIECE_MAX);
            }
        }
    }
}
