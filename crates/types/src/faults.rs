//! Faults on purpose: a node that says what it is in the middle of, that kills itself there, or that does without a step
//! which keeps what was acknowledged from being lost. Tests show by it that they would notice.
//!
//! All of it is behind the feature `faults`, which what is released has not. There nothing of it is left.

/// What a node can be in the middle of while it writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A content is being written: there is a draft.
    Write,
    /// A kernel writes a content by itself.
    Lent,
    /// A draft is synced, with its name.
    Sync,
    /// Records go into the journal and are synced.
    Journal,
    /// A file or directory gets another name.
    Rename,
    /// A source is given a part.
    Part,
    /// A source makes an object: of parts, or of a put.
    Completion,
    /// A source copies an object or a part of one.
    Copy,
    /// A source removes an object.
    Removal,
    /// What a source has now becomes what is cached of it.
    Adoption,
    /// The journal is told what a source has now.
    Settling,
}

/// A safeguard that can be left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Safeguard {
    /// The journal is synced.
    JournalSync,
    /// What is acknowledged is durable before.
    Acknowledgement,
    /// Nothing is replaced in a source but the version that was seen.
    Condition,
    /// A close waits until the file is durable.
    Flush,
    /// Records of the journal are what their checksums say.
    RecordSum,
    /// Parts that were sent early are compared with what the file holds.
    PartSum,
}

#[cfg(not(feature = "faults"))]
mod inner {
    use super::{Safeguard, Step};

    /// Lasts as long as a step.
    #[derive(Debug)]
    pub struct UnderWay;

    /// Says that a step is under way until what is returned is dropped.
    #[must_use]
    pub const fn under_way(_: Step) -> UnderWay {
        UnderWay
    }

    /// Whether a safeguard is left out.
    #[must_use]
    pub const fn is_left_out(_: Safeguard) -> bool {
        false
    }
}

#[cfg(feature = "faults")]
mod inner {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::{Safeguard, Step};

    /// Words with a blank between: `without=SAFEGUARD`; `steps=FILE`, where stands how often each step was begun and
    /// ended; `orders=FILE`, which may hold, now or later, `STEP N begin` or `STEP N end`: the process kills itself there.
    const VARIABLE: &str = "FAULTS_ON_PURPOSE";
    /// Bytes of a line of such files.
    const LINE_BYTES: usize = 64;

    const STEPS: [(Step, &str); 11] = [
        (Step::Write, "write"),
        (Step::Lent, "lent"),
        (Step::Sync, "sync"),
        (Step::Journal, "journal"),
        (Step::Rename, "rename"),
        (Step::Part, "part"),
        (Step::Completion, "completion"),
        (Step::Copy, "copy"),
        (Step::Removal, "removal"),
        (Step::Adoption, "adoption"),
        (Step::Settling, "settling"),
    ];
    const SAFEGUARDS: [(Safeguard, &str); 6] = [
        (Safeguard::JournalSync, "journal-sync"),
        (Safeguard::Acknowledgement, "acknowledgement"),
        (Safeguard::Condition, "condition"),
        (Safeguard::Flush, "flush"),
        (Safeguard::RecordSum, "record-sum"),
        (Safeguard::PartSum, "part-sum"),
    ];

    /// What the process was started with.
    #[derive(Default)]
    struct Plan {
        steps: Option<File>,
        orders: Option<File>,
        left_out: Vec<Safeguard>,
        /// How often each step was begun and ended.
        counts: Mutex<[(u64, u64); STEPS.len()]>,
    }

    /// Lasts as long as a step.
    #[derive(Debug)]
    pub struct UnderWay(Step);

    /// Says that a step is under way until what is returned is dropped.
    #[must_use]
    pub fn under_way(step: Step) -> UnderWay {
        plan().note(step, false);
        UnderWay(step)
    }

    impl Drop for UnderWay {
        fn drop(&mut self) {
            plan().note(self.0, true);
        }
    }

    /// Whether a safeguard is left out.
    #[must_use]
    pub fn is_left_out(safeguard: Safeguard) -> bool {
        plan().left_out.contains(&safeguard)
    }

    fn plan() -> &'static Plan {
        static PLAN: OnceLock<Plan> = OnceLock::new();
        PLAN.get_or_init(|| Plan::read(&std::env::var(VARIABLE).unwrap_or_default()))
    }

    impl Plan {
        fn read(text: &str) -> Self {
            let mut plan = Self::default();
            for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
                match name {
                    "steps" => plan.steps = Some(File::create(value).expect("the file of steps can be made")),
                    "orders" => plan.orders = Some(File::open(value).expect("the file of orders is there")),
                    "without" => plan.left_out.push(named(&SAFEGUARDS, value)),
                    _ => panic!("{VARIABLE} knows no {name}"),
                }
            }
            for (step, _) in STEPS {
                plan.write(step, (0, 0));
            }
            plan
        }

        /// Counts a step, and ends the process where it was told to. A step at whose end that is has not ended.
        fn note(&self, step: Step, is_end: bool) {
            if self.steps.is_none() && self.orders.is_none() {
                return;
            }
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let (begun, ended) = &mut counts[step as usize];
            let time = if is_end { *ended + 1 } else { *begun + 1 };
            let is_the_end = self.is_ordered(step, time, is_end);
            match is_end {
                true if is_the_end => {}
                true => *ended = time,
                false => *begun = time,
            }
            self.write(step, (*begun, *ended));
            if is_the_end {
                // With the lock held: nobody says afterwards that something went on.
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
        }

        fn is_ordered(&self, step: Step, time: u64, is_end: bool) -> bool {
            let mut line = [0; LINE_BYTES];
            let read = self.orders.as_ref().map_or(0, |file| file.read_at(&mut line, 0).unwrap_or(0));
            let place = if is_end { "end" } else { "begin" };
            let order = format!("{} {time} {place}", STEPS[step as usize].1);
            String::from_utf8_lossy(&line[..read]).trim_end() == order
        }

        fn write(&self, step: Step, (begun, ended): (u64, u64)) {
            let Some(file) = &self.steps else { return };
            let (_, name) = STEPS[step as usize];
            let line = format!("{:<width$}\n", format!("{name} {begun} {ended}"), width = LINE_BYTES - 1);
            file.write_all_at(line.as_bytes(), (step as usize * LINE_BYTES) as u64)
                .expect("the file of steps can be written");
        }
    }

    fn named<T: Copy>(all: &[(T, &str)], name: &str) -> T {
        let found = all.iter().find(|(_, known)| *known == name);
        found.unwrap_or_else(|| panic!("{VARIABLE} knows no {name}")).0
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn steps_stand_at_their_places() {
            assert!(STEPS.iter().enumerate().all(|(place, (step, _))| *step as usize == place));
        }
    }
}

pub use inner::{UnderWay, is_left_out, under_way};
