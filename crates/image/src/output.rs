//! The output of the image: written from front to back, with few and small changes to what was written before.

use std::io::{self, Seek, SeekFrom, Write};

use penstock_types::{Error, ErrorKind, Result};

/// So much is gathered before it is written. What is changed later mostly still lies in it.
const BUFFER_BYTES: usize = 1 << 20;

/// An output that is appended to. After its first error it gives that error for ever, so that what was lost cannot
/// be taken for written.
#[derive(Debug)]
pub(crate) struct Output<W> {
    out: W,
    written: u64,
    buffer: Vec<u8>,
    failure: Option<Error>,
}

impl<W: Write + Seek> Output<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, written: 0, buffer: Vec::new(), failure: None }
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Writes a record at the end.
    pub(crate) fn append(&mut self, record: &[u8]) -> Result<()> {
        self.check()?;
        if self.buffer.len() + record.len() > BUFFER_BYTES {
            self.write_buffer()?;
        }
        if record.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(record);
            return Ok(());
        }
        self.attempt(|out| out.write_all(record))?;
        self.written += record.len() as u64;
        Ok(())
    }

    /// Fills up with zeros to this position; nothing where it is past it. Padding is less than a block, or the header.
    pub(crate) fn pad_to(&mut self, position: u64) -> Result<()> {
        let missing = position.saturating_sub(self.position());
        self.append(&vec![0; usize::try_from(missing).expect("less than a header")])
    }

    /// Replaces bytes within one record that was appended before.
    pub(crate) fn replace(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        if let Some(at) = position.checked_sub(self.written) {
            let at = usize::try_from(at).expect("within the buffer");
            self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        let end = self.written;
        self.attempt(|out| {
            out.seek(SeekFrom::Start(position))?;
            out.write_all(bytes)?;
            out.seek(SeekFrom::Start(end)).map(|_| ())
        })
    }

    /// Writes what is left and gives the output back.
    pub(crate) fn finish(mut self) -> Result<W> {
        self.write_buffer()?;
        self.attempt(Write::flush)?;
        Ok(self.out)
    }

    fn write_buffer(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        self.attempt(|out| out.write_all(&buffer))?;
        self.written += buffer.len() as u64;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    /// Gives the error that ended it.
    pub(crate) fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    fn attempt(&mut self, call: impl FnOnce(&mut W) -> io::Result<()>) -> Result<()> {
        self.check()?;
        call(&mut self.out).map_err(|error| self.fail(write_error(&error)))
    }

    /// Ends the output: every call gives this error from now on.
    pub(crate) fn fail(&mut self, failure: Error) -> Error {
        self.failure = Some(failure.clone());
        failure
    }
}

fn write_error(error: &io::Error) -> Error {
    let (kind, advice) = match ErrorKind::of_disk(error) {
        ErrorKind::NoSpace => (ErrorKind::NoSpace, "free space where the image is written"),
        kind => (kind, "check the disk where the image is written"),
    };
    Error::new(kind, "write the image", error.to_string()).advise(advice)
}
