//! What goes where: `cp -r`'s rules, decided from what is at both ends. Pure.

use banger_api::files::FoundKind;
use banger_api::{Code, Problem};

/// Where it lands: in this folder, under this name; without one, a folder's content lands in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) folder: Vec<u8>,
    pub(super) top: Option<Vec<u8>>,
}

impl Plan {
    /// The path of what is made.
    pub(super) fn path(&self) -> Vec<u8> {
        match &self.top {
            None => self.folder.clone(),
            Some(top) => joined(&self.folder, top),
        }
    }
}

/// Decides. `there` is what is at `to`, links followed; `None` if nothing is.
pub(super) fn plan(
    from: &[u8],
    kind: FoundKind,
    to: &[u8],
    there: Option<FoundKind>,
) -> Result<Plan, Problem> {
    let refuse = |message: String| Problem::new(Code::Invalid, message);
    let (source, target) = (shown(from), shown(to));
    match (kind, there) {
        (FoundKind::Other, _) => Err(refuse(format!("{source} is neither a file nor a folder"))),
        (_, Some(FoundKind::Folder)) => {
            // `SRC/.` is what is in it; and what has no name of its own can be nothing else.
            let top = own_name(from).map(<[u8]>::to_vec);
            Ok(Plan { folder: to.to_vec(), top })
        }
        (FoundKind::Folder, Some(_)) => Err(refuse(format!(
            "cannot copy the folder {source} over {target}, which is no folder"
        ))),
        (FoundKind::File, Some(FoundKind::Other)) => {
            Err(refuse(format!("cannot copy over {target}, which is not a file")))
        }
        (FoundKind::File, None) if to.ends_with(b"/") => {
            let problem = Problem::new(Code::NotFound, format!("there is no folder {target}"));
            Err(problem.remedy("make it first, or leave the `/` at its end out to make a file"))
        }
        (_, None | Some(FoundKind::File)) => {
            let name = own_name(to).ok_or_else(|| {
                Problem::new(Code::NotFound, format!("there is no folder {target}"))
            })?;
            let folder = match &stripped(to)[..stripped(to).len() - name.len()] {
                b"" => b"",
                b"/" => &b"/"[..],
                above => stripped(above),
            };
            Ok(Plan { folder: folder.to_vec(), top: Some(name.to_vec()) })
        }
    }
}

/// The last part of a path; none for `/`, `.`, `..` and what ends in `/.` or `/..`.
pub(super) fn own_name(path: &[u8]) -> Option<&[u8]> {
    let name = stripped(path).rsplit(|&byte| byte == b'/').next()?;
    (!matches!(name, b"" | b"." | b"..")).then_some(name)
}

/// Without the slashes at its end.
fn stripped(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(0, |at| at + 1);
    &path[..end]
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    match folder {
        b"" => name.to_vec(),
        folder if folder.ends_with(b"/") => [folder, name].concat(),
        folder => [folder, b"/", name].concat(),
    }
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    use FoundKind::{File, Folder, Other};

    fn planned(from: &str, kind: FoundKind, to: &str, there: Option<FoundKind>) -> String {
        match plan(from.as_bytes(), kind, to.as_bytes(), there) {
            Ok(plan) => format!(
                "{} in {:?}",
                plan.top.map_or("content".into(), |top| shown(&top)),
                shown(&plan.folder)
            ),
            Err(problem) => problem.message,
        }
    }

    #[test]
    fn what_lands_where_is_as_with_cp() {
        for (from, kind, to, there, expected) in [
            ("a/f", File, "/b", None, "b in \"/\""),
            ("a/f", File, "/c/b", None, "b in \"/c\""),
            ("a/f", File, "b", None, "b in \"\""),
            ("a/f", File, "/c/b", Some(File), "b in \"/c\""),
            ("a/f", File, "/c/b", Some(Folder), "f in \"/c/b\""),
            ("a/f", File, "", Some(Folder), "f in \"\""),
            ("a/f", File, "/c/b/", None, "there is no folder /c/b/"),
            (
                "a/f",
                File,
                "/dev/null",
                Some(Other),
                "cannot copy over /dev/null, which is not a file",
            ),
            ("a/d", Folder, "/c/b", None, "b in \"/c\""),
            ("a/d/.", Folder, "/c//b//", None, "b in \"/c\""),
            ("a/d", Folder, "/c/b", Some(Folder), "d in \"/c/b\""),
            ("a/d/", Folder, "/c/b", Some(Folder), "d in \"/c/b\""),
            ("a/d/.", Folder, "/c/b", Some(Folder), "content in \"/c/b\""),
            (".", Folder, "/c/b", Some(Folder), "content in \"/c/b\""),
            ("/", Folder, "b", Some(Folder), "content in \"b\""),
            ("d", Folder, "f", Some(File), "cannot copy the folder d over f, which is no folder"),
            ("/dev/tty", Other, "f", None, "/dev/tty is neither a file nor a folder"),
            ("a/f", File, "/none/..", None, "there is no folder /none/.."),
        ] {
            assert_eq!(planned(from, kind, to, there), expected, "{from} {to}");
        }
    }

    #[test]
    fn the_path_of_what_is_made_is_whole() {
        let path = |folder: &str, top: Option<&str>| {
            let plan = Plan { folder: folder.into(), top: top.map(Into::into) };
            shown(&plan.path())
        };
        assert_eq!(path("/", Some("b")), "/b");
        assert_eq!(path("/c", Some("b")), "/c/b");
        assert_eq!(path("", Some("b")), "b");
        assert_eq!(path("/c", None), "/c");
    }
}
