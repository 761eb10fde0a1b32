//! From a packet to what is to be done with it. Pure: no socket, no clock, no waiting.
//!
//! What is no query is never answered, so that two servers cannot keep each other busy. A query that is not understood is
//! answered by the code that says so, without anything of it but its id.

use std::net::{Ipv4Addr, Ipv6Addr};

use domain::base::iana::{Class, ExtendedErrorCode, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{
    AdditionalBuilder, AnswerBuilder, PushError, QuestionBuilder, StaticCompressor,
};
use domain::base::opt::{ExtendedError, Opt, OptRecord};
use domain::base::rdata::ComposeRecordData;
use domain::base::{Header, HeaderSection, Message, MessageBuilder, Name, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ns, Ptr, Soa};

use crate::names::{Found, Names, Sees};
use crate::subnet::Subnet;

/// How long an answer may be kept: not at all. A VM's address is gone when the VM is, and whoever asks again asks a server
/// on the same machine, which costs less than an address that is no longer true. It is what dnsmasq does with names of
/// its own (`--local-ttl`). The same holds for a name that is not there yet (RFC 2308, 5).
const TTL: Ttl = Ttl::ZERO;

/// What we take over UDP, and the most we send: no fragments on an Ethernet (DNS flag day 2020; RFC 9715).
pub(crate) const PAYLOAD: u16 = 1232;

/// What a client takes that says nothing of it (RFC 1035, 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;

/// A question's type and class, in octets.
const QUESTION_TAIL: usize = 4;

/// An OPT record without options (RFC 6891, 6.1.2), in octets.
const OPT_LENGTH: usize = 11;

/// A query has no more records than its question, an OPT, a signature, and the SOA of an IXFR.
const MOST_RECORDS: u32 = 8;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker<'a> {
    /// Somebody on the host. Gets our zones and nothing else.
    Host,
    /// A guest: of our zones what is in these subnets, and all other names from the host's nameservers, with their IPv6
    /// addresses or without; and where the host is for it.
    Guest { ipv6: bool, subnets: &'a [Subnet], host: Ipv4Addr },
    /// Nobody who is answered here.
    Stranger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug)]
pub(crate) enum Reply {
    /// It is no query, or too short to be one.
    Silence,
    Now(Vec<u8>),
    /// The host's nameservers may know.
    Ask(Box<Query>),
}

/// A query that was understood.
#[derive(Debug)]
pub(crate) struct Query {
    header: Header,
    name: Name<Vec<u8>>,
    rtype: Rtype,
    class: Class,
    edns: Option<Edns>,
    limit: usize,
    recursion: bool,
}

#[derive(Debug, Clone, Copy)]
struct Edns {
    payload: u16,
    version: u8,
    dnssec_ok: bool,
}

/// What stands in the way of understanding a query.
enum Misfit {
    Silent,
    /// The answer has no question.
    Coded(Header, Rcode),
}

pub(crate) fn respond(
    packet: &[u8],
    names: &Names,
    asker: Asker<'_>,
    transport: Transport,
) -> Reply {
    let recursion = matches!(asker, Asker::Guest { .. });
    match understand(packet, transport, recursion) {
        Ok(query) => query.reply(names, asker),
        Err(Misfit::Silent) => Reply::Silence,
        Err(Misfit::Coded(header, code)) => bare(header, code, recursion),
    }
}

/// An answer of a header only.
fn bare(asked: Header, code: Rcode, recursion: bool) -> Reply {
    let Ok(mut message) = MessageBuilder::from_target(Vec::new());
    answer_header(message.header_mut(), asked, recursion);
    message.header_mut().set_rcode(code);
    Reply::Now(message.finish())
}

fn answer_header(header: &mut Header, asked: Header, recursion: bool) {
    header.set_id(asked.id());
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_cd(asked.cd());
    header.set_qr(true);
    header.set_ra(recursion);
}

