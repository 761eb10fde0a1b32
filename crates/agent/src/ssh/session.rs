//! What runs on a session's channel: a command by the user's shell, a login shell, or the server of the user's files; with
//! a terminal if one was asked for. Users, folders and environments are those of an exec.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Instant;

use banger_api::exec::{FromAgent, Refused, Start, TerminalSize, Word};
use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Pty, Sig};
use rustix::process::{Pid, Signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::connection::Guest;
use super::flow::{Inbox, Said};
use super::forwards::{Forwards, LentAgent};
use crate::exec::{self, Command, Input, signal_group, winsize};
use crate::spawn::{self, Program};
use crate::users;

/// What a client may set; sshd has no bound, and its client sends a handful.
const MOST_VARIABLES: usize = 128;

/// Data of a channel that is stderr (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// What to run.
#[derive(Debug)]
pub(super) enum What {
    Shell,
    /// A line for the user's shell.
    Command(Vec<u8>),
    Files,
}

/// A session that runs nothing yet.
#[derive(Debug)]
pub(super) struct Session {
    channel: ChannelWriteHalf<Msg>,
    inbox: Inbox,
    environment: Vec<(Word, Word)>,
    terminal: Option<(TerminalSize, Vec<(Pty, u32)>)>,
    lends_agent: bool,
}

/// One that does, as it is reached beside its stdin.
#[derive(Debug)]
pub(super) struct Started {
    pid: Pid,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Started {
    pub(super) fn resize(&self, columns: u32, rows: u32) {
        if let Some(terminal) = &self.terminal {
            // A terminal that is gone needs no size.
            rustix::termios::tcsetwinsize(terminal, winsize(size(columns, rows))).ok();
        }
    }

    pub(super) fn signal(&self, signal: &Sig) {
        if let Some(signal) = number(signal) {
            signal_group(self.pid, signal);
        }
    }
}

impl Session {
    pub(super) fn new(channel: ChannelWriteHalf<Msg>, inbox: Inbox) -> Self {
        let (environment, terminal, lends_agent) = (Vec::new(), None, false);
        Self { channel, inbox, environment, terminal, lends_agent }
    }

    /// Whether the variable is taken.
    pub(super) fn set(&mut self, name: &str, value: &str) -> bool {
        let (Ok(word), Ok(value)) = (Word::new(name), Word::new(value)) else { return false };
        let is_name = !name.is_empty() && !name.contains('=');
        let takes = is_name && self.environment.len() < MOST_VARIABLES;
        if takes {
            self.environment.push((word, value));
        }
        takes
    }

    pub(super) fn at_terminal(
        &mut self,
        kind: &str,
        columns: u32,
        rows: u32,
        modes: &[(Pty, u32)],
    ) {
        if !kind.is_empty() {
            self.set("TERM", kind);
        }
        self.terminal = Some((size(columns, rows), modes.to_vec()));
    }

    /// The client's agent of keys is reached from this session, as it asked for.
    pub(super) fn lend_agent(&mut self) -> bool {
        self.lends_agent = true;
        true
    }

    /// Starts it, and sees to it from now on. One that cannot be started says so on its stderr.
    pub(super) fn start(
        mut self,
        what: What,
        user: &str,
        guest: &Guest,
        forwards: &Forwards,
        handle: Handle,
        work: mpsc::Sender<()>,
    ) -> Option<Started> {
        let lent = if self.lends_agent {
            match forwards.lend_agent(user, &handle) {
                Ok(lent) => Some(lent),
                Err(error) => {
                    crate::console::say(&format!("cannot lend an ssh agent: {error}"));
                    None
                }
            }
        } else {
            None
        };
        if let Some(lent) = &lent {
            self.set("SSH_AUTH_SOCK", lent.path());
        }
        let command = self.program(what, user, guest).and_then(|program| {
            let started = spawn::start(&program).map_err(|error| exec::refuse_start(&error))?;
            Command::new(started, Instant::now())
                .map_err(|error| Refused { status: 125, message: error.to_string() })
        });
        let (channel, inbox) = (self.channel, self.inbox);
        match command {
            Ok(command) => {
                let (pid, terminal) = (command.pid, command.outputs.terminal().cloned());
                drop(tokio::spawn(follow(command, channel, inbox, handle, lent, work)));
                Some(Started { pid, terminal })
            }
            Err(refused) => {
                drop(tokio::spawn(refuse(refused, channel)));
                None
            }
        }
    }

    fn program(&self, what: What, user: &str, guest: &Guest) -> Result<Program, Refused> {
        let refuse = |message: String| Refused { status: 125, message };
        let found = users::find(Some(user)).map_err(|error| refuse(error.to_string()))?;
        let is_folder = |folder: &&str| Path::new(folder).is_dir();
        let folder = Some(found.home.as_str()).filter(is_folder).unwrap_or("/");
        let word = |text: &str| Word::new(text).map_err(|error| refuse(error.to_string()));
        let mut environment = self.environment.clone();
        environment.extend(variables(guest));
        let mut start = Start {
            argv: Vec::new(),
            env: environment,
            cwd: Some(word(folder)?),
            user: Some(user.to_owned()),
            tty: self.terminal.as_ref().map(|(size, _)| *size),
            no_stdin: false,
            timeout_ms: None,
        };
        let program = match what {
            What::Shell => exec::prepare(&start, &guest.image)?,
            What::Command(line) => {
                let (shell, _) = exec::login_shell(&found, Path::new(folder))?;
                let shell = shell.to_string_lossy();
                let line = Word::new(line).map_err(|error| refuse(error.to_string()))?;
                start.argv = vec![word(&shell)?, word("-c")?, line];
                exec::prepare(&start, &guest.image)?
            }
            What::Files => {
                start.argv = vec![word(spawn::OURSELVES)?, word("sftp")?];
                start.tty = None;
                let program = exec::prepare(&start, &guest.image)?;
                Program { arg0: "banger-sftp".into(), ..program }
            }
        };
        let modes = self.terminal.as_ref().map(|(_, modes)| modes.clone()).unwrap_or_default();
        Ok(Program { modes, ..program })
    }
}

/// What sshd sets, by which programs know that they are looked at from afar.
fn variables(guest: &Guest) -> Vec<(Word, Word)> {
    let connection = match &guest.ends {
        Some((client, us)) => {
            format!("{} {} {} {}", client.ip(), client.port(), us.ip(), us.port())
        }
        // As sshd has it, where there is no address.
        None => "UNKNOWN 65535 UNKNOWN 65535".to_owned(),
    };
    let name = Word::new("SSH_CONNECTION").ok();
    name.zip(Word::new(connection).ok()).into_iter().collect()
}

/// Carries a command's bytes until it has ended, or its client has.
async fn follow(
    mut command: Command,
    channel: ChannelWriteHalf<Msg>,
    mut inbox: Inbox,
    handle: Handle,
    lent: Option<LentAgent>,
    work: mpsc::Sender<()>,
) {
    let (outbox, mut posted) = mpsc::channel(4);
    let mut input = std::mem::replace(&mut command.input, Input::Closed);
    let post = async {
        while let Some(frame) = posted.recv().await {
            match frame {
                FromAgent::Stdout(bytes) => channel.data_bytes(bytes).await?,
                FromAgent::Stderr(bytes) => channel.extended_data_bytes(STDERR, bytes).await?,
                _ => {}
            }
        }
        Ok::<(), russh::Error>(())
    };
    let run = async {
        let (_, status) = command.run(&outbox, None).await;
        drop(outbox);
        Ok(status)
    };
    let feed = async {
        while let Some(said) = inbox.next().await {
            match said {
                Said::Data(bytes) => input.write(&bytes).await,
                Said::End => input.end().await,
            }
        }
    };
    let ended = tokio::select! {
        ended = async { tokio::try_join!(run, post) } => ended.ok(),
        () = feed => None,
    };
    match ended {
        // The client has closed the channel meanwhile: then it needs none of it.
        Some((status, ())) => drop(say_end(status, &channel, &handle).await),
        None => command.let_go().await,
    }
    if let Some(lent) = lent {
        lent.take_back().await;
    }
    drop(work);
}

/// As sshd says how a command has ended.
async fn say_end(
    status: Option<ExitStatus>,
    channel: &ChannelWriteHalf<Msg>,
    handle: &Handle,
) -> Result<(), russh::Error> {
    channel.eof().await?;
    match status.map(|status| (status.code(), status.signal())) {
        Some((Some(code), _)) => channel.exit_status(u32::try_from(code).unwrap_or(255)).await?,
        Some((None, Some(signal))) => {
            let (id, signal) = (channel.id(), name(signal));
            let none = String::new;
            let said = handle.exit_signal_request(id, signal, false, none(), none()).await;
            said.map_err(|()| russh::Error::SendError)?;
        }
        _ => channel.exit_status(255).await?,
    }
    channel.close().await
}

async fn refuse(refused: Refused, channel: ChannelWriteHalf<Msg>) {
    let said = async {
        let line = Bytes::from(format!("banger: {}\r\n", refused.message));
        channel.extended_data_bytes(STDERR, line).await?;
        channel.eof().await?;
        channel.exit_status(u32::from(refused.status)).await?;
        channel.close().await
    };
    // A client that has left needs not know.
    drop::<Result<(), russh::Error>>(said.await);
}

fn size(columns: u32, rows: u32) -> TerminalSize {
    let number = |number| u16::try_from(number).unwrap_or(u16::MAX);
    TerminalSize { rows: number(rows), columns: number(columns) }
}

/// The signals that ssh has names for (RFC 4254, 6.9).
const SIGNALS: [(Sig, Signal); 12] = [
    (Sig::ABRT, Signal::ABORT),
    (Sig::ALRM, Signal::ALARM),
    (Sig::FPE, Signal::FPE),
    (Sig::HUP, Signal::HUP),
    (Sig::ILL, Signal::ILL),
    (Sig::INT, Signal::INT),
    (Sig::KILL, Signal::KILL),
    (Sig::PIPE, Signal::PIPE),
    (Sig::QUIT, Signal::QUIT),
    (Sig::SEGV, Signal::SEGV),
    (Sig::TERM, Signal::TERM),
    (Sig::USR1, Signal::USR1),
];

fn number(signal: &Sig) -> Option<Signal> {
    match signal {
        Sig::Custom(name) if name == "USR2" => Some(Signal::USR2),
        _ => {
            let same = |name: &Sig| std::mem::discriminant(name) == std::mem::discriminant(signal);
            SIGNALS.iter().find(|(name, _)| same(name)).map(|(_, number)| *number)
        }
    }
}

fn name(number: i32) -> Sig {
    let found = SIGNALS.iter().find(|(_, signal)| signal.as_raw() == number);
    match (found, number) {
        (Some((name, _)), _) => name.clone(),
        (None, 12) => Sig::Custom("USR2".to_owned()),
        (None, _) => Sig::Custom(format!("{number}@banger")),
    }
}
