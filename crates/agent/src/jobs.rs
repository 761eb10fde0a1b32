//! Jobs: execs whose client is in here. It writes down what the command writes (job_log.rs), and passes on what those say who
//! are attached.
//!
//! ```text
//! attached client ──► stdin, resize, signal ──► recorder ══ frames of an exec ══► exec.rs ──► command
//!        ▲                                        │
//!        └──────────── frames ◄── log ◄───────────┘
//! ```
//! A job ends when its command does. What is kept of it is in a folder of the guest's, of the last 64 that ended.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use banger_api::client::websocket_config;
use banger_api::exec::{Exit, FromAgent, Refused, STDIN_WINDOW, Start, ToAgent};
use banger_api::image::Config;
use banger_api::jobs::{Job, JobState};
use bytes::Bytes;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::job_log::{self, Log, Reader};
use crate::{console, exec};

/// Of those that have ended so many are kept.
const KEPT: usize = 64;

/// So many run at once.
const MOST: usize = 64;

/// Where they are kept: on the VM's disk, so they outlast a stop.
const FOLDER: &str = "/var/lib/banger/jobs";
const RECORD: &str = "job.json";

/// Between the recorder and the exec.
const PIPE: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("{}", .0.message)]
    Refused(Refused),
    #[error("{MOST} jobs run already")]
    TooMany,
    #[error("there is no job {0}")]
    Unknown(u32),
    #[error("job {0} has ended")]
    Ended(u32),
    #[error("cannot keep what jobs write in {}", folder.display())]
    Keep {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// All of this guest's.
#[derive(Debug)]
pub(crate) struct Jobs {
    folder: PathBuf,
    running: Mutex<BTreeMap<u32, Arc<Running>>>,
}

/// One whose command has not ended.
#[derive(Debug)]
struct Running {
    job: Job,
    to_command: mpsc::Sender<ToAgent>,
    /// Bytes of stdin that the exec takes before it says that it took some.
    window: Semaphore,
    progress: watch::Receiver<Progress>,
}

/// Until where its log may be read, and how it ended.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    written: u64,
    end: Option<JobState>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self::new(FOLDER.into())
    }
}

impl Jobs {
    fn new(folder: PathBuf) -> Self {
        Self { folder, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }

    fn keep(&self) -> impl Fn(io::Error) -> JobError + '_ {
        |cause| JobError::Keep { folder: self.folder.clone(), cause }
    }

    /// Starts a command that goes on until it ends by itself, is signalled, or its time is up.
    pub(crate) fn start(self: &Arc<Self>, start: &Start, config: &Config) -> Result<Job, JobError> {
        let mut running = self.running();
        if running.len() >= MOST {
            return Err(JobError::TooMany);
        }
        self.forget_old(&running).map_err(self.keep())?;
        let kept = kept(&self.folder).map_err(self.keep())?;
        let number = kept.last().map_or(1, |last| last + 1);
        let folder = self.of(number);
        let job = Job {
            number,
            command: start.argv.clone(),
            tty: start.tty.is_some(),
            started_ms: now_ms(),
            state: JobState::Running,
            output_bytes: 0,
            dropped_bytes: 0,
        };
        fs::create_dir_all(&folder).map_err(self.keep())?;
        let begun = || -> Result<_, JobError> {
            write_record(&folder, &job).map_err(self.keep())?;
            let log = Log::create(&folder).map_err(self.keep())?;
            Ok((log, exec::begin(start, config).map_err(JobError::Refused)?))
        };
        let (log, command) = match begun() {
            Ok(begun) => begun,
            Err(error) => {
                fs::remove_dir_all(&folder).map_err(self.keep())?;
                return Err(error);
            }
        };
        let (to_command, inputs) = mpsc::channel(4);
        let (progress, seen) = watch::channel(Progress::default());
        let window = Semaphore::new(STDIN_WINDOW);
        let this = Arc::new(Running { job: job.clone(), to_command, window, progress: seen });
        running.insert(number, Arc::clone(&this));
        let (ours, execs) = tokio::io::duplex(PIPE);
        let start = start.clone();
        drop(tokio::spawn(async move {
            let socket = WebSocketStream::from_raw_socket(execs, Role::Server, limits()).await;
            exec::carry(command, &start, socket).await;
        }));
        let recorder = Recorder { jobs: Arc::clone(self), job: this, log, progress };
        drop(tokio::spawn(recorder.run(ours, inputs)));
        Ok(job)
    }

    /// All that are kept, in the order of their starts.
    pub(crate) fn list(&self) -> Result<Vec<Job>, JobError> {
        let running = self.running();
        let numbers = kept(&self.folder).map_err(self.keep())?;
        Ok(numbers.into_iter().filter_map(|number| self.look(number, &running).ok()).collect())
    }

