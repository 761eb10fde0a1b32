//! Every claim about `/v1/files`, made of the real program through a real WebSocket.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use banger_api::client::{Client, ExecSocket};
use banger_api::exec::Word;
use banger_api::files::{Copied, Done, FoundKind, Look, Owner, Read, ToAgent, Write};
use banger_api::{Code, Problem};
use banger_files::{Pack, Target, Unpack};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// Nothing here takes nearly as long; a busy machine may.
const DEADLINE: Duration = Duration::from_secs(60);

/// The agent, listening in a folder of its own.
struct Agent {
    process: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        #[expect(clippy::disallowed_methods, reason = "the program under test")]
        let process = Command::new(env!("CARGO_BIN_EXE_banger-agent"))
            .args(["serve", "--listen"])
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, folder };
        let mut watch = tokio::time::interval(Duration::from_millis(5));
        within(async {
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                watch.tick().await;
            }
        })
        .await;
        agent
    }

    async fn socket(&self) -> ExecSocket {
        let client = Client::new(self.folder.path().join("agent.sock"));
        within(client.websocket("/v1/files")).await.unwrap()
    }

    /// Sends what is at `source`.
    async fn write(&self, write: Write, source: &Path) -> Result<(Copied, Done), Problem> {
        let top = write.only.as_ref().map(|only| only.as_bytes().to_vec());
        let source = banger_files::open(source).unwrap();
        let pack = move |to: &mut banger_files::Writer| {
            banger_files::pack(source, &Pack { top, from: 0 }, to, &mut |_| ())
                .map_err(|error| banger_files::problem(&error))
        };
        let stop = CancellationToken::new();
        within(banger_files::write(self.socket().await, write, &stop, pack)).await
    }

    /// Has it unpacked below `into`.
    async fn read(&self, read: Read, into: &Path) -> Result<(Copied, Done), Problem> {
        let target = Target::open(into).unwrap();
        let unpack = move |from: &mut banger_files::Reader| {
            banger_files::unpack(from, &target, &Unpack::default(), &mut |_| ())
                .map_err(|error| banger_files::problem(&error))
        };
        let stop = CancellationToken::new();
        within(banger_files::read(self.socket().await, read, &stop, unpack)).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it happens before the deadline")
}

fn word(path: &Path) -> Word {
    Word::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

fn into(folder: &Path) -> Write {
    Write {
        folder: word(folder),
        create: false,
        only: None,
        owner: Owner::Folder,
        exact: false,
        resume: 0,
    }
}

#[tokio::test]
async fn a_tree_goes_in_and_comes_back_and_what_was_left_out_is_told() {
    let agent = Agent::start().await;
    let (from, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("sub")).unwrap();
    fs::write(from.path().join("sub/big"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("sub/big", from.path().join("link")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap());
    let target = agent.folder.path().join("made/on the way");
    let write = Write { create: true, ..into(&target) };
    let (sent, done) = agent.write(write, from.path()).await.unwrap();
    assert_eq!((done.copied.entries, done.copied.bytes), (4, 3 << 20));
    assert_eq!(sent.left_out, ["socket: a socket"]);
    assert_eq!(fs::read(target.join("sub/big")).unwrap().len(), 3 << 20);

    let read = Read { path: word(&target), top: None, from: 0 };
    let (copied, _) = agent.read(read, back.path()).await.unwrap();
    assert_eq!(copied.bytes, 3 << 20);
    assert_eq!(fs::read_link(back.path().join("link")).unwrap(), Path::new("sub/big"));
}

#[tokio::test]
async fn what_it_looks_at_is_told_and_nothing_is_no_error() {
    let agent = Agent::start().await;
    let look = |name: &str, prefix| {
        let path = word(&agent.folder.path().join(name));
        let agent = &agent;
        async move {
            let look = Look { path, prefix, part: false };
            within(banger_files::look_at(agent.socket().await, look)).await.unwrap()
        }
    };
    fs::write(agent.folder.path().join("file"), b"abc").unwrap();
    assert_eq!(look("", None).await.found.unwrap().kind, FoundKind::Folder);
    assert_eq!(look("none/at all", None).await.found, None);
    let file = look("file", Some(2)).await;
    assert_eq!(file.found.unwrap().size, 3);
    // sha256 of "ab".
    assert!(file.prefix_sha256.unwrap().starts_with("fb8e20fc2e4c3f24"));
    assert_eq!(look("file", Some(4)).await.prefix_sha256, None);
}

#[tokio::test]
async fn a_failure_in_the_midst_of_either_stream_says_which_file_and_why() {
    let agent = Agent::start().await;
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a"), vec![1; 5 << 20]).unwrap();
    fs::write(from.path().join("b"), b"x").unwrap();
    fs::write(from.path().join("c"), vec![1; 50 << 20]).unwrap();
    let target = agent.folder.path().join("target");
    fs::create_dir_all(target.join("b")).unwrap();
    let problem = agent.write(into(&target), from.path()).await.unwrap_err();
    let text = problem.to_string();
    assert!(text.contains("b of the stream is refused: a folder is in its place"), "{text}");
    assert!(!target.join("c").exists());

    let missing = Read { path: word(&target.join("none")), top: None, from: 0 };
    let problem = agent.read(missing, from.path()).await.unwrap_err();
    assert_eq!(problem.code, Code::NotFound);
    assert!(problem.to_string().contains("target/none of the guest"), "{problem}");
    let relative = Write { folder: Word::new("tmp").unwrap(), ..into(&target) };
    let problem = agent.write(relative, from.path()).await.unwrap_err();
    assert!(problem.to_string().contains("no absolute path"), "{problem}");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_midst_leaves_no_file() {
    let agent = Agent::start().await;
    let source = tempfile::NamedTempFile::new().unwrap();
    source.as_file().write_all(&vec![1; 1 << 20]).unwrap();
    let target = agent.folder.path().join("target");
    fs::create_dir(&target).unwrap();
    let mut tar = Vec::new();
    let how = Pack { top: Some(b"f".to_vec()), from: 0 };
    let opened = banger_files::open(source.path()).unwrap();
    banger_files::pack(opened, &how, &mut tar, &mut |_| ()).unwrap();
    let mut socket = agent.socket().await;
    let write = banger_api::files::Start::Write(into(&target));
    for frame in [ToAgent::Start(Box::new(write)), ToAgent::Data(tar[..600_000].to_vec().into())] {
        within(socket.send(Message::Binary(frame.encode()))).await.unwrap();
    }
    within(socket.close(None)).await.unwrap();
    // Its goodbye comes when its thread is done.
    within(async { while socket.next().await.is_some_and(|frame| frame.is_ok()) {} }).await;
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[tokio::test]
async fn the_owner_is_as_asked() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let agent = Agent::start().await;
    let source = tempfile::NamedTempFile::new().unwrap();
    let target = agent.folder.path().join("target");
    fs::create_dir(&target).unwrap();
    std::os::unix::fs::chown(&target, Some(1234), Some(99)).unwrap();
    for (owner, expected) in [
        (Owner::Folder, (1234, 99)),
        (Owner::Stream, (0, 0)),
        (Owner::User("77:88".into()), (77, 88)),
    ] {
        let only = Some(Word::new("f").unwrap());
        agent.write(Write { owner, only, ..into(&target) }, source.path()).await.unwrap();
        let meta = fs::metadata(target.join("f")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), expected);
    }
    let nobody = Write { owner: Owner::User("nobody at all".into()), ..into(&target) };
    let problem = agent.write(nobody, &target).await.unwrap_err();
    assert!(problem.to_string().contains("no user"), "{problem}");
}
