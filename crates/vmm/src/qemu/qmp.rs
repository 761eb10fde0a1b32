//! QEMU's control socket as a client speaks it: a line of JSON each way (docs/interop/qmp-spec.rst of QEMU), each command
//! with a deadline. QEMU runs what a stranger gave us, so what it answers is bounded.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use crate::VmmError;

/// How long QEMU has for an answer. Its main loop answers, which a guest does not hold up for long.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// No answer of QEMU's to a command of ours is longer, in bytes.
const LONGEST_ANSWER: u64 = 64 << 10;
/// No sentence of QEMU's is shown longer, in characters.
const LONGEST_FAULT: usize = 1000;

/// QEMU talks to one client of this socket at a time: the next one's greeting comes when this is gone.
#[derive(Debug)]
pub(super) struct Qmp(BufReader<tokio::net::UnixStream>);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A line of QEMU's. Events, and its greeting, have none of these.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Fault>,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    desc: String,
}

impl Qmp {
    /// Takes QEMU's greeting, and asks for nothing beyond the protocol's core.
    pub(super) async fn connect(stream: UnixStream) -> Result<Self, VmmError> {
        let command = "its greeting";
        let begun = async {
            stream.set_nonblocking(true)?;
            let mut qmp = Self(BufReader::new(tokio::net::UnixStream::from_std(stream)?));
            while qmp.line().await?.greeting.is_none() {}
            Ok::<_, Cause>(qmp)
        };
        let mut qmp = in_time(command, begun).await?;
        qmp.execute::<Value>("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// A command without arguments, and what it returns.
    pub(super) async fn execute<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
    ) -> Result<T, VmmError> {
        let asked = async {
            let line = json!({ "execute": command }).to_string() + "\r\n";
            self.0.write_all(line.as_bytes()).await?;
            loop {
                let answer = self.line().await?;
                if let Some(Fault { desc }) = answer.error {
                    return Ok(Err(desc));
                }
                if let Some(value) = answer.value {
                    return Ok(Ok(value));
                }
            }
        };
        match in_time(command, asked).await? {
            Ok(value) => serde_json::from_value(value)
                .map_err(|cause| VmmError::QemuBroken { command, cause: cause.into() }),
            Err(fault) => {
                let fault = fault.chars().take(LONGEST_FAULT).collect();
                Err(VmmError::QemuRefused { command, fault })
            }
        }
    }

    async fn line(&mut self) -> Result<Answer, Cause> {
        let mut line = Vec::new();
        (&mut self.0).take(LONGEST_ANSWER).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') => Ok(serde_json::from_slice(&line)?),
            Some(_) if line.len() as u64 == LONGEST_ANSWER => {
                Err(format!("a line is longer than {LONGEST_ANSWER} bytes").into())
            }
            _ => Err("it hung up".into()),
        }
    }
}

async fn in_time<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, Cause>>,
) -> Result<T, VmmError> {
    match timeout(ANSWER_DEADLINE, work).await {
        Ok(done) => done.map_err(|cause| VmmError::QemuBroken { command, cause }),
        Err(_) => Err(VmmError::QemuLate { command, seconds: ANSWER_DEADLINE.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use super::*;

    /// A QEMU that greets, then answers each line that it reads with the next of these.
    fn answering(answers: [&'static str; 2]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            theirs.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
            let reader = std::io::BufReader::new(theirs.try_clone().unwrap());
            for (answer, line) in answers.iter().zip(reader.lines()) {
                line.unwrap();
                // A client that has had enough may be gone.
                theirs.write_all(answer.as_bytes()).ok();
            }
        });
        ours
    }

    async fn stop(answer: &'static str) -> Result<Value, VmmError> {
        Qmp::connect(answering([CAPABLE, answer])).await?.execute("stop").await
    }

    const CAPABLE: &str = "{\"return\": {}}\r\n";

    #[tokio::test]
    async fn what_happens_beside_an_answer_is_no_answer() {
        let answer = "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"return\": {}}\r\n";
        stop(answer).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_asked_and_why_not() {
        let answer = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n";
        let error = stop(answer).await.unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses `stop`: not now");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_or_says_rubbish_says_at_which_command() {
        for answer in ["{\"ret", "rubbish\r\n"] {
            let error = stop(answer).await.unwrap_err().to_string();
            assert_eq!(error, "the connection to QEMU broke at `stop`");
        }
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_not_read_to_it() {
        let endless: &'static str = String::leak("x".repeat(1 << 20));
        let error = stop(endless).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "a line is longer than 65536 bytes");
    }
}