    /// One of them.
    pub(crate) fn show(&self, number: u32) -> Result<Job, JobError> {
        self.look(number, &self.running())
    }

    fn look(&self, number: u32, running: &BTreeMap<u32, Arc<Running>>) -> Result<Job, JobError> {
        let folder = self.of(number);
        let (mut job, output_bytes) = match running.get(&number) {
            Some(running) => (running.job.clone(), running.progress.borrow().written),
            None => {
                let record =
                    fs::read(folder.join(RECORD)).map_err(|_| JobError::Unknown(number))?;
                let mut job: Job =
                    serde_json::from_slice(&record).map_err(|_| JobError::Unknown(number))?;
                // Of an earlier boot, or its recorder's end was not written down.
                if job.state == JobState::Running {
                    job.state = JobState::Lost;
                }
                (job, job_log::end(&folder).unwrap_or_default())
            }
        };
        job.output_bytes = output_bytes;
        job.dropped_bytes = job_log::dropped(&folder).unwrap_or_default();
        Ok(job)
    }

    pub(crate) async fn signal(&self, number: u32, signal: u8) -> Result<(), JobError> {
        let running = self.running().get(&number).cloned();
        match running {
            Some(running) => {
                let sent = running.to_command.send(ToAgent::Signal(signal)).await;
                sent.map_err(|_| JobError::Ended(number))
            }
            None if self.of(number).exists() => Err(JobError::Ended(number)),
            None => Err(JobError::Unknown(number)),
        }
    }

    /// Shows a client what the job wrote and writes, and lets it speak to the command, until either is gone.
    pub(crate) async fn attach<S>(&self, number: u32, follow: bool, socket: WebSocketStream<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let running = self.running().get(&number).cloned();
        let (mut sink, mut frames) = socket.split();
        let Some(ToAgent::Start(start)) = next(&mut frames).await else { return };
        let mut progress = match &running {
            Some(running) => running.progress.clone(),
            None => watch::channel(self.at_its_end(number)).1,
        };
        if let (Some(running), Some(size)) = (&running, start.tty) {
            // One that has ended needs no size.
            drop(running.to_command.send(ToAgent::Resize(size)).await);
        }
        let (to_client, for_client) = mpsc::channel(4);
        let reader = Reader::new(&self.of(number));
        let talk = async {
            // It goes with this, and so ends what is posted.
            let to_client = to_client;
            let listen = async {
                match &running {
                    Some(running) => listen(running, &mut frames, &to_client).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = show(reader, &mut progress, follow, &to_client) => {}
                () = listen => {}
            }
        };
        // To its end, whatever ends first: a frame that is being sent is not taken back.
        let post = async {
            let mut for_client = for_client;
            while let Some(frame) = for_client.recv().await {
                if sink.send(Message::Binary(frame)).await.is_err() {
                    return;
                }
            }
            drop(sink.close().await);
        };
        tokio::join!(talk, post);
    }

    fn at_its_end(&self, number: u32) -> Progress {
        let folder = self.of(number);
        let job = self.look(number, &BTreeMap::new());
        let end = job.map_or(JobState::Lost, |job| job.state);
        Progress { written: job_log::end(&folder).unwrap_or_default(), end: Some(end) }
    }

    /// Removes the oldest of those that have ended.
    fn forget_old(&self, running: &BTreeMap<u32, Arc<Running>>) -> io::Result<()> {
        let mut ended = kept(&self.folder)?;
        ended.retain(|number| !running.contains_key(number));
        // The next one will end, too.
        let old = (ended.len() + 1).saturating_sub(KEPT);
        ended.drain(..old).try_for_each(|number| fs::remove_dir_all(self.of(number)))
    }
}

/// Sends what the job wrote, until it has ended or nobody wants more.
async fn show(
    mut reader: Reader,
    progress: &mut watch::Receiver<Progress>,
    follow: bool,
    to_client: &mpsc::Sender<Bytes>,
) {
    loop {
        let now = *progress.borrow_and_update();
        loop {
            match reader.next(now.written) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if to_client.send(frame).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let message = format!("cannot read what the job wrote: {error}");
                    let refused = FromAgent::Refused(Refused { status: 125, message });
                    drop(to_client.send(refused.encode()).await);
                    return;
                }
            }
        }
        let last = match now.end {
            Some(JobState::Ended { exit, .. }) => FromAgent::Exit(exit),
            Some(_) => FromAgent::Refused(Refused {
                status: 125,
                message:
                    "the guest went off while this job ran: how it would have ended is not known"
                        .to_owned(),
            }),
            None if follow => {
                if progress.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // What there is has been shown.
            None => FromAgent::Exit(Exit { status: 0, timed_out: false, microseconds: 0 }),
        };
        drop(to_client.send(last.encode()).await);
        return;
    }
}

