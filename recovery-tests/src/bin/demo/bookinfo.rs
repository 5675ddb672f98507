//! The mesh, as the agent has it, and what the demo needs to know of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use storage_schema::resource::{Resource, Service, Workload};

use crate::backend::Role;

/// Which service each service's workloads call for a request, as in Istio's Bookinfo; `reviews-v1` calls nobody.
const CALLS: [(&str, &[&str]); 3] =
    [("productpage", &["details", "reviews"]), ("reviews-v2", &["ratings"]), ("reviews-v3", &["ratings"])];

/// Services and workloads.
#[derive(Debug)]
pub(crate) struct Bookinfo {
    services: Vec<Service>,
    workloads: Vec<Workload>,
}

impl Bookinfo {
    /// From what the agent lists.
    pub(crate) fn new(resources: Vec<Resource>) -> Self {
        let (mut services, mut workloads) = (Vec::new(), Vec::new());
        for resource in resources {
            match resource {
                Resource::Service(service) => services.push(service),
                Resource::Workload(workload) => workloads.push(workload),
                Resource::Node(_) => {}
            }
        }
        Self { services, workloads }
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter()
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.iter()
    }

    /// The names of the workloads behind a service.
    pub(crate) fn backends(&self, service: &Service) -> Vec<&str> {
        let backs = |workload: &&Workload| workload.services.iter().any(|backing| backing.service == service.name);
        self.workloads.iter().filter(backs).map(|workload| workload.name.as_str()).collect()
    }

    /// The service of this short name.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<&Service> {
        let found = self.services.iter().find(|service| short(service) == name);
        found.with_context(|| format!("the manifest has no service {name}"))
    }

    /// The addresses that backends want and the loopback device does not have by itself, in `ip`'s notation.
    pub(crate) fn addresses_to_add(&self) -> Vec<String> {
        let all = self.workloads.iter().flat_map(|workload| &workload.addresses);
        all.filter(|address| !address.is_loopback())
            .map(|address| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }))
            .collect()
    }

    /// What the backend of a workload is to do.
    pub(crate) fn role(&self, workload: &Workload) -> anyhow::Result<Role> {
        let mut listen = Vec::new();
        for backing in &workload.services {
            let service = self.services.iter().find(|service| service.name == backing.service);
            let service = service.with_context(|| format!("{} backs an unknown service", workload.uid))?;
            for port in &service.ports {
                listen.extend(workload.addresses.iter().map(|address| SocketAddr::new(*address, port.target_port)));
            }
        }
        let is_of = |name: &str| workload.name == name || workload.name.starts_with(&format!("{name}-"));
        let called = CALLS.iter().filter(|(name, _)| is_of(name)).flat_map(|(_, called)| called.iter());
        let calls = called.map(|name| Ok(((*name).to_owned(), vips(self.service(name)?)?)));
        Ok(Role { workload: workload.name.clone(), listen, calls: calls.collect::<anyhow::Result<BTreeMap<_, _>>>()? })
    }
}

/// A service's name without its namespace.
pub(crate) fn short(service: &Service) -> &str {
    service.name.split_once('/').map_or(&*service.name, |(_, name)| name)
}

/// A service's virtual addresses, at its first port.
pub(crate) fn vips(service: &Service) -> anyhow::Result<Vec<SocketAddr>> {
    let port = service.ports.first().with_context(|| format!("{} has no port", service.name))?;
    Ok(service.vips.iter().map(|vip: &IpAddr| SocketAddr::new(*vip, port.port)).collect())
}
