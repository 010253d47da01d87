//! Whether a test notices that a safeguard is left out.

use std::process::Command;

/// Runs another test of the same program, by its full name, in a process that does without a safeguard (see
/// `penstock_types::faults`).
///
/// # Panics
/// When that test passes, or there is none of that name.
pub fn catches(test: &str, safeguard: &str) {
    let program = std::env::current_exe().expect("a test knows its program");
    let run = |faults: &str| {
        let mut command = Command::new(&program);
        command.args(["--exact", test]).env("FAULTS_ON_PURPOSE", faults);
        command.output().expect("a program of tests can be run")
    };
    let ended = run(&format!("without={safeguard}"));
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(said.contains("running 1 test"), "there is no test {test}");
    assert!(!ended.status.success(), "{test} passes without {safeguard}");
    assert!(said.contains(&format!("test {test} ... FAILED")), "{test} did not fail by itself: {said}");
}