/// Passes on what the client says, until it is gone. Stdin that the command has not room for waits, and what comes after it
/// does not: the client keeps to its window.
async fn listen<S>(
    running: &Running,
    frames: &mut SplitStream<WebSocketStream<S>>,
    to_client: &mpsc::Sender<Bytes>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting: VecDeque<ToAgent> = VecDeque::new();
    loop {
        let wanted = match waiting.front() {
            Some(ToAgent::Stdin(bytes)) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            _ => 0,
        };
        let said = tokio::select! {
            room = running.window.acquire_many(wanted), if !waiting.is_empty() => {
                let Ok(room) = room else { return };
                room.forget();
                waiting.pop_front()
            }
            frame = next(frames) => match frame {
                None | Some(ToAgent::Start(_)) => return,
                Some(ToAgent::Stdin(bytes)) if bytes.len() > STDIN_WINDOW => return,
                Some(frame @ (ToAgent::Stdin(_) | ToAgent::StdinEnd)) => {
                    waiting.push_back(frame);
                    None
                }
                frame => frame,
            },
        };
        let Some(said) = said else { continue };
        let taken = matches!(said, ToAgent::Stdin(_)).then_some(wanted);
        if running.to_command.send(said).await.is_err() {
            // It has ended: what it wrote is still to be shown, to a client that speaks or not.
            while next(frames).await.is_some() {}
            return;
        }
        if let Some(count) = taken {
            // A client that is gone is seen by its frames.
            drop(to_client.send(FromAgent::Taken(count).encode()).await);
        }
    }
}

/// The client of the exec.
struct Recorder {
    jobs: Arc<Jobs>,
    job: Arc<Running>,
    log: Log,
    progress: watch::Sender<Progress>,
}

impl Recorder {
    async fn run(mut self, pipe: DuplexStream, mut inputs: mpsc::Receiver<ToAgent>) {
        let socket = WebSocketStream::from_raw_socket(pipe, Role::Client, limits()).await;
        let (mut sink, mut frames) = socket.split();
        let state = loop {
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(Ok(Message::Binary(bytes))) => {
                        if let Some(exit) = self.take(&bytes) {
                            break JobState::Ended { exit, ended_ms: now_ms() };
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break JobState::Lost,
                },
                Some(input) = inputs.recv() => {
                    if sink.send(Message::Binary(input.encode())).await.is_err() {
                        break JobState::Lost;
                    }
                }
            }
        };
        // Its last frame is answered, which the exec waits for.
        drop(sink.close().await);
        self.end(state);
    }

    fn take(&mut self, bytes: &Bytes) -> Option<Exit> {
        match FromAgent::decode(bytes) {
            Ok(FromAgent::Stdout(_) | FromAgent::Stderr(_)) => match self.log.append(bytes) {
                Ok(written) => self.progress.send_modify(|progress| progress.written = written),
                Err(error) => console::say(&format!(
                    "cannot keep what job {} writes: {error}",
                    self.job.job.number
                )),
            },
            Ok(FromAgent::Taken(count)) => {
                self.job.window.add_permits(usize::try_from(count).unwrap_or_default());
            }
            Ok(FromAgent::Exit(exit)) => return Some(exit),
            Ok(FromAgent::Refused(_)) | Err(_) => {}
        }
        None
    }

    fn end(self, state: JobState) {
        let number = self.job.job.number;
        let job = Job { state, ..self.job.job.clone() };
        if let Err(error) = write_record(&self.jobs.of(number), &job) {
            console::say(&format!("cannot keep how job {number} ended: {error}"));
        }
        self.progress.send_modify(|progress| progress.end = Some(state));
        self.jobs.running().remove(&number);
    }
}

async fn next<S>(frames: &mut SplitStream<WebSocketStream<S>>) -> Option<ToAgent>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match frames.next().await {
            Some(Ok(Message::Binary(bytes))) => return ToAgent::decode(&bytes).ok(),
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(_)) => {}
        }
    }
}

fn limits() -> Option<tokio_tungstenite::tungstenite::protocol::WebSocketConfig> {
    Some(websocket_config())
}

/// Replaced as a whole: a reader sees either.
fn write_record(folder: &Path, job: &Job) -> io::Result<()> {
    let draft = folder.join(".job.json");
    fs::write(&draft, serde_json::to_vec(job)?)?;
    fs::rename(&draft, folder.join(RECORD))
}

/// Their numbers, in order.
fn kept(folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}
