//! Follows the events of long work to its end.

use banger_api::client::{Client, Events};
use banger_api::operation::Event;
use banger_api::{Code, OperationId, Problem};
use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::failure::Failure;
use crate::progress::Line;
use crate::signals::Signals;

/// Long work that has begun.
#[derive(Debug)]
pub(crate) struct Work {
    events: Events,
    /// Known from the first event on.
    pub(crate) operation: Option<OperationId>,
}

impl Work {
    /// Asks the daemon to begin.
    pub(crate) async fn begin(
        client: &Client,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Self, Problem> {
        Ok(Self { events: client.events(method, path, body).await?, operation: None })
    }

    /// The result; `line` shows how it comes about. The stream stays open, so that this may be the lease of a VM.
    pub(crate) async fn result<T: DeserializeOwned>(
        &mut self,
        line: &mut Line,
    ) -> Result<T, Problem> {
        while let Some(event) = self.events.next().await.map_err(|problem| self.name(problem))? {
            line.show(&event);
            match event {
                Event::Started { operation } => self.operation = Some(operation),
                Event::Done { result, .. } => {
                    return serde_json::from_value(result).map_err(|error| {
                        self.name(
                            Problem::new(
                                Code::Daemon,
                                "the daemon's result is not what was asked for",
                            )
                            .cause(&error),
                        )
                    });
                }
                Event::Failed { problem } => return Err(self.name(problem)),
                Event::Stage { .. }
                | Event::Progress { .. }
                | Event::Part { .. }
                | Event::Log { .. }
                | Event::Note { .. } => {}
            }
        }
        Err(self.name(
            Problem::new(Code::Daemon, "the daemon ended before it said how the work went")
                .remedy("see `banger daemon status` and `banger vm list`"),
        ))
    }

    fn name(&self, problem: Problem) -> Problem {
        match (&problem.operation, &self.operation) {
            (None, Some(operation)) => problem.operation(operation.clone()),
            _ => problem,
        }
    }
}

/// Begins work on one thing and follows it to its result.
pub(crate) async fn follow<T: DeserializeOwned>(
    context: &Context,
    client: &Client,
    subject: Option<&str>,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, Problem> {
    let mut work = Work::begin(client, method, path, body).await?;
    let mut line = context.progress.line(subject);
    let result = work.result(&mut line).await;
    line.end();
    result
}

/// `work`, which a signal leaves to the daemon: long work never dies with its client, and the user is told so.
pub(crate) async fn unless_interrupted<T>(
    context: &Context,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let result = Signals::listen()?.unless(work).await;
    if let Err(Failure::Signal(_)) = result {
        context.hint("interrupted; what the daemon has begun, it finishes");
    }
    result
}
