//! QEMU's monitor: JSON commands, their answers, and events, a line each (QEMU's QMP specification).

use std::collections::VecDeque;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::programs::Talk;

/// What a command may take: QEMU answers at once, but may have to wait for a busy machine's processor.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Qmp {
    talk: Talk,
    events: VecDeque<Value>,
    over: bool,
}

impl Qmp {
    /// Greets a QEMU that has just been started.
    pub(super) fn begin(talk: Talk) -> Result<Self, Failure> {
        let mut qmp = Self { talk, events: VecDeque::new(), over: false };
        qmp.next(Instant::now() + ANSWER, "its greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Failure> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.talk.say(&line).map_err(|error| {
            Failure::new(format!("cannot tell QEMU to {command}")).cause(&error)
        })?;
        let until = Instant::now() + ANSWER;
        loop {
            let mut message = self.next(until, command)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            } else {
                return Err(Failure::new(format!("QEMU refused to {command}"))
                    .because(message["error"]["desc"].as_str().unwrap_or_default()));
            }
        }
    }

    /// Waits for an event, and forgets those before it.
    pub(super) fn wait(
        &mut self,
        what: &str,
        most: Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let until = Instant::now() + most;
        loop {
            let message = match self.events.pop_front() {
                Some(event) => event,
                None => self.next(until, what)?,
            };
            if is_it(&message) {
                return Ok(message);
            }
        }
    }

    /// Whether QEMU has ended, or does within `most`.
    pub(super) fn is_over(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while !self.over {
            match self.talk.hear(until) {
                Ok(line) => self.events.extend(serde_json::from_str(&line)),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => self.over = true,
            }
        }
        true
    }

    /// Its end, by force if it has not ended.
    pub(super) fn end(self) {
        self.talk.end();
    }

    fn next(&mut self, until: Instant, what: &str) -> Result<Value, Failure> {
        match self.talk.hear(until) {
            Ok(line) => serde_json::from_str(&line).map_err(|error| {
                Failure::new(format!("QEMU said {line:?}, which is no JSON")).cause(&error)
            }),
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(format!("waited in vain for QEMU: {what}")))
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                Err(Failure::new(format!("QEMU ended while we waited for it: {what}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::Call;

    /// Says what QEMU would: the greeting, and these lines for each line that it is told after that.
    fn qemu(answers: &str) -> Result<Qmp, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let script =
            format!("echo '{{\"QMP\": {{}}}}'; read line; echo '{{\"return\": {{}}}}'\n{answers}");
        let call = Call::new("sh").args(["-c", &script]);
        Qmp::begin(call.talk(&folder.path().join("errors")).unwrap())
    }

    #[test]
    fn events_that_come_before_an_answer_are_kept_for_whoever_waits() {
        let mut qmp = qemu(
            "read line; echo '{\"event\": \"A\"}'; echo '{\"event\": \"B\"}'; echo '{\"return\": 7}'; read line",
        )
        .unwrap();
        assert_eq!(qmp.execute("go", json!({})).unwrap(), json!(7));
        let event = qmp.wait("b", Duration::from_secs(10), |event| event["event"] == "B").unwrap();
        assert_eq!(event["event"], "B");
        assert!(!qmp.is_over(Duration::from_millis(10)));
        qmp.end();
    }

    #[test]
    fn a_refusal_is_told_in_qemus_words_and_its_end_is_noticed() {
        let mut qmp = qemu("read line; echo '{\"error\": {\"desc\": \"no such disk\"}}'").unwrap();
        let failure = qmp.execute("go", json!({})).unwrap_err();
        assert_eq!(failure.causes(), ["no such disk"]);
        assert!(qmp.is_over(Duration::from_secs(10)));
        let failure = qmp.wait("x", Duration::from_secs(10), |_| true).unwrap_err();
        assert!(failure.to_string().starts_with("QEMU ended"), "{failure}");
        qmp.end();
    }
}
