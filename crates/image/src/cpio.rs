//! Archives that a kernel unpacks as its first root (the "newc" format, Documentation/driver-api/early-userspace/buffer-format.rst).
//! Only writes. Owner root, time 0: the same entries make the same bytes.

use std::io::{self, Write};

pub(crate) struct Cpio<W> {
    out: W,
    inode: u32,
    length: u64,
}

impl<W: Write> Cpio<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, length: 0 }
    }

    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, 2, &[])
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_000 | mode, 1, content)
    }

    /// The trailer; gives the writer back, with a length that is a multiple of 4.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, 1, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other("a cpio entry has at most 4 GiB"))?;
        let name_size = u32::try_from(name.len() + 1)
            .map_err(|_| io::Error::other("a cpio name has at most 4 GiB"))?;
        let [uid, gid, time, major, minor, device_major, device_minor, check] = [0_u32; 8];
        let fields = [
            self.inode,
            mode,
            uid,
            gid,
            links,
            time,
            size,
            major,
            minor,
            device_major,
            device_minor,
            name_size,
            check,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()?;
        self.inode += 1;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = usize::try_from(self.length.wrapping_neg() % 4).expect("less than 4");
        self.put(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn gnu_cpio_reads_what_is_written() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.folder("a").unwrap();
        cpio.file("a/init", 0o755, b"12345").unwrap();
        cpio.file("a/empty", 0o644, b"").unwrap();
        let bytes = cpio.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);

        let folder = tempfile::tempdir().unwrap();
        let mut child = crate::programs::tests::command("cpio")
            .args(["--extract", "--quiet"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(folder.path().join("a/init")).unwrap(), b"12345");
        assert_eq!(std::fs::read(folder.path().join("a/empty")).unwrap(), b"");
    }
}
