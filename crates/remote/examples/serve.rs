//! Serves a directory as S3 until standard input ends: `cargo run -p penstock-remote --example serve -- DIRECTORY
//! [PORT [FIRST_BYTE_MS CONNECTION_BYTES_PER_S TOTAL_BYTES_PER_S [ACCESS_KEY SECRET_KEY]]]`. Prints the endpoint.

use std::io::{Read, Write};
use std::time::Duration;

use penstock_remote::{Remote, RemoteConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).map_or(Ok(0), |text| text.parse::<u64>());
    let mut config = RemoteConfig::new(arguments.first().ok_or("which directory?")?);
    config.port = u16::try_from(number(1)?)?;
    config.first_byte = Duration::from_millis(number(2)?);
    config.connection_rate = number(3)?;
    config.total_rate = number(4)?;
    if let [_, _, _, _, _, access_key, secret_key] = arguments.as_slice() {
        config.credentials = Some((access_key.clone(), secret_key.clone()));
    }
    let remote = Remote::start(config)?;
    writeln!(std::io::stdout(), "{}", remote.endpoint())?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