fn understand(packet: &[u8], transport: Transport, recursion: bool) -> Result<Query, Misfit> {
    let message = Message::from_slice(packet).map_err(|_| Misfit::Silent)?;
    let header = message.header();
    if header.qr() {
        return Err(Misfit::Silent);
    }
    if header.opcode() != Opcode::QUERY {
        // As RFC 2136, 2.2 and RFC 1996, 4.4 have it for who knows neither UPDATE nor NOTIFY.
        return Err(Misfit::Coded(header, Rcode::NOTIMP));
    }
    let malformed = || Misfit::Coded(header, Rcode::FORMERR);
    let counts = message.header_counts();
    let records = [counts.ancount(), counts.nscount(), counts.arcount()];
    // More than one question is malformed by RFC 9619.
    if counts.qdcount() != 1 || records.map(u32::from).iter().sum::<u32>() > MOST_RECORDS {
        return Err(malformed());
    }
    let mut questions = message.question();
    let question = questions.next().and_then(Result::ok).ok_or_else(malformed)?;
    let name: Name<Vec<u8>> = question.qname().to_name();
    if questions.pos() != size_of::<HeaderSection>() + name.len() + QUESTION_TAIL {
        // There is a pointer in the name: to the header, since no name is before it.
        return Err(malformed());
    }
    let edns = edns(message).ok_or_else(malformed)?;
    let limit = match (transport, &edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, Some(edns)) => usize::from(edns.payload.clamp(PLAIN_PAYLOAD, PAYLOAD)),
        (Transport::Udp, None) => usize::from(PLAIN_PAYLOAD),
    };
    Ok(Query {
        header,
        name,
        rtype: question.qtype(),
        class: question.qclass(),
        edns,
        limit,
        recursion,
    })
}

/// The OPT record, if there is one. None if anything after the question is malformed, or there is something after the end.
#[expect(clippy::option_option, reason = "malformed is not the same as absent")]
fn edns(message: &Message<[u8]>) -> Option<Option<Edns>> {
    let before = [message.answer().ok()?, message.authority().ok()?];
    for record in before.into_iter().flatten() {
        if record.ok()?.rtype() == Rtype::OPT {
            return None;
        }
    }
    let mut found = None;
    let mut section = message.additional().ok()?;
    for record in section.by_ref() {
        let record = record.ok()?;
        if record.rtype() != Rtype::OPT {
            continue;
        }
        // Of the root, and once (RFC 6891, 6.1.1).
        if found.is_some() || !record.owner().is_root() {
            return None;
        }
        let record = OptRecord::from_record(record.to_record::<Opt<&[u8]>>().ok()??);
        found = Some(Edns {
            payload: record.udp_payload_size(),
            version: record.version(),
            dnssec_ok: record.dnssec_ok(),
        });
    }
    (section.pos() == message.as_slice().len()).then_some(found)
}

/// Zones of which we answer nothing from elsewhere: `resolver.arpa` asks a resolver for the addresses of others that guests
/// could use in its stead (RFC 9462, 4), which are the host's and not for them.
const OF_THE_RESOLVER: &[u8] = b"\x08resolver\x04arpa\x00";

/// The host, as a guest may call it: a zone of its own, below a domain that nobody has in the world (`internal`, which ICANN
/// reserved for private use in 2024).
const THE_HOST: &[u8] = b"\x04host\x06banger\x08internal\x00";

impl Query {
    fn reply(self, names: &Names, asker: Asker<'_>) -> Reply {
        if self.edns.is_some_and(|edns| edns.version > 0) {
            return self.coded(OptRcode::BADVERS);
        }
        let sees = match asker {
            Asker::Host => Sees::All,
            Asker::Guest { subnets, .. } => Sees::Within(subnets),
            Asker::Stranger => return self.coded(OptRcode::REFUSED),
        };
        if self.class != Class::IN {
            return self.coded(OptRcode::REFUSED);
        }
        match self.rtype {
            // Zones are not for taking away.
            Rtype::AXFR | Rtype::IXFR => return self.coded(OptRcode::REFUSED),
            Rtype::OPT => return self.coded(OptRcode::FORMERR),
            Rtype::ANY => {}
            // Those that are no types of data (RFC 6895, 3.1).
            other if (128..=255).contains(&other.to_int()) => {
                return self.coded(OptRcode::NOTIMP);
            }
            _ => {}
        }
        let canonical = self.name.as_slice().to_ascii_lowercase();
        if let (Asker::Guest { host, .. }, THE_HOST) = (asker, canonical.as_slice()) {
            return self.known(&Found::alone(host));
        }
        if let Some(found) = names.find(&canonical, sees) {
            return self.known(&found);
        }
        let Asker::Guest { ipv6, .. } = asker else {
            return self.coded(OptRcode::REFUSED);
        };
        let of_the_resolver = canonical.ends_with(OF_THE_RESOLVER);
        if of_the_resolver || (self.rtype == Rtype::AAAA && !ipv6) {
            return self.coded(OptRcode::NOERROR);
        }
        if self.rtype == Rtype::ANY {
            // RFC 8482, 4.3: what ANY brings from others would be all of their cache.
            return self.coded(OptRcode::NOTIMP);
        }
        Reply::Ask(Box::new(self))
    }

