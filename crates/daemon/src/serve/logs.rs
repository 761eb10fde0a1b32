//! A VM's log over HTTP: what there is, and if asked what comes, until the VM ends or the client leaves.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::extract::{Query, State};
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{App, Failure, Found, follow};
use crate::logs::Changes;

#[derive(Debug, Deserialize)]
pub(super) struct How {
    #[serde(default)]
    follow: bool,
}

pub(super) async fn logs(
    State(daemon): App,
    Found(vm): Found,
    Query(how): Query<How>,
) -> Result<Response, Failure> {
    let log = daemon.places.log(&daemon.mark(&vm.id));
    let (sender, mut response) = follow::stream();
    let text = axum::http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, text);
    let changes = if how.follow { Some(Changes::watch(&log)?) } else { None };
    drop(tokio::spawn(async move {
        let mut tail = Tail::default();
        let mut older = log.clone().into_os_string();
        older.push(".1");
        let mut shown = send_file(Path::new(&older), &sender).await;
        shown = shown && tail.send_new(&log, &sender).await;
        let Some(changes) = changes.filter(|_| shown) else { return };
        loop {
            tokio::select! {
                () = sender.closed() => return,
                changed = changes.wait() => if !changed || !tail.send_new(&log, &sender).await { return },
            }
        }
    }));
    Ok(response)
}

/// How far the log was read, and of which file: it is turned over when it is full.
#[derive(Debug, Default)]
struct Tail {
    inode: u64,
    offset: u64,
}

impl Tail {
    /// Sends what is new. False when the client has left.
    async fn send_new(&mut self, log: &Path, to: &mpsc::Sender<Bytes>) -> bool {
        let Ok(mut file) = File::open(log) else { return true };
        let inode = file.metadata().map_or(0, |data| data.ino());
        if inode != self.inode {
            (self.inode, self.offset) = (inode, 0);
        }
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return true;
        }
        loop {
            let mut piece = vec![0; 64 * 1024];
            match file.read(&mut piece) {
                Ok(0) | Err(_) => return true,
                Ok(got) => {
                    piece.truncate(got);
                    self.offset += got as u64;
                    if to.send(piece.into()).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }
}

async fn send_file(path: &Path, to: &mpsc::Sender<Bytes>) -> bool {
    Tail::default().send_new(path, to).await
}
