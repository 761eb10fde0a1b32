//! VMs' way out where nobody may make devices: by passt, for those with `--nat`, on QEMU. It is there from a VM's start to its stop.

use std::sync::Arc;

use banger_api::{Code, Egress, Problem};
use banger_host::{Claim, command, user_network};
use banger_store::VmRecord;
use banger_vmm::UserNetwork;

use crate::daemon::Daemon;
use crate::networks::{flag_of, no_network};
use crate::operations::Operation;
use crate::{ledger, problems};

/// What gives VMs all of it.
const INSTALL: &str = "`sudo banger system install --owner USER`";

/// Why a VM cannot be let out here by passt, and what to do about it.
#[derive(Debug)]
pub(crate) struct NoUserNetwork {
    pub(crate) why: String,
    pub(crate) remedy: String,
}

impl Daemon {
    /// Whether VMs without a network device are let out by passt where they have `--nat`.
    ///
    /// # Errors
    /// Why they are not.
    pub(crate) async fn user_networks_work(&self) -> Result<(), NoUserNetwork> {
        let none =
            |why: String, remedy: &str| Err(NoUserNetwork { why, remedy: remedy.to_owned() });
        if self.privileged {
            return none("passt is for who cannot make devices".into(), "`banger doctor`");
        }
        let vmm = match self.vmm().await {
            Ok(vmm) => vmm,
            Err(problem) => return none(problem.to_string(), "`banger doctor`"),
        };
        if vmm.api().is_some() {
            return none(
                "Firecracker needs a tap, which only root can make; passt serves QEMU only".into(),
                &format!("{INSTALL}, or `vmm = \"qemu\"` in config.toml"),
            );
        }
        if command::find(user_network::PROGRAM).is_none() {
            return none(
                "passt is not installed, by which an ordinary user's VMs reach beyond the host"
                    .into(),
                &format!("apt-get install passt, or {INSTALL}"),
            );
        }
        Ok(())
    }

    /// Refuses a way out that VMs without a network device cannot have. `why` they have no device; `without` is how to do without.
    pub(crate) async fn judge_user_egress(
        &self,
        egress: &Egress,
        why: &str,
        without: &str,
    ) -> Result<(), Problem> {
        let flag = flag_of(egress);
        match (egress, self.user_networks_work().await) {
            (Egress::None, _) | (Egress::All, Ok(())) => Ok(()),
            (Egress::Allow(_), Ok(())) => Err(Problem::new(
                Code::Missing,
                format!("{flag}: lists need a network device"),
            )
            .because(why)
            .remedy(format!(
                "{INSTALL}; {without}; or --nat, which lets it reach all that the host reaches"
            ))),
            (_, Err(NoUserNetwork { .. })) if self.privileged => Err(no_network(flag, why)
                .remedy(format!("{without}; `banger doctor` shows what is missing"))),
            (_, Err(NoUserNetwork { why, remedy })) => {
                Err(no_network(flag, &why).remedy(format!("{remedy}; or {without}")))
            }
        }
    }

    /// The network that a VM without a device starts with; `None` where it has none.
    pub(crate) async fn user_network(&self, vm: &VmRecord) -> Result<Option<UserNetwork>, Problem> {
        let Err(why) = self.networks_work().await else { return Ok(None) };
        if vm.egress == Egress::None {
            return Ok(None);
        }
        let without = format!("`banger vm set {} --egress none` lets it start without", vm.name);
        self.judge_user_egress(&vm.egress, &why, &without).await?;
        Ok(Some(UserNetwork { zone: self.config.network.zone.clone() }))
    }

    /// Changes where a VM without a network device leads. Closing it is done at once; it is opened by a start.
    ///
    /// # Errors
    /// What cannot be; then it is as before.
    pub(crate) async fn set_user_egress(
        self: &Arc<Self>,
        vm: &VmRecord,
        egress: &Egress,
        operation: &Operation,
    ) -> Result<(), Problem> {
        if let Err(why) = self.networks_work().await {
            let without = "`--egress none` leaves it without".to_owned();
            self.judge_user_egress(egress, &why, &without).await?;
        } else if *egress != Egress::None {
            return Err(Problem::new(
                Code::Conflict,
                format!("VM {} has no network device", vm.name),
            )
            .because("it was made where VMs had none")
            .remedy("make it anew: it gets one"));
        }
        let (id, runs) = (vm.id.clone(), vm.state.is_up());
        let (name, egress) = (vm.name.clone(), egress.clone());
        let closed = self
            .blocking(move |daemon| {
                let claims = daemon.store.claims(&id).map_err(problems::store)?;
                let is_open = claims.iter().any(|row| is_user_network(&row.claim));
                if runs && egress != Egress::None && !is_open {
                    return Err(Problem::new(
                        Code::Conflict,
                        format!("VM {name} runs without a network device, and gets one when it starts"),
                    )
                    .remedy(format!(
                        "`banger vm stop {name}`, `banger vm set {name} --nat on`, `banger vm start {name}`"
                    )));
                }
                daemon.store.set_egress(&id, &egress, None).map_err(problems::store)?;
                if egress != Egress::None || !is_open {
                    return Ok(false);
                }
                let host = daemon.host.as_ref();
                let left = ledger::release_some(host, &daemon.store, &id, is_user_network);
                left.map_err(problems::store)?.map_or(Ok(true), Err)
            })
            .await??;
        if closed {
            operation.note(format!("{}: its network is gone until its next start", vm.name));
        }
        Ok(())
    }
}

fn is_user_network(claim: &Claim) -> bool {
    matches!(claim, Claim::UserNetwork { .. })
}
