//! A build that leaves a safeguard out is noticed, and by which test.

use penstock_testkit::catches;

const POWER: &str =
    "power::what_was_acknowledged_survives_a_crash_at_every_step_of_every_sequence_of_up_to_two_operations";

#[test]
fn a_journal_that_is_not_synced_is_noticed() {
    catches(POWER, "journal-sync");
}

#[test]
fn an_acknowledgement_before_the_journal_is_durable_is_noticed() {
    catches(POWER, "acknowledgement");
}

#[test]
fn checksums_of_the_journal_that_are_not_compared_are_noticed() {
    catches("damage::a_flipped_byte_is_noticed_and_named_or_was_no_part_of_the_journal", "record-sum");
}