    /// A name in our zones.
    fn known(&self, found: &Found) -> Reply {
        let code = if found.exists { OptRcode::NOERROR } else { OptRcode::NXDOMAIN };
        let mut sets: [Vec<Data<'_>>; 5] = Default::default();
        let [addresses, ipv6, pointers, authorities, servers] = &mut sets;
        addresses.extend(found.address.map(Data::Address));
        ipv6.extend(found.ipv6.map(Data::Ipv6));
        pointers.extend(found.pointers.iter().map(|name| Data::Pointer(name)));
        if found.apex == 0 {
            authorities.push(Data::Authority(found.serial));
            servers.push(Data::Server);
        }
        let types = [Rtype::A, Rtype::AAAA, Rtype::PTR, Rtype::SOA, Rtype::NS];
        // ANY gets one set of records, the first there is (RFC 8482, 4.1).
        let answer = sets
            .into_iter()
            .zip(types)
            .find(|(set, rtype)| !set.is_empty() && [*rtype, Rtype::ANY].contains(&self.rtype));
        match answer {
            Some((set, _)) => self.composed(code, &set, None),
            None => self.composed(code, &[], Some(found)),
        }
    }

    /// An answer without records.
    fn coded(&self, code: OptRcode) -> Reply {
        self.composed(code, &[], None)
    }

    fn composed(&self, code: OptRcode, answers: &[Data<'_>], absent_from: Option<&Found>) -> Reply {
        // What cannot be composed is not sent. It is not there: names are as long as they were when they came.
        self.compose(code, answers, absent_from).map_or(Reply::Silence, Reply::Now)
    }

    fn compose(
        &self,
        code: OptRcode,
        answers: &[Data<'_>],
        absent_from: Option<&Found>,
    ) -> Result<Vec<u8>, PushError> {
        let mut message = self.begin()?.answer();
        message.header_mut().set_aa(!answers.is_empty() || absent_from.is_some());
        message.header_mut().set_rcode(code.rcode());
        if answers.iter().try_for_each(|data| self.push(&mut message, data)).is_err() {
            // Not a part of a set (RFC 2181, 9).
            message.rewind();
            message.header_mut().set_tc(true);
        }
        let mut message = message.authority();
        if let Some(found) = absent_from {
            let apex = Name::from_octets(&self.name.as_slice()[found.apex..])
                .map_err(|_| PushError::ShortBuf)?;
            message.push((apex.clone(), Class::IN, TTL, soa(apex, found.serial)))?;
        }
        self.end(message.additional(), code)
    }

    fn push(&self, to: &mut Answer, data: &Data<'_>) -> Result<(), PushError> {
        let name = &self.name;
        match data {
            Data::Address(address) => to.push((name, Class::IN, TTL, A::new(*address))),
            Data::Ipv6(address) => to.push((name, Class::IN, TTL, Aaaa::new(*address))),
            Data::Pointer(target) => {
                let target = Name::from_octets(*target).map_err(|_| PushError::ShortBuf)?;
                to.push((name, Class::IN, TTL, Ptr::new(target)))
            }
            Data::Authority(serial) => to.push((name, Class::IN, TTL, soa(name, *serial))),
            Data::Server => to.push((name, Class::IN, TTL, Ns::new(name))),
        }
    }

    /// The header and the question as it was asked, letter by letter; names after it are in the asker's case too, since
    /// they are pointers to it.
    fn begin(&self) -> Result<QuestionBuilder<StaticCompressor<Vec<u8>>>, PushError> {
        let Ok(mut message) =
            MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512)));
        answer_header(message.header_mut(), self.header, self.recursion);
        let opt_length = if self.edns.is_some() { OPT_LENGTH } else { 0 };
        // The library wants less than its limit.
        message.set_push_limit(self.limit - opt_length + 1);
        let mut message = message.question();
        message.push((&self.name, self.rtype, self.class))?;
        Ok(message)
    }

    fn end(
        &self,
        mut message: AdditionalBuilder<StaticCompressor<Vec<u8>>>,
        code: OptRcode,
    ) -> Result<Vec<u8>, PushError> {
        message.clear_push_limit();
        if let Some(edns) = self.edns {
            message.opt(|opt| {
                opt.set_udp_payload_size(PAYLOAD);
                opt.set_dnssec_ok(edns.dnssec_ok);
                opt.set_rcode(code);
                Ok(())
            })?;
        }
        Ok(message.finish().into_target())
    }
}

type Answer = AnswerBuilder<StaticCompressor<Vec<u8>>>;

/// What a record says. Its owner is the name that was asked.
enum Data<'a> {
    Address(Ipv4Addr),
    Ipv6(Ipv6Addr),
    Pointer(&'a [u8]),
    Authority(u32),
    Server,
}

