//! Who may learn the address of which name: decided by whoever runs the server, who also learns it before the guest does.

use std::fmt::Debug;
use std::net::Ipv4Addr;

use domain::base::Message;
use domain::base::iana::Class;
use domain::base::rdata::UnknownRecordData;
use domain::rdata::A;
use futures_util::future::BoxFuture;

/// For how long a guest that is watched may keep an answer, in seconds: records that say more say this much.
pub const LONGEST_S: u32 = 3600;

/// What may be asked of the host's nameservers. Names of VMs are nobody's to refuse.
///
/// A name is in lower case, its labels between dots, without a last dot; what is no printable letter of a label is escaped with a
/// `\`, a dot in a label too.
pub trait Gate: Debug + Send + Sync {
    /// Whether this guest may ask for that name.
    fn judge(&self, guest: Ipv4Addr, name: &str) -> Judgement;

    /// Whether this guest reaches IPv6 addresses beyond the host, at this moment: it is told none otherwise.
    fn reaches_ipv6(&self, guest: Ipv4Addr) -> bool;

    /// The IPv4 addresses of an answer to a guest that is watched, before it is sent: each with how long it may be kept, in
    /// seconds. `false` when the guest should get none: it is told that the query failed.
    fn answered<'a>(
        &'a self,
        guest: Ipv4Addr,
        name: &'a str,
        addresses: &'a [(Ipv4Addr, u32)],
    ) -> BoxFuture<'a, bool>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It gets the answer as it comes.
    Free,
    /// It gets the answer when [`Gate::answered`] has seen it.
    Watched,
    /// REFUSED, with the code for what is blocked by whoever runs the server (RFC 8914, 4.16).
    Refused,
}

/// The addresses in the answer section, by whatever names: the last of a chain of aliases has them. Lowers times that are longer
/// than [`LONGEST_S`]. `None` when it cannot be read.
pub(crate) fn addresses(answer: &mut [u8]) -> Option<Vec<(Ipv4Addr, u32)>> {
    let (mut found, mut longer) = (Vec::new(), Vec::new());
    let mut section = Message::from_slice(answer).ok()?.answer().ok()?;
    while let Some(record) = section.next() {
        let record = record.ok()?;
        let seconds = record.ttl().as_secs();
        let data = record.to_record::<UnknownRecordData<&[u8]>>().ok()??;
        if seconds > LONGEST_S {
            // Before the data come its length and the time (RFC 1035, 4.1.3).
            longer.push(section.pos().checked_sub(data.data().data().len() + 6)?);
        }
        if record.class() == Class::IN
            && let Some(address) = record.to_record::<A>().ok()?
        {
            found.push((address.data().addr(), seconds.min(LONGEST_S)));
        }
    }
    for at in longer {
        answer.get_mut(at..at + 4)?.copy_from_slice(&LONGEST_S.to_be_bytes());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_no_answer() {
        let question = b"\x01a\x00\x00\x01\x00\x01";
        let record = b"\xc0\x0c\x00\x01\x00\x01\x00\x01\x51\x80\x00\x04\xcb\x00\x71\x07";
        let header = b"\x00\x07\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00";
        let whole = [&header[..], question, record].concat();
        let mut answer = whole.clone();
        assert_eq!(addresses(&mut answer), Some(vec![(Ipv4Addr::new(203, 0, 113, 7), LONGEST_S)]));
        assert_eq!(addresses(&mut answer), Some(vec![(Ipv4Addr::new(203, 0, 113, 7), LONGEST_S)]));
        for length in 0..whole.len() {
            assert_eq!(addresses(&mut whole[..length].to_vec()), None, "{length}");
        }
        // Of five octets, which no address has.
        let mut longer = [&whole[..], b"\x00"].concat();
        longer[whole.len() - 5] = 5;
        assert_eq!(addresses(&mut longer), None);
    }
}
