//! How an error looks: what failed, why, what to do next, and the operation's id for the logs.

use banger_api::Problem;
use serde::Serialize;

use crate::context::{Context, Format};
use crate::{out, terminal};

/// A problem as `--format json` writes it to stderr: one line, with the target it is about if a verb has several.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(flatten)]
    problem: &'a Problem,
}

pub(crate) fn show(context: &Context, target: Option<&str>, problem: &Problem) {
    let text = match context.format {
        Format::Human => human(target, problem, terminal::stderr_has_colour()),
        Format::Json => {
            let line = serde_json::to_string(&Line { target, problem });
            line.expect("a problem is plain data, which always has a JSON form") + "\n"
        }
    };
    context.progress.suspend(|| out::stderr(&text));
}

fn human(target: Option<&str>, problem: &Problem, colour: bool) -> String {
    let mut text =
        if colour { "\x1b[1;31merror:\x1b[0m ".to_owned() } else { "error: ".to_owned() };
    if let Some(target) = target.filter(|target| !problem.message.contains(*target)) {
        text += &format!("{target}: ");
    }
    text += &problem.message;
    text.push('\n');
    for cause in &problem.causes {
        // A cause may be a text of many lines, such as the end of a guest's console.
        for line in cause.lines() {
            text += &format!("  {line}\n");
        }
    }
    if let Some(remedy) = &problem.remedy {
        text += &format!("try: {remedy}\n");
    }
    if let Some(operation) = &problem.operation {
        text += &format!("operation {operation}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use banger_api::{Code, OperationId};

    use super::*;

    fn problem() -> Problem {
        Problem::new(Code::Guest, "cannot start web")
            .because("the guest's kernel did not boot")
            .because("last lines:\nKernel panic")
            .remedy("see `banger vm logs web`")
            .operation(OperationId::parse("0123abcd").unwrap())
    }

    #[test]
    fn a_problem_shows_what_why_the_remedy_and_the_operation() {
        let expected = "error: cannot start web
  the guest's kernel did not boot
  last lines:
  Kernel panic
try: see `banger vm logs web`
operation 0123abcd
";
        assert_eq!(human(None, &problem(), false), expected);
    }

    #[test]
    fn the_target_is_named_once() {
        assert!(human(Some("web"), &problem(), false).starts_with("error: cannot start web\n"));
        assert!(human(Some("db"), &problem(), false).starts_with("error: db: cannot start web\n"));
    }
}
