//! What the journal's records say of the services and workloads that sockets lead from and to.

use std::collections::{BTreeSet, HashMap, HashSet};

use journal::{ReadError, Reader};
use storage_schema::id::{Epoch, Lsn, ResourceId};
use storage_schema::record::Delta;
use storage_schema::resource::Resource;

use super::fold::{Fold, Said, Written};
use super::{Gone, Lead};
use crate::model::{Service, Workload};

/// Services and workloads as the model has them.
#[derive(Debug, Default)]
pub(crate) struct Now {
    pub(crate) services: HashMap<ResourceId, Service>,
    pub(crate) workloads: HashMap<ResourceId, Workload>,
    /// The last record that was submitted: the model is the state after it.
    pub(crate) appended_lsn: Lsn,
}

impl Now {
    /// A fold that begins with what has not changed since the epoch.
    fn fold(&self, (lead, epoch): (Lead, Epoch)) -> Fold {
        let epoch = Lsn::from(epoch);
        let service = self.services.get(&lead.service).filter(|service| service.changed_lsn <= epoch);
        let workload = self.workloads.get(&lead.backend).filter(|workload| workload.changed_lsn <= epoch);
        Fold::new(lead, service.cloned(), workload.cloned())
    }
}

/// Forgets what may be otherwise since record `as_of`.
pub(super) fn drop_changed(
    reader: &Reader,
    known: &mut HashMap<(Lead, Epoch), Gone>,
    as_of: Lsn,
    lsn: Lsn,
) -> Result<(), ReadError> {
    if known.is_empty() || lsn <= as_of {
        return Ok(());
    }
    let changed = Changes::read(reader, known.keys(), as_of.next(), lsn)?;
    known.retain(|(lead, _), _| changed.of(lead, |_| true).next().is_none());
    Ok(())
}

/// Which of these are backends no longer at record `lsn`. They were at the epochs beside them.
pub(super) fn departed(
    reader: &Reader,
    leads: &[(Lead, Epoch)],
    now: &Now,
    lsn: Lsn,
) -> Result<HashMap<(Lead, Epoch), Gone>, ReadError> {
    let Some(first) = leads.iter().map(|(_, epoch)| Lsn::from(*epoch).next()).min() else {
        return Ok(HashMap::new());
    };
    let changes = Changes::read(reader, leads, first, lsn)?;
    let mut pages = Pages::new(reader, leads);
    let (mut folds, mut doubtful) = (Vec::with_capacity(leads.len()), Vec::new());
    for lead in leads {
        let fold = pages.fold(now.fold(*lead), *lead, &changes)?;
        if fold.is_in_doubt() { doubtful.push(*lead) } else { folds.push((*lead, fold)) }
    }
    if let Some(last) = doubtful.iter().map(|(_, epoch)| Lsn::from(*epoch)).max() {
        let earlier = Changes::read(reader, &doubtful, Lsn::FIRST, last)?;
        for lead in doubtful {
            let mut fold = now.fold(lead);
            // In their order, as the record of the one may say something older of the other.
            let last = |id| earlier.last(id, Lsn::from(lead.1));
            let before: BTreeSet<Lsn> = [lead.0.service, lead.0.backend].into_iter().filter_map(last).collect();
            for lsn in before {
                fold.learn(&pages.said(lsn, &lead.0)?);
            }
            folds.push((lead, pages.fold(fold, lead, &changes)?));
        }
    }
    // Asked for last: what has gone meanwhile was not seen.
    let oldest_lsn = reader.oldest_lsn();
    let oldest = if oldest_lsn <= lsn { Some(pages.written(oldest_lsn)?) } else { None };
    // Else a resource that the model does not have may be there still, as far as is visible.
    let exact = now.appended_lsn == lsn;
    let gone = |(lead, fold): ((Lead, Epoch), Fold)| {
        let unseen = oldest.filter(|oldest| oldest.lsn > Lsn::from(lead.1).next());
        Some((lead, fold.gone(exact, unseen)?))
    };
    Ok(folds.into_iter().filter_map(gone).collect())
}

