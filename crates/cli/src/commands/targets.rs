//! Verbs on several things at once: in parallel, and the good ones go on when others are wrong.

use std::collections::HashSet;

use banger_api::{Code, Problem};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::commands::DONE;
use crate::context::Context;
use crate::failure::Failure;
use crate::{operation, problem};

/// Does `work` on each of `targets`, and shows what went wrong with which. `work` prints what went well.
pub(crate) async fn each<'a>(
    context: &Context,
    targets: &'a [String],
    work: impl AsyncFn(&'a str, Option<&'a str>) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut seen = HashSet::new();
    let distinct: Vec<&str> =
        targets.iter().map(String::as_str).filter(|target| seen.insert(*target)).collect();
    let named = distinct.len() > 1;
    let all = async {
        let mut running: FuturesUnordered<_> = distinct
            .into_iter()
            .map(|target| {
                let work = &work;
                async move { (target, work(target, named.then_some(target)).await) }
            })
            .collect();
        let mut failed = false;
        while let Some((target, result)) = running.next().await {
            match result {
                Ok(()) => {}
                Err(Failure::Problem(found)) => {
                    problem::show(context, Some(target), &found);
                    failed = true;
                }
                Err(other) => return Err(other),
            }
        }
        if failed { Err(Failure::Shown) } else { Ok(DONE) }
    };
    operation::unless_interrupted(context, all).await
}

/// The path of a VM that the user named by its name, its id or the beginning of one.
pub(crate) fn vm_path(target: &str) -> Result<String, Problem> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if target.is_empty() || target.len() > 63 || !target.bytes().all(allowed) {
        return Err(Problem::new(Code::Invalid, format!("{target:?} is no VM's name or id"))
            .because("both are made of a-z, 0-9 and -, at most 63 of them")
            .remedy("see `banger vm list`"));
    }
    Ok(format!("/v1/vms/{target}"))
}

/// The path of a network that the user named.
pub(crate) fn network_path(name: &str) -> Result<String, Problem> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) {
        return Err(Problem::new(Code::Invalid, format!("{name:?} is no network's name"))
            .because("it is made of a-z, 0-9 and -, at most 63 of them")
            .remedy("see `banger network list`"));
    }
    Ok(format!("/v1/networks/{name}"))
}

/// The path of an image or kernel, whose name may hold slashes: they are one segment of the path.
pub(crate) fn artifact_path(collection: &str, name: &str) -> String {
    format!("/v1/{collection}/{}", name.replace('/', "%2F"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_vm_can_be_called_is_refused_before_the_daemon_is_asked() {
        for target in ["", "..", "Web", "a/b", "a?b", "a b", &"a".repeat(64)] {
            assert!(vm_path(target).is_err(), "{target:?} was taken");
        }
        assert_eq!(vm_path("web-").unwrap(), "/v1/vms/web-");
    }

    #[test]
    fn a_name_with_slashes_stays_one_segment() {
        assert_eq!(artifact_path("images", "example/a:1"), "/v1/images/example%2Fa:1");
    }
}
