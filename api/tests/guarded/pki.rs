//! Authorities and certificates, made for the test.

use std::fs;
use std::path::{Path, PathBuf};

use api::access::tls::Files;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// When a certificate is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Good {
    Now,
    LongAgo,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate for these names (`dns:…` or URIs), its key, and the authorities that its holder trusts.
    pub(crate) fn issue(&self, directory: &Path, name: &str, names: &[&str], good: Good, trusts: &[&Self]) -> Files {
        let mut params = CertificateParams::default();
        if good == Good::LongAgo {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        for name in names {
            params.subject_alt_names.push(match name.strip_prefix("dns:") {
                Some(dns) => SanType::DnsName(dns.try_into().unwrap()),
                None => SanType::URI((*name).try_into().unwrap()),
            });
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |what: &str, pem: String| -> PathBuf {
            let path = directory.join(format!("{name}.{what}"));
            fs::write(&path, pem).unwrap();
            path
        };
        Files {
            certificate: write("crt", certificate.pem()),
            key: write("key", key.serialize_pem()),
            authorities: write("ca", trusts.iter().map(|authority| authority.pem.as_str()).collect()),
        }
    }
}
