//! Device-mapper's calls (linux/dm-ioctl.h) on /dev/mapper/control, as far as we need them: named devices with a table.
//!
//! A device is made in three steps (create, load its table, resume), and can be left after each. [`Control::ensure`]
//! goes on from wherever it was left.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};

use rustix::io::Errno;
use rustix::ioctl::{Direction, Opcode, opcode};

use super::ioctl::ioctl;

const CONTROL: &str = "/dev/mapper/control";

/// What a device is made of, in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) start: u64,
    pub(super) sectors: u64,
    pub(super) kind: &'static str,
    pub(super) parameters: String,
}

/// The name that people see, and the uuid that we know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) uuid: String,
}

#[derive(Debug)]
pub(super) struct Control(File);

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        open_control().map(Self).map_err(|error| {
            let said =
                format!("{CONTROL} cannot be used ({error}): is the kernel module dm_mod there?");
            io::Error::new(error.kind(), said)
        })
    }

    /// `None` where there is no device-mapper, and so nothing of it.
    pub(super) fn open_if_there() -> io::Result<Option<Self>> {
        match open_control() {
            Ok(control) => Ok(Some(Self(control))),
            // The node is not there, or there without the driver.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NODEV | Errno::NXIO)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(in_words(&format!("open {CONTROL}"), &error)),
        }
    }

    /// Makes it so, from wherever it was left, and gives the device's number.
    pub(super) fn ensure(
        &self,
        device: &Device,
        table: &[Target],
        read_only: bool,
    ) -> io::Result<u64> {
        let found = match self.find(device)? {
            Some(found) => found,
            None => {
                let mut request = Request::new(&device.name, &device.uuid);
                self.call(DEV_CREATE, &mut request).map_err(|error| match error.kind() {
                    ErrorKind::ResourceBusy => {
                        let said = format!("there is another device named {}", device.name);
                        io::Error::new(ErrorKind::AlreadyExists, said)
                    }
                    _ => in_words(&format!("create {}", device.name), &error),
                })?;
                request.state()
            }
        };
        if found.flags & INACTIVE_PRESENT != 0 {
            // Loaded and not resumed. What a loaded snapshot writes to can be in no second one.
            self.call(TABLE_CLEAR, &mut Request::by_uuid(device))
                .map_err(|e| in_words(&format!("clear the table of {}", device.name), &e))?;
        }
        if found.flags & ACTIVE_PRESENT == 0 {
            let mut request = Request::by_uuid(device);
            request.put_table(table);
            request.set_flags(if read_only { READONLY } else { 0 });
            self.call(TABLE_LOAD, &mut request)
                .map_err(|e| in_words(&format!("load the table of {}", device.name), &e))?;
            self.resume(device)?;
        } else {
            let (there, flags) = self.table(device)?;
            if there != lines(table) || (flags & READONLY != 0) != read_only {
                let said =
                    format!("{} is there with another table: {}", device.name, there.join("; "));
                return Err(io::Error::other(said));
            }
            if found.flags & SUSPENDED != 0 {
                self.resume(device)?;
            }
        }
        Ok(found.number)
    }

    /// Removes it with whatever it has. `None` while it is in use.
    pub(super) fn remove(&self, device: &Device) -> io::Result<Option<()>> {
        let mut request = Request::by_uuid(device);
        request.set_event(UDEV_FLAGS);
        match self.call(DEV_REMOVE, &mut request) {
            Ok(()) => Ok(Some(())),
            Err(error) if is_absent(&error) => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
            Err(error) => Err(in_words(&format!("remove {}", device.name), &error)),
        }
    }

    pub(super) fn is_there(&self, device: &Device) -> io::Result<bool> {
        Ok(self.find(device)?.is_some())
    }

    /// The device's number if it is there.
    pub(super) fn number(&self, device: &Device) -> io::Result<Option<u64>> {
        Ok(self.find(device)?.map(|found| found.number))
    }

    /// What its one target says of itself.
    pub(super) fn status(&self, device: &Device) -> io::Result<String> {
        let mut request = Request::by_uuid(device);
        self.call(TABLE_STATUS, &mut request)?;
        Ok(request.targets().pop().map_or_else(String::new, |(_, said)| said))
    }

    /// The names of all devices.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut request = Request::new("", "");
        self.call(LIST_DEVICES, &mut request)?;
        // A device's entry begins with its number.
        Ok(request.names(8, 12))
    }

    /// The names of the targets that the kernel has loaded.
    pub(super) fn targets(&self) -> io::Result<Vec<String>> {
        let mut request = Request::new("", "");
        self.call(LIST_VERSIONS, &mut request)?;
        // A target's entry has three numbers of its version before the name.
        Ok(request.names(0, 16))
    }

    fn find(&self, device: &Device) -> io::Result<Option<State>> {
        let mut request = Request::by_uuid(device);
        match self.call(DEV_STATUS, &mut request) {
            Ok(()) => Ok(Some(request.state())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(in_words(&format!("look at {}", device.name), &error)),
        }
    }

    /// The lines of its table, and its flags.
    fn table(&self, device: &Device) -> io::Result<(Vec<String>, u32)> {
        let mut request = Request::by_uuid(device);
        request.set_flags(STATUS_TABLE);
        self.call(TABLE_STATUS, &mut request)?;
        let table = request.targets().into_iter().map(|(head, said)| line(&head, &said));
        Ok((table.collect(), request.state().flags))
    }

    fn resume(&self, device: &Device) -> io::Result<()> {
        let mut request = Request::by_uuid(device);
        request.set_event(UDEV_FLAGS);
        self.call(DEV_SUSPEND, &mut request)
            .map_err(|e| in_words(&format!("resume {}", device.name), &e))
    }

    /// Calls with a buffer that is made larger until the answer fits.
    #[expect(unsafe_code, reason = "ioctl(2) reads and writes what its argument points to")]
    fn call(&self, call: u8, request: &mut Request) -> io::Result<()> {
        let code: Opcode = opcode::from_components(Direction::ReadWrite, 0xfd, call, HEADER);
        let asked = request.0.clone();
        loop {
            request.announce_size();
            // SAFETY: reads and writes a `struct dm_ioctl` and what follows it, as many bytes as its field `data_size`
            // says, which is the length of the buffer.
            unsafe { ioctl(&self.0, code, request.0.as_mut_ptr()) }?;
            if request.state().flags & BUFFER_FULL == 0 {
                return Ok(());
            }
            let length = request.0.len() * 2;
            request.0.clone_from(&asked);
            request.0.resize(length, 0);
        }
    }
}

