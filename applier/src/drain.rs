//! Connections whose backend is gone: which these are, since when, and what their service wants done to them.
//!
//! A socket says where it leads, by its stamp, and that this was a backend at the stamp's epoch. The journal says what became of
//! service and workload since. So nothing has to be remembered between the removal of a backend and the end of its
//! connections: an agent that was away in between, or is killed meanwhile, comes to the same answers.
//!
//! A socket leads to a *backend* while the workload is a member of the service and serves it at that address and port, over
//! that protocol; or while that is the service's waypoint. Health, weight and place of the workload do not matter, nor at
//! which of the service's addresses it is reached: these say where new connections go.
//!
//! Invariant `VISIBLE_ONLY`: a [`Gone`] is so at the record that was asked for, by durable records up to that one alone. What is
//! submitted behind it only keeps sockets from being looked into.
//!
//! Refuses: to look for sockets, or to touch one.

mod fold;
mod history;

pub(crate) use history::Now;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use journal::ReadError;
use storage_schema::id::{BootId, Epoch, Lsn, ResourceId};
use storage_schema::map::{Stamp, key};
use storage_schema::resource::Drain;

use crate::entry::{Family, ServiceKey};
use crate::model::{Service, Workload};
use crate::pipeline::Pipeline;
use crate::plan;

/// Where a balanced socket leads, and for which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lead {
    /// The service that was dialled.
    pub service: ResourceId,
    /// The workload; the service itself, if it was its waypoint.
    pub backend: ResourceId,
    /// The address that the socket was sent to.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The port that was dialled.
    pub dialled_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

impl From<&Stamp> for Lead {
    fn from(stamp: &Stamp) -> Self {
        Self {
            service: ResourceId(stamp.service),
            backend: ResourceId(stamp.backend),
            address: key::address_from_words(stamp.backend_address),
            port: u16::from_be(stamp.backend_port_be),
            dialled_port: u16::from_be(stamp.original_port_be),
            protocol: stamp.protocol,
        }
    }
}

/// A resource as far as it is known: `None`: not at all; `Some(None)`: it is not there.
pub(crate) type Known<R> = Option<Option<R>>;

impl Lead {
    /// Whether that is a backend of the service, with both as they are; `None`: that cannot be told.
    pub(crate) fn reaches_backend(&self, service: Known<&Service>, workload: Known<&Workload>) -> Option<bool> {
        if self.service == self.backend {
            let is_waypoint = |service: &Service| service.waypoint == Some((self.address, self.port));
            return service.map(|service| service.is_some_and(is_waypoint));
        }
        match (service, workload) {
            (Some(None), _) | (_, Some(None)) => Some(false),
            (_, Some(Some(workload))) if !self.is_member_at(workload) => Some(false),
            (Some(Some(service)), Some(Some(workload))) => Some(self.is_served(service, workload)),
            _ => None,
        }
    }

    /// Whether the workload has the address, and a part in the service.
    fn is_member_at(&self, workload: &Workload) -> bool {
        workload.address(Family::of(self.address)) == Some(self.address)
            && workload.backings.iter().any(|(service, _)| service == self.service)
    }

    /// Whether a member that has the address serves a port of the service at the socket's.
    fn is_served(&self, service: &Service, workload: &Workload) -> bool {
        let named = |port| service.ports.iter().any(|own| (own.port, own.protocol.number()) == (port, self.protocol));
        plan::ports(service).filter(|(_, protocol)| *protocol == self.protocol).any(|(port, protocol)| {
            let key = ServiceKey { service: self.service, port, protocol, family: Family::of(self.address) };
            match workload.target_port(key, service) {
                // Every port that the service does not name leads to itself.
                Some(0) => self.port == self.dialled_port && !named(self.dialled_port),
                target_port => target_port == Some(self.port),
            }
        })
    }
}

/// A backend that is one no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The record that took it away. Where that is no longer kept, or cannot be told from others: one after it.
    pub since: Lsn,
    /// When that record was written, `CLOCK_BOOTTIME`, nanoseconds.
    pub since_monotonic_ns: u64,
    /// In which boot.
    pub boot_id: BootId,
    /// What the service wants done; of a service that is gone as well, what it wanted last. `None`: no record that is kept says
    /// so.
    pub drain: Option<Drain>,
    /// The service's name; of one that no record names, its number.
    pub service: String,
    /// The workload's uid, likewise; empty, if it was the service's waypoint.
    pub workload: String,
}

/// Which of the backends that sockets lead to are gone, remembered for as long as it is asked for.
#[derive(Debug, Default)]
pub struct Departed {
    known: HashMap<(Lead, Epoch), Gone>,
    /// The record up to which they hold.
    as_of: Lsn,
}

impl Departed {
    /// Which of these are backends no longer at record `lsn`, which is visible. The epoch with each is one at which it was.
    pub fn look(
        &mut self,
        pipeline: &Pipeline,
        leads: &[(Lead, Epoch)],
        lsn: Lsn,
    ) -> Result<&HashMap<(Lead, Epoch), Gone>, ReadError> {
        let reader = pipeline.journal().reader();
        let mut known = std::mem::take(&mut self.known);
        let asked: HashSet<&(Lead, Epoch)> = leads.iter().collect();
        known.retain(|lead, _| asked.contains(lead));
        history::drop_changed(&reader, &mut known, self.as_of, lsn)?;
        let unknown: Vec<(Lead, Epoch)> = leads.iter().filter(|lead| !known.contains_key(lead)).copied().collect();
        let now = pipeline.known(&unknown);
        known.extend(history::departed(&reader, &unknown, &now, lsn)?);
        self.known = known;
        self.as_of = lsn;
        Ok(&self.known)
    }
}
