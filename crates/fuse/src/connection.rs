//! One kernel mount as the kernel counts it, and the way to end it from the outside.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use penstock_types::{Error, ErrorKind, Result};
use rustix::fs::{FileType, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const CONTROL_DIRECTORY: &str = "/sys/fs/fuse/connections";

/// Whether a descriptor is of `/dev/fuse`, whatever it is called here.
pub fn is_device(descriptor: BorrowedFd<'_>) -> bool {
    let device = rustix::fs::makedev(10, 229);
    rustix::fs::fstat(descriptor).is_ok_and(|facts| {
        FileType::from_raw_mode(facts.st_mode) == FileType::CharacterDevice && facts.st_rdev == device
    })
}

/// Number of the connection that `device` speaks for: the minor part of `st_dev` in its mount. Kernels before 6.17 do
/// not say it; there it is the one that is mounted at `target`.
pub fn number(device: BorrowedFd<'_>, target: &str) -> Option<u32> {
    let facts = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd())).ok()?;
    let said = facts.lines().find_map(|line| line.strip_prefix("fuse_connection:"));
    match said {
        Some(number) => number.trim().parse().ok(),
        None => mounted_at(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, target),
    }
}

/// Ends a connection: every request under way and every later one fails, in the kernel, whatever we do.
///
/// # Errors
/// `Unsupported` where the kernel's control files cannot be reached; `PermissionDenied` for another user's connection.
pub fn abort(number: u32) -> Result<()> {
    let failed = |error: Errno| {
        let kind = if error == Errno::ACCESS { ErrorKind::PermissionDenied } else { ErrorKind::Unsupported };
        Error::new(kind, "end a mount", format!("the kernel's control files cannot be used: {error}"))
            .advise("unmount it by force: umount -f")
            .fact("connection", number)
    };
    let path = format!("{number}/abort");
    let file = match open(format!("{CONTROL_DIRECTORY}/{path}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => {
            let directory = control_directory().map_err(failed)?;
            match openat(directory, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                // Nobody has it mounted any more.
                Err(Errno::NOENT) => return Ok(()),
                other => other.map_err(failed)?,
            }
        }
        other => other.map_err(failed)?,
    };
    File::from(file).write_all(b"1").map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
}

/// The control files without a place in the tree, for machines where nobody mounted them.
fn control_directory() -> std::result::Result<OwnedFd, Errno> {
    let file_system = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&file_system)?;
    fsmount(&file_system, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Minor device number of the FUSE file system that is on top at `target`, from the text of `mountinfo`.
fn mounted_at(mount_info: &str, target: &str) -> Option<u32> {
    let mut top = None;
    for line in mount_info.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(point)) = (fields.nth(2), fields.nth(1)) else { continue };
        if unescaped(point) == target {
            top = Some((device, fields.skip_while(|field| *field != "-").nth(1).unwrap_or_default()));
        }
    }
    let (device, kind) = top?;
    let minor = device.strip_prefix("0:")?;
    if kind == "fuse" || kind.starts_with("fuse.") { minor.parse().ok() } else { None }
}

/// A path of `mountinfo`, where blanks and backslashes are octal.
fn unescaped(field: &str) -> String {
    let text = field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n");
    text.replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_of_a_mount_point_is_that_of_the_mount_on_top() {
        let text = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
                    40 22 0:51 / /mnt/a\\040lake rw,nosuid shared:9 - fuse.penstock penstock rw,user_id=0\n\
                    41 22 0:52 / /mnt/b rw - fuse.penstock penstock rw\n\
                    42 41 0:53 / /mnt/b rw - tmpfs tmpfs rw\n";
        assert_eq!(mounted_at(text, "/mnt/a lake"), Some(51));
        assert_eq!(mounted_at(text, "/mnt/b"), None, "a file system that is not ours hides it");
        assert_eq!(mounted_at(text, "/mnt/c"), None);
        assert_eq!(mounted_at(text, "/"), None);
    }

    #[test]
    fn a_connection_that_is_gone_need_not_be_ended() {
        if rustix::process::geteuid().is_root() {
            abort(u32::MAX).unwrap();
        }
    }
}