fn open_control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL)
}

/// Whether the kernel has the target. What it loads on demand counts when the module is there.
pub(super) fn target_ability(target: &str, module: &str) -> Result<(), String> {
    let loaded = Control::open().and_then(|control| control.targets());
    match loaded {
        Ok(targets) if targets.iter().any(|there| there == target) => return Ok(()),
        Ok(_) => {}
        // Only root may ask. Whether the module is there can be seen by everybody.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(error) => return Err(error.to_string()),
    }
    if super::modules::is_there(module) {
        return Ok(());
    }
    Err(format!("device-mapper has no target {target} here: the kernel module {module} is missing"))
}

fn in_words(act: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {act}: {error}"))
}

fn is_absent(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NXIO)
}

fn lines(table: &[Target]) -> Vec<String> {
    table
        .iter()
        .map(|target| {
            line(
                &format!("{} {} {}", target.start, target.sectors, target.kind),
                &target.parameters,
            )
        })
        .collect()
}

fn line(head: &str, parameters: &str) -> String {
    format!("{head} {parameters}").trim_end().to_owned()
}

const LIST_DEVICES: u8 = 2;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
/// Resumes without the flag for suspending.
const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;
const TABLE_CLEAR: u8 = 10;
const TABLE_STATUS: u8 = 12;
const LIST_VERSIONS: u8 = 13;

const READONLY: u32 = 1;
const SUSPENDED: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE_PRESENT: u32 = 1 << 5;
const INACTIVE_PRESENT: u32 = 1 << 6;
const BUFFER_FULL: u32 = 1 << 8;

/// For udev's rules, in the upper half of the event's number (libdevmapper.h, DM_UDEV_DISABLE_*): no links for it in
/// /dev, nobody needs to look into it, and nobody waits for udev to be done.
const UDEV_FLAGS: u32 = (0x1 | 0x2 | 0x4 | 0x8 | 0x20) << 16;

/// `struct dm_ioctl` and what follows it.
struct Request(Vec<u8>);

/// The length of `struct dm_ioctl`, and where its fields are.
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const EVENT: usize = 32;
const NUMBER: usize = 40;
const NAME: (usize, usize) = (48, 128);
const UUID: (usize, usize) = (176, 129);
/// The length of `struct dm_target_spec`, and where its fields are.
const SPEC: usize = 40;
const SPEC_NEXT: usize = 20;
const SPEC_KIND: (usize, usize) = (24, 16);

/// What the kernel knows of a device.
struct State {
    number: u64,
    flags: u32,
}

impl Request {
    fn new(name: &str, uuid: &str) -> Self {
        let mut request = Self(vec![0; 16 * 1024]);
        // The version of the interface that we know; any later one of the same first number will do.
        request.put(0, &4_u32.to_ne_bytes());
        request.put(DATA_START, &length_u32(HEADER).to_ne_bytes());
        request.put_text(NAME, name);
        request.put_text(UUID, uuid);
        request
    }