/// A zone without a name for its server names itself, as RFC 6303, 3 has it: nobody transfers it, and nobody writes to
/// whom it concerns.
fn soa<N: Clone + ToName>(apex: N, serial: u32) -> impl ComposeRecordData {
    let (server, hour) = (apex.clone(), Ttl::HOUR);
    let week = Ttl::from_secs(604_800);
    Soa::new(server, apex, Serial(serial), hour, hour, week, TTL)
}

/// To and from the host's nameservers.
impl Query {
    /// The name as [`crate::Gate`] is told it.
    pub(crate) fn plain_name(&self) -> String {
        self.name.to_string().to_ascii_lowercase()
    }

    /// The answer that this is not for the asker to know.
    pub(crate) fn blocked(&self) -> Reply {
        let message = self.begin().and_then(|message| {
            let mut message = message.additional();
            message.header_mut().set_rcode(Rcode::REFUSED);
            message.clear_push_limit();
            if let Some(edns) = self.edns {
                message.opt(|opt| {
                    opt.set_udp_payload_size(PAYLOAD);
                    opt.set_dnssec_ok(edns.dnssec_ok);
                    opt.push(&ExtendedError::<Vec<u8>>::from(ExtendedErrorCode::BLOCKED))?;
                    Ok(())
                })?;
            }
            Ok(message.finish().into_target())
        });
        message.map_or(Reply::Silence, Reply::Now)
    }

    /// Whether an IPv6 address is wanted.
    pub(crate) fn is_for_ipv6(&self) -> bool {
        self.rtype == Rtype::AAAA
    }

    /// The answer that there is no such record.
    pub(crate) fn absent(&self) -> Reply {
        self.coded(OptRcode::NOERROR)
    }

    /// The answer that no nameserver gave one, or that too many queries are under way.
    pub(crate) fn failed(&self) -> Reply {
        self.coded(OptRcode::SERVFAIL)
    }

    /// What to send a nameserver: the question, and none of the asker's options, which are between it and us (RFC 6891,
    /// 6.1.1). None if it cannot be composed.
    pub(crate) fn question(&self, id: u16) -> Option<Vec<u8>> {
        let Ok(mut message) = MessageBuilder::from_target(Vec::with_capacity(512));
        let header = message.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(self.header.cd());
        header.set_ad(self.header.ad());
        let mut message = message.question();
        message.push((&self.name, self.rtype, self.class)).ok()?;
        let mut message = message.additional();
        if let Some(edns) = self.edns {
            let opt = message.opt(|opt| {
                opt.set_udp_payload_size(PAYLOAD);
                opt.set_dnssec_ok(edns.dnssec_ok);
                Ok(())
            });
            opt.ok()?;
        }
        Some(message.finish())
    }

    /// What a nameserver's packet is to the question with this id.
    pub(crate) fn judge(&self, id: u16, packet: &[u8]) -> Verdict {
        let Ok(message) = Message::from_slice(packet) else { return Verdict::NotOurs };
        let header = message.header();
        if header.id() != id || !header.qr() || header.opcode() != Opcode::QUERY {
            return Verdict::NotOurs;
        }
        let code = header.rcode();
        // After these resolv.conf's next is asked, as the C library does.
        let useless = [Rcode::SERVFAIL, Rcode::NOTIMP, Rcode::REFUSED].contains(&code);
        if message.header_counts().qdcount() == 0 && useless {
            return Verdict::Useless;
        }
        if packet.len() == size_of::<HeaderSection>() && code == Rcode::FORMERR {
            // It does not know EDNS, and the asker learns that (RFC 6891, 7).
            return Verdict::Answer;
        }
        let asked = message.sole_question().is_ok_and(|question| {
            question.qname().name_eq(&self.name)
                && question.qtype() == self.rtype
                && question.qclass() == self.class
        });
        match asked {
            false => Verdict::NotOurs,
            true if header.tc() => Verdict::Truncated,
            true if useless => Verdict::Useless,
            true => Verdict::Answer,
        }
    }

    /// A nameserver's answer as the asker gets it: as it is, but for its id, or truncated.
    pub(crate) fn relay(&self, mut answer: Vec<u8>) -> Reply {
        if answer.len() > self.limit {
            return self.truncated();
        }
        Header::for_message_slice_mut(&mut answer).set_id(self.header.id());
        Reply::Now(answer)
    }

    fn truncated(&self) -> Reply {
        let message = self.begin().and_then(|message| {
            let mut message = message.additional();
            message.header_mut().set_tc(true);
            self.end(message, OptRcode::NOERROR)
        });
        message.map_or(Reply::Silence, Reply::Now)
    }
}

/// What a packet from a nameserver's address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No answer to what was asked: late, or somebody guesses.
    NotOurs,
    Answer,
    /// To be asked again over TCP.
    Truncated,
    /// It does not answer us; another may.
    Useless,
}
