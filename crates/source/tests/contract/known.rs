//! What each implementation is known to get wrong. A line here is a promise that the case fails.

/// Row, case, why.
pub(crate) const TABLE: &[(&str, &str, &str)] = &[
    ("memory", "an_upload_can_be_gone_on_with_by_another_process", "memory ends with its process, and says so"),
    ("file", "a_component_of_more_than_255_bytes_is_kept", "refused: the file system's limit"),
    ("file", "empty_components_are_kept", "refused: no path says them"),
    ("file", "dot_components_are_kept", "refused: they mean something else in a path"),
    ("file", "a_trailing_slash_is_kept", "a directory, which has no content"),
    ("file", "a_key_may_stand_beside_its_own_prefix", "refused: a name is a file or a directory"),
    ("moto", "a_copy_conflicts_when_its_origin_changed", "x-amz-copy-source-if-match is ignored"),
    ("moto", "a_copy_conflicts_where_something_is", "CopyObject ignores If-None-Match"),
    ("moto", "a_copy_conflicts_with_another_version_at_its_target", "CopyObject ignores If-Match"),
    ("moto", "a_copied_part_conflicts_when_its_origin_changed", "UploadPartCopy ignores the condition"),
    ("moto", "completion_conflicts_with_another_version", "CompleteMultipartUpload ignores If-Match"),
    ("moto", "a_part_stored_again_replaces_the_first", "ListParts answers with <ListPartsResponse>"),
    ("moto", "the_parts_of_an_upload_are_listed_by_number", "ListParts answers with <ListPartsResponse>"),
    ("moto", "an_upload_can_be_gone_on_with_by_another_process", "ListParts answers with <ListPartsResponse>"),
    ("moto", "an_aborted_upload_is_gone_and_aborting_it_again_succeeds", "a part of an aborted upload is taken"),
    ("moto", "keys_with_control_characters_are_kept", "a line feed in a key matches no route"),
    ("versitygw", "delete_of_a_version_conflicts_where_nothing_is", "DELETE with If-Match of a missing key succeeds"),
    ("versitygw", "a_copy_conflicts_where_something_is", "CopyObject ignores If-None-Match"),
    ("versitygw", "a_copy_conflicts_with_another_version_at_its_target", "CopyObject ignores If-Match"),
    ("versitygw", "keys_with_control_characters_are_kept", "listings ignore encoding-type and replace the character"),
    ("versitygw", "a_component_of_more_than_255_bytes_is_kept", "keys are paths of its file system"),
    ("versitygw", "empty_components_are_kept", "keys are paths of its file system: c//d becomes c/d"),
    ("versitygw", "dot_components_are_kept", "keys are paths of its file system: e/../f becomes f"),
    ("versitygw", "a_trailing_slash_is_kept", "keys are paths of its file system"),
    ("versitygw", "a_key_may_stand_beside_its_own_prefix", "keys are paths of its file system"),
];

/// Row, case, why: what a server gets wrong only when two requests meet. The outcome is not judged.
pub(crate) const RACES: &[(&str, &str, &str)] = &[
    ("versitygw", "of_many_replacements_at_once_exactly_one_succeeds", "it looks and then writes, without a lock"),
    ("versitygw", "of_many_creations_at_once_exactly_one_succeeds", "it looks and then writes, without a lock"),
    ("moto", "of_many_replacements_at_once_exactly_one_succeeds", "it looks and then writes, without a lock"),
    ("moto", "of_many_creations_at_once_exactly_one_succeeds", "it looks and then writes, without a lock"),
];

pub(crate) fn races(row: &str, case: &str) -> bool {
    RACES.iter().any(|(of, name, _)| *of == row && *name == case)
}

pub(crate) fn reason(row: &str, case: &str) -> Option<&'static str> {
    TABLE.iter().find(|(of, name, _)| *of == row && *name == case).map(|(_, _, reason)| *reason)
}
