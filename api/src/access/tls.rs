//! Mutual TLS: the agent's certificate, and the authorities that clients' certificates come from.
//!
//! TLS 1.3 only, no session resumption: each connection shows a certificate that is good at that moment. The files are read
//! again every [`REREAD_INTERVAL`], and new handshakes use what they then say; files that make no sense leave the old ones in
//! use, and that is told. Connections that are open stay open.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, version::TLS13};

use crate::layers::Observer;

/// How often the files are looked at.
pub const REREAD_INTERVAL: Duration = Duration::from_secs(5);

/// More is no certificate.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files are, each in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of the other end.
    pub authorities: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM, or has nothing of what it is for.
    #[error("{} has no {what} in PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        #[source]
        source: pem::Error,
    },
    /// Certificate and key do not go together, or are of a kind that is not known.
    #[error("the certificate {} cannot be used: {source}", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::Error,
    },
    /// An authority cannot be used.
    #[error("the authorities in {} cannot be used: {source}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: VerifierBuilderError,
    },
}

/// The agent's side of mutual TLS, kept up to date.
#[derive(Debug)]
pub struct Certificates {
    files: Files,
    current: RwLock<Arc<ServerConfig>>,
}

/// What the files say.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

impl Certificates {
    /// Reads the files.
    pub fn read(files: Files) -> Result<Arc<Self>, TlsError> {
        let config = Contents::read(&files)?.config(&files)?;
        Ok(Arc::new(Self { files, current: RwLock::new(config) }))
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again and again, and never returns.
    pub(super) async fn keep_up_to_date(&self, observer: &dyn Observer) {
        let mut used = Contents::read(&self.files).ok();
        // What was told to be wrong is not told again.
        let mut told = String::new();
        loop {
            tokio::time::sleep(REREAD_INTERVAL).await;
            let contents = match Contents::read(&self.files) {
                Ok(contents) if used.as_ref() == Some(&contents) && told.is_empty() => continue,
                contents => contents,
            };
            match contents.and_then(|contents| Ok((contents.config(&self.files)?, contents))) {
                Ok((config, contents)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    (used, told) = (Some(contents), String::new());
                    tracing::info!(certificate = %self.files.certificate.display(), "new certificates are in use");
                    observer.certificates_read(true);
                }
                Err(error) if error.to_string() == told => {}
                Err(error) => {
                    tracing::error!(%error, "the new certificates are not used, the old ones are");
                    observer.certificates_read(false);
                    told = error.to_string();
                }
            }
        }
    }
}

impl Contents {
    /// Small files on a local disk: no thread of its own is worth it.
    fn read(files: &Files) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            authorities: read(&files.authorities)?,
        })
    }

    fn config(&self, files: &Files) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(&files.authorities, &self.authorities)? {
            let path = || files.authorities.clone();
            roots.add(authority).map_err(|source| TlsError::Certificate { path: path(), source })?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authorities { path: files.authorities.clone(), source })?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| TlsError::Pem {
            path: files.key.clone(),
            what: "private key",
            source,
        })?;
        let chain = certificates(&files.certificate, &self.certificate)?;
        let unusable = |source| TlsError::Certificate { path: files.certificate.clone(), source };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than any certificate")));
    }
    std::fs::read(path).map_err(failed)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if all.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    Ok(all)
}

/// The names in a certificate that was verified: DNS names in lower case, URIs. Names of other kinds say nothing here.
pub(super) fn names(certificate: &CertificateDer<'_>) -> (Vec<String>, Vec<String>) {
    let Ok(parsed) = webpki::EndEntityCert::try_from(certificate) else { return (Vec::new(), Vec::new()) };
    // One that is longer than a field may be is nobody that a rule is about.
    let short = |name: &&str| name.len() <= crate::TEXT_BYTES_MAX;
    let dns = parsed.valid_dns_names().filter(short).map(str::to_ascii_lowercase).collect();
    let uris = parsed.valid_uri_names().filter(short).map(str::to_owned).collect();
    (dns, uris)
}
