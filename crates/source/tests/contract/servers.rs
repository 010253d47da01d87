//! Servers of others as child processes, with an environment of their own, ended with the test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Credentials of all servers here; they guard nothing.
pub(crate) const ACCESS_KEY: &str = "AKIAPENSTOCKTEST0000";
/// The secret that belongs to it.
pub(crate) const SECRET_KEY: &str = "penstock-contract-secret";

/// A server that does not listen by then does not start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts `program` with arguments for a free port and waits until it listens.
    pub(crate) fn start(program: &Path, arguments: impl FnOnce(u16) -> Vec<String>) -> Result<Self, String> {
        let address = free_address();
        let mut command = Command::new(program);
        command
            .args(arguments(address.port()))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", std::env::temp_dir())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec only one async-signal-safe system call is made.
        unsafe {
            command.pre_exec(|| {
                let signal = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(signal).map_err(Into::into)
            });
        }
        let child = command.spawn().map_err(|error| format!("{} does not start: {error}", program.display()))?;
        let mut server = Self { child, address };
        let end = Instant::now() + START_TIMEOUT;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("{} ended at once: {status}", program.display()));
            }
            if Instant::now() > end {
                return Err(format!("{} does not listen", program.display()));
            }
            // Waits for the condition above; there is nothing to be told by.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a bucket on a server that checks no signatures.
    pub(crate) async fn make_bucket(&self, bucket: &str) -> Result<(), String> {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.map_err(|error| error.to_string())?;
        let request = format!(
            "PUT /{bucket} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20250101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        let answer = String::from_utf8_lossy(&answer);
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("no bucket was made: {answer}")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port")
}
