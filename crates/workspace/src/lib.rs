//! A git repository carried into a guest, and what was done to it there carried back.
//!
//! ```text
//! repo ─► plan ─► folder (.git: shallow history, index, origin)   ─► tar ─► the guest's /root/repo
//!            └──► files as they are in the working tree ──────────┘
//! guest ─► what its git is asked, and what the answers mean
//! receive ◄─ a pack of the commits that were made there ─► a branch here
//! ```
//! The host's repository is data: nothing of its working tree, index, refs and configuration is written but the branch that
//! [`receive`] makes, and no program that its configuration names is started (`git.rs` says how). Blocking; no network.

mod folder;
mod git;
pub mod guest;
mod history;
mod plan;
mod receive;
mod repo;
mod scratch;
mod send;

pub use plan::{Choice, File, Plan};
pub use receive::{Branch, receive};
pub use repo::Repo;
pub use scratch::scratch;
pub use send::Sent;
