//! `banger vm ssh`: the system's ssh, with what it needs to know of this VM.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use banger_api::vm::{State, Vm};
use banger_api::{Code, Problem};

use crate::commands::targets::vm_path;
use crate::context::Context;
use crate::failure::Failure;
use crate::ssh_files::SshFiles;
use crate::{completion, programs};

/// Log in to a running VM by ssh
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The VM's image needs no ssh server. Words after -- are ssh's own: its options, then a command, which the user's shell in \
the VM reads. Exits with ssh's status, which is the command's. `banger ssh-config` has the same for scp, rsync and git.

Examples:
  banger vm ssh web                                  a shell, as root
  banger vm ssh web -- -l dev                        as another user
  banger vm ssh web -- -L 8080:localhost:80 -N       a port
  banger vm ssh web -- 'cd /srv && ls'               one command")]
pub(crate) struct Args {
    /// Its name or id, or the beginning of one
    #[arg(add = completion::vm_names())]
    vm: String,
    /// Options for ssh, and a command
    #[arg(last = true, value_name = "ARG")]
    args: Vec<OsString>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let path = vm_path(&args.vm)?;
    let client = context.client().await?;
    let vm: Vm = client.get(&path).await?;
    if vm.state != State::Running {
        let problem = Problem::new(Code::WrongState, format!("VM {} is {}", vm.name, vm.state));
        return Err(problem.remedy(format!("`banger vm start {}`", vm.name)).into());
    }
    let files = SshFiles::of(&client).await?;
    let config = files.write()?;
    let program = programs::find("ssh").ok_or_else(|| {
        Problem::new(Code::Missing, "this host has no ssh")
            .remedy("install it (Debian: `apt install openssh-client`), or use `banger vm exec`")
    })?;
    let mut ssh = programs::new(&program);
    ssh.arg("-F").arg(config).arg(format!("{}.{}", vm.name, files.access.zone)).args(args.args);
    // Returns only if it cannot be run.
    let error = ssh.exec();
    Err(Problem::new(Code::Internal, format!("cannot run {}", program.display()))
        .cause(&error)
        .into())
}
