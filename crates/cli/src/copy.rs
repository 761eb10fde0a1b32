//! Copies between this host and a guest: what goes where (`plan.rs`), and how it gets there.

mod download;
mod meter;
mod place;
mod plan;
mod upload;

use banger_api::client::{Client, ExecSocket};
use banger_api::exec::Word;
use banger_api::files::{Copied, Look, Looked};
use banger_api::{Code, Problem};
use serde::Serialize;

pub(crate) use download::{download, download_tar};
pub(crate) use place::Place;
pub(crate) use upload::{upload, upload_tar};

/// How it is copied, as the flags say.
#[derive(Debug)]
pub(crate) struct How {
    /// `--archive`
    pub(crate) exact: bool,
    /// `--owner`
    pub(crate) owner: Option<String>,
    /// `--parents`
    pub(crate) parents: bool,
}

/// The guest's side of a copy.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) client: Client,
    /// Of the VM, in the API.
    pub(crate) path: String,
    /// As the user named it.
    pub(crate) name: String,
}

/// What was copied.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Bytes that were there already, from a copy that broke.
    pub(crate) resumed_at: u64,
    pub(crate) left_out: Vec<String>,
    pub(crate) left_out_count: u64,
}

impl Outcome {
    /// What both sides have left out.
    fn of(copied: Copied, other: Copied, resumed_at: u64) -> Self {
        let mut left_out = copied.left_out;
        left_out.extend(other.left_out);
        let left_out_count = copied.left_out_count + other.left_out_count;
        Self { entries: copied.entries, bytes: copied.bytes, resumed_at, left_out, left_out_count }
    }
}

impl Guest {
    async fn socket(&self) -> Result<ExecSocket, Problem> {
        self.client.websocket(&format!("{}/files", self.path)).await
    }

    async fn look(&self, path: &[u8], prefix: Option<u64>, part: bool) -> Result<Looked, Problem> {
        let look = Look { path: word(path)?, prefix, part };
        banger_files::look_at(self.socket().await?, look).await
    }
}

fn word(bytes: &[u8]) -> Result<Word, Problem> {
    Word::new(bytes)
        .map_err(|error| Problem::new(Code::Invalid, "a path is not taken").cause(&error))
}

/// A file this large is gone on with where its copy broke: 16 MiB.
const WORTH_RESUMING: u64 = 16 << 20;
