//! Images and kernels: names that point at digests.

use banger_api::image::Config;
use banger_api::{ImageName, KernelName};
use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row, params};

use crate::Store;
use crate::columns::{integer, json, number, text, to_json};
use crate::error::StoreError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    pub name: ImageName,
    pub digest: String,
    pub size_bytes: u64,
    pub init: Option<String>,
    pub source: String,
    pub created_at: Timestamp,
    pub config: Config,
    /// Digest of the manifest that it was pulled by.
    pub manifest: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRecord {
    pub name: KernelName,
    pub digest: String,
    pub release: String,
    pub size_bytes: u64,
    pub modules: u32,
    pub source: String,
    pub created_at: Timestamp,
}

impl Store {
    /// Records an image; one of that name is replaced.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_image(&self, image: &ImageRecord) -> Result<(), StoreError> {
        self.transaction("record the image", |t| {
            t.execute(
                "INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    image.name.as_str(),
                    image.digest,
                    integer(image.size_bytes)?,
                    image.init,
                    image.source,
                    image.created_at.to_string(),
                    to_json(&image.config)?,
                    image.manifest,
                ],
            )
            .map(drop)
        })
    }

    /// All images, by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.read("list the images", |c| {
            c.prepare_cached("SELECT * FROM images ORDER BY name")?.query_map([], image)?.collect()
        })
    }

    /// # Errors
    /// When the database cannot be read.
    pub fn image(&self, name: &ImageName) -> Result<Option<ImageRecord>, StoreError> {
        self.read("read the image", |c| {
            c.prepare_cached("SELECT * FROM images WHERE name = ?1")?
                .query_row([name.as_str()], image)
                .optional()
        })
    }

    /// The image's record goes; whoever calls it has checked that no VM needs its digest.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_image(&self, name: &ImageName) -> Result<(), StoreError> {
        self.transaction("delete the image's record", |t| {
            t.execute("DELETE FROM images WHERE name = ?1", [name.as_str()]).map(drop)
        })
    }

    /// Records a kernel; one of that name is replaced.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_kernel(&self, kernel: &KernelRecord) -> Result<(), StoreError> {
        self.transaction("record the kernel", |t| {
            t.execute(
                "INSERT OR REPLACE INTO kernels VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    kernel.name.as_str(),
                    kernel.digest,
                    kernel.release,
                    integer(kernel.size_bytes)?,
                    kernel.modules,
                    kernel.source,
                    kernel.created_at.to_string(),
                ],
            )
            .map(drop)
        })
    }

    /// All kernels, the newest first: the first is the default.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn kernels(&self) -> Result<Vec<KernelRecord>, StoreError> {
        self.read("list the kernels", |c| {
            c.prepare_cached("SELECT * FROM kernels ORDER BY created_at DESC, name")?
                .query_map([], kernel)?
                .collect()
        })
    }

    /// # Errors
    /// When the database cannot be read.
    pub fn kernel(&self, name: &KernelName) -> Result<Option<KernelRecord>, StoreError> {
        self.read("read the kernel", |c| {
            c.prepare_cached("SELECT * FROM kernels WHERE name = ?1")?
                .query_row([name.as_str()], kernel)
                .optional()
        })
    }

    /// The kernel's record goes; whoever calls it has checked that no VM needs its digest.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_kernel(&self, name: &KernelName) -> Result<(), StoreError> {
        self.transaction("delete the kernel's record", |t| {
            t.execute("DELETE FROM kernels WHERE name = ?1", [name.as_str()]).map(drop)
        })
    }
}

fn image(row: &Row<'_>) -> rusqlite::Result<ImageRecord> {
    Ok(ImageRecord {
        name: text(row, "name")?,
        digest: row.get("digest")?,
        size_bytes: number(row, "size_bytes")?,
        init: row.get("init")?,
        source: row.get("source")?,
        created_at: text(row, "created_at")?,
        config: json(row, "config")?,
        manifest: row.get("manifest")?,
    })
}

fn kernel(row: &Row<'_>) -> rusqlite::Result<KernelRecord> {
    Ok(KernelRecord {
        name: text(row, "name")?,
        digest: row.get("digest")?,
        release: row.get("release")?,
        size_bytes: number(row, "size_bytes")?,
        modules: number(row, "modules")?,
        source: row.get("source")?,
        created_at: text(row, "created_at")?,
    })
}
