//! Images out again: as an OCI archive, with what their records say of their programs.

use std::path::Path;
use std::sync::Arc;

use banger_api::image::{Config, ExportImage, ExportedImage};
use banger_api::{Code, Problem};
use banger_image::Description;
use serde_json::{Map, Value, json};

use super::images::no_image;
use super::{problem, watch};
use crate::daemon::Daemon;
use crate::operations::Operation;
use crate::problems;

impl Daemon {
    /// # Errors
    /// When there is no such image, or the archive cannot be written.
    pub(crate) async fn export_image(
        self: &Arc<Self>,
        request: &ExportImage,
        operation: &Operation,
    ) -> Result<ExportedImage, Problem> {
        let ExportImage { name, path, compress, replace } = request.clone();
        if !path.is_absolute() {
            let message = format!("path: {} is not absolute", path.display());
            return Err(Problem::new(Code::Invalid, message));
        }
        let record =
            self.store.image(&name).map_err(problems::store)?.ok_or_else(|| no_image(&name))?;
        let told = watch(operation);
        let operation = operation.clone();
        self.blocking(move |daemon| {
            let description = Description {
                name: name.to_string(),
                created: record.created_at.to_string(),
                config: config(&record.config),
            };
            // It is opened before anything else: deleting the image meanwhile takes its name only.
            let image = daemon.image_path(&record.digest);
            let done =
                banger_image::export_image(&image, &path, &description, compress, replace, &told)
                    .map_err(|error| problem(&error, error.trouble(), error.remedy()))
                    .map_err(|problem| cannot_write(problem, &path))?;
            if done.sockets > 0 {
                operation
                    .note(format!("{} sockets are left out: no archive has them", done.sockets));
            }
            Ok(ExportedImage {
                name,
                path,
                size_bytes: done.size_bytes,
                manifest: done.manifest,
                diff_id: done.diff_id,
                entries: done.entries,
            })
        })
        .await?
    }
}

/// An installation's daemon sees homes and the system read-only.
fn cannot_write(problem: Problem, path: &Path) -> Problem {
    let is_read_only = problem.causes.iter().any(|cause| cause.contains("Read-only file system"));
    if is_read_only && problem.remedy.is_none() {
        return problem.remedy(format!(
            "the daemon may not write to {}: export to /var/tmp and move the file",
            path.parent().unwrap_or(path).display()
        ));
    }
    problem
}

/// In the words of the OCI image specification ("Image Configuration"); what the image does not say is left out.
fn config(config: &Config) -> Value {
    let Config { entrypoint, cmd, env, working_dir, user, stop_signal, exposed_ports, labels } =
        config;
    let list = |list: &[String]| (!list.is_empty()).then(|| json!(list));
    let ports: Map<String, Value> =
        exposed_ports.iter().map(|port| (port.clone(), json!({}))).collect();
    let fields = [
        ("User", user.as_ref().map(|user| json!(user))),
        ("ExposedPorts", (!ports.is_empty()).then_some(Value::Object(ports))),
        ("Env", list(env)),
        ("Entrypoint", list(entrypoint)),
        ("Cmd", list(cmd)),
        ("WorkingDir", working_dir.as_ref().map(|folder| json!(folder))),
        ("Labels", (!labels.is_empty()).then(|| json!(labels))),
        ("StopSignal", stop_signal.as_ref().map(|signal| json!(signal))),
    ];
    let said = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(said.collect())
}

#[cfg(test)]
mod tests {
    use banger_registry::{ImageConfig, Limits};

    use super::*;

    #[test]
    fn what_an_image_says_is_read_again_from_its_export() {
        let said = Config {
            entrypoint: vec!["/init".into()],
            cmd: vec!["a".into(), "b c".into()],
            env: vec!["A=b".into()],
            working_dir: Some("/srv".into()),
            user: Some("1000:50".into()),
            stop_signal: Some("SIGQUIT".into()),
            exposed_ports: vec!["80/tcp".into(), "9/udp".into()],
            labels: [("a".to_owned(), "b".to_owned())].into(),
        };
        let document = json!({
            "architecture": "amd64", "os": "linux", "config": config(&said),
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        let bytes = serde_json::to_vec(&document).unwrap();
        let read = ImageConfig::parse(&bytes, &Limits::default()).unwrap();
        assert_eq!(super::super::pull::config(read), said);
        assert_eq!(config(&Config::default()), json!({}));
    }
}
