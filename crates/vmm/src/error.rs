//! Why a VMM did not take its machine.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("Firecracker refuses {call} with status {status}: {fault}")]
    Refused { call: String, status: u16, fault: String },
    #[error("the connection to Firecracker broke at {call}")]
    Broken {
        call: String,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("Firecracker did not answer {call} within {seconds} s")]
    Late { call: String, seconds: u64 },
    #[error("what Firecracker answers to {call} is not understood")]
    Answer {
        call: String,
        #[source]
        cause: serde_json::Error,
    },
    #[error("QEMU refuses `{command}`: {fault}")]
    QemuRefused { command: &'static str, fault: String },
    #[error("the connection to QEMU broke at `{command}`")]
    QemuBroken {
        command: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("QEMU did not answer `{command}` within {seconds} s")]
    QemuLate { command: &'static str, seconds: u64 },
    #[error(
        "Firecracker cannot listen at {}, which is longer than the {most} bytes that the path of a unix socket may have",
        path.display()
    )]
    PathTooLong { path: PathBuf, most: usize },
}
