//! A remote whose process is killed while it stores.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use penstock_remote::{Remote, RemoteConfig};

use crate::support::Client;

const DIRECTORY: &str = "PENSTOCK_REMOTE_KILLED_DIRECTORY";
const WRITERS: usize = 4;
const ACKNOWLEDGED: usize = 200;

/// Not a test of its own: what the test below runs in a process that it can kill.
#[test]
fn the_process_that_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let remote = Remote::start(RemoteConfig::new(directory)).unwrap();
    remote.create_bucket("lake").unwrap();
    // Behind whatever the test runner printed on this line.
    std::io::Write::write_all(&mut std::io::stdout(), format!("\nport={}\n", remote.port()).as_bytes()).unwrap();
    // Ends with the kill, or with the pipe of a parent that is gone.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

fn content(writer: usize, at: usize) -> Vec<u8> {
    format!("{writer}/{at};").repeat(at % 50 + 1).into_bytes()
}

#[test]
fn every_acknowledged_object_survives_a_kill_in_mid_write() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::the_process_that_is_killed", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let port: u16 = lines.into_iter().find_map(|line| line.strip_prefix("port=")?.parse().ok()).unwrap();

    let acknowledged = Mutex::new(Vec::new());
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (acknowledged, count) = (&acknowledged, &count);
            scope.spawn(move || {
                let mut client = Client::to(port);
                for at in 0.. {
                    let target = format!("/lake/{writer}/{}", at % 30);
                    let Some(answer) = client.try_send("PUT", &target, &[], &content(writer, at)) else { return };
                    assert_eq!(answer.status, 200);
                    acknowledged.lock().unwrap().push((writer, at));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while count.load(Ordering::Relaxed) < ACKNOWLEDGED {
            std::thread::yield_now();
        }
        child.kill().unwrap();
    });
    child.wait().unwrap();

    let remote = Remote::start(RemoteConfig::new(directory.path())).unwrap();
    let mut client = Client::new(&remote);
    let mut last = std::collections::BTreeMap::new();
    for (writer, at) in acknowledged.into_inner().unwrap() {
        last.insert((writer, at % 30), at);
    }
    for ((writer, slot), at) in last {
        let found = client.get(&format!("/lake/{writer}/{slot}")).body;
        // The write after the last acknowledged one may have happened too: whole, or not at all.
        assert!(found == content(writer, at) || found == content(writer, at + 30), "{writer}/{slot} after {at}");
    }
}