    /// A device is named by its name or its uuid, not by both.
    fn by_uuid(device: &Device) -> Self {
        Self::new("", &device.uuid)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_text(&mut self, (at, room): (usize, usize), text: &str) {
        assert!(text.len() < room, "names and kinds of ours are short");
        self.put(at, text.as_bytes());
    }

    fn announce_size(&mut self) {
        let size = length_u32(self.0.len());
        self.put(DATA_SIZE, &size.to_ne_bytes());
    }

    fn set_flags(&mut self, flags: u32) {
        self.put(FLAGS, &flags.to_ne_bytes());
    }

    fn set_event(&mut self, event: u32) {
        self.put(EVENT, &event.to_ne_bytes());
    }

    fn put_table(&mut self, table: &[Target]) {
        self.put(TARGET_COUNT, &length_u32(table.len()).to_ne_bytes());
        let mut at = HEADER;
        for target in table {
            // The parameters end with a NUL, and the next target begins at a multiple of 8.
            let length = (SPEC + target.parameters.len() + 1).next_multiple_of(8);
            self.put(at, &target.start.to_ne_bytes());
            self.put(at + 8, &target.sectors.to_ne_bytes());
            self.put(at + SPEC_NEXT, &length_u32(length).to_ne_bytes());
            self.put_text((at + SPEC_KIND.0, SPEC_KIND.1), target.kind);
            self.put(at + SPEC, target.parameters.as_bytes());
            at += length;
        }
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        self.0.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        self.0.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    fn offset_at(&self, at: usize) -> Option<usize> {
        usize::try_from(self.u32_at(at)?).ok()
    }

    /// Up to its NUL.
    fn text_at(&self, at: usize) -> Option<String> {
        let bytes = self.0.get(at..)?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn state(&self) -> State {
        State {
            number: self.u64_at(NUMBER).unwrap_or_default(),
            flags: self.u32_at(FLAGS).unwrap_or_default(),
        }
    }

    /// For each target `START SECTORS KIND`, and what it says: its parameters or its status.
    fn targets(&self) -> Vec<(String, String)> {
        let begin = self.offset_at(DATA_START).unwrap_or(HEADER);
        let mut at = begin;
        let mut found = Vec::new();
        for _ in 0..self.u32_at(TARGET_COUNT).unwrap_or_default() {
            let read = || {
                let (start, sectors) = (self.u64_at(at)?, self.u64_at(at + 8)?);
                let (kind, said) = (self.text_at(at + SPEC_KIND.0)?, self.text_at(at + SPEC)?);
                Some((format!("{start} {sectors} {kind}"), said, self.offset_at(at + SPEC_NEXT)?))
            };
            let Some((head, said, next)) = read() else { break };
            found.push((head, said));
            // Here counted from the first target, unlike in a table that is loaded.
            at = begin + next;
        }
        found
    }

    /// The names in a list. An entry has its distance to the next one at `next`, 0 for the last, and its name at `name`.
    fn names(&self, next: usize, name: usize) -> Vec<String> {
        let mut at = self.offset_at(DATA_START).unwrap_or(HEADER);
        let mut found = Vec::new();
        while let (Some(distance), Some(text)) =
            (self.offset_at(at + next), self.text_at(at + name))
        {
            // An empty list is one entry without a name.
            if !text.is_empty() {
                found.push(text);
            }
            if distance == 0 {
                break;
            }
            at += distance;
        }
        found
    }
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("requests are far shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_loaded_is_read_back_in_lines() {
        let table = [
            Target { start: 0, sectors: 8, kind: "linear", parameters: "7:0 0".into() },
            Target { start: 8, sectors: 16, kind: "zero", parameters: String::new() },
        ];
        assert_eq!(lines(&table), ["0 8 linear 7:0 0", "8 16 zero"]);
        let mut request = Request::new("name", "uuid");
        request.put_table(&table);
        let first = request.targets().remove(0);
        assert_eq!(line(&first.0, &first.1), "0 8 linear 7:0 0");
        assert_eq!(request.offset_at(HEADER + SPEC_NEXT), Some(48));
    }

    #[test]
    fn lists_of_devices_and_of_targets_are_walked_to_their_end() {
        let mut request = Request::new("", "");
        request.put(HEADER, &1_u64.to_ne_bytes());
        request.put(HEADER + 8, &24_u32.to_ne_bytes());
        request.put(HEADER + 12, b"one\0");
        request.put(HEADER + 24, &2_u64.to_ne_bytes());
        request.put(HEADER + 24 + 12, b"two\0");
        assert_eq!(request.names(8, 12), ["one", "two"]);
        assert!(Request::new("", "").names(8, 12).is_empty());

        let mut request = Request::new("", "");
        request.put(HEADER, &24_u32.to_ne_bytes());
        request.put(HEADER + 16, b"linear\0");
        request.put(HEADER + 24 + 16, b"snapshot\0");
        assert_eq!(request.names(0, 16), ["linear", "snapshot"]);
    }
}