/// Which records changed which resources, ascending.
struct Changes(HashMap<ResourceId, Vec<Lsn>>);

impl Changes {
    fn read<'l>(
        reader: &Reader,
        leads: impl IntoIterator<Item = &'l (Lead, Epoch)>,
        from: Lsn,
        to: Lsn,
    ) -> Result<Self, ReadError> {
        let ids: BTreeSet<ResourceId> = leads.into_iter().flat_map(|(lead, _)| [lead.service, lead.backend]).collect();
        let ids: Vec<ResourceId> = ids.into_iter().collect();
        let changes = reader.changes(&ids, from, to)?;
        Ok(Self(ids.into_iter().zip(changes).collect()))
    }

    /// The records that changed the service or the workload, in order.
    fn of(&self, lead: &Lead, wanted: impl Fn(Lsn) -> bool) -> impl Iterator<Item = Lsn> {
        let ids = [lead.service, lead.backend];
        let all = ids.iter().filter_map(|id| self.0.get(id)).flatten().copied().filter(|lsn| wanted(*lsn));
        all.collect::<BTreeSet<Lsn>>().into_iter()
    }

    /// The last record up to `lsn` that changed a resource.
    fn last(&self, id: ResourceId, lsn: Lsn) -> Option<Lsn> {
        self.0.get(&id)?.iter().rev().find(|change| **change <= lsn).copied()
    }
}

/// Records, as far as they are about the resources in question. Each is read once.
struct Pages<'r> {
    reader: &'r Reader,
    wanted: HashSet<ResourceId>,
    by_lsn: HashMap<Lsn, Page>,
}

struct Page {
    written: Written,
    /// Names, and what the resources are from then on; `None`: removed.
    said: HashMap<ResourceId, (String, Option<Resource>)>,
}

impl<'r> Pages<'r> {
    fn new(reader: &'r Reader, leads: &[(Lead, Epoch)]) -> Self {
        let wanted = leads.iter().flat_map(|(lead, _)| [lead.service, lead.backend]).collect();
        Self { reader, wanted, by_lsn: HashMap::new() }
    }

    /// Takes in the records behind the epoch.
    fn fold(&mut self, mut fold: Fold, (lead, epoch): (Lead, Epoch), changes: &Changes) -> Result<Fold, ReadError> {
        for lsn in changes.of(&lead, |lsn| lsn > Lsn::from(epoch)) {
            fold.add(&self.said(lsn, &lead)?);
        }
        Ok(fold)
    }

    fn said(&mut self, lsn: Lsn, lead: &Lead) -> Result<Said<'_>, ReadError> {
        let page = self.page(lsn)?;
        let of = |id| page.said.get(&id).map(|(name, resource)| (name.as_str(), resource.as_ref()));
        let workload = if lead.service == lead.backend { None } else { of(lead.backend) };
        Ok(Said { written: page.written, service: of(lead.service), workload })
    }

    fn written(&mut self, lsn: Lsn) -> Result<Written, ReadError> {
        Ok(self.page(lsn)?.written)
    }

    fn page(&mut self, lsn: Lsn) -> Result<&Page, ReadError> {
        if !self.by_lsn.contains_key(&lsn) {
            let record = self.reader.record(lsn)?.decode();
            let record = record.map_err(|source| ReadError::Undecodable { lsn, source })?;
            let written = Written { lsn, monotonic_ns: record.monotonic_ns, boot_id: record.boot_id };
            let mut said = HashMap::new();
            for delta in record.transaction.deltas {
                let key = delta.key();
                let id = ResourceId::of(&key);
                if self.wanted.contains(&id) {
                    let resource = match delta {
                        Delta::Upsert(resource) => Some(resource),
                        Delta::Remove(_) => None,
                    };
                    said.insert(id, (key.name, resource));
                }
            }
            self.by_lsn.insert(lsn, Page { written, said });
        }
        Ok(&self.by_lsn[&lsn])
    }
}
