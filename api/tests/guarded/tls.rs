//! TCP: certificates at both ends, who they are taken for, and what happens when they change.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use api::Level;
use api::access::tls::{Certificates, Files};
use api::access::{Security, Tcp, TcpError};
use api::client::{Client, ClientError, Server};
use api::server::Limits;
use tempfile::TempDir;

use crate::node::{Running, start_with, transaction, until};
use crate::pki::{Authority, Good};

const RULES: [&str; 2] = ["spiffe://td/istiod push,read istiod", "spiffe://td/ops/* read,admin"];
const LONG: Duration = Duration::from_secs(30);

struct Secured {
    running: Running,
    agents: Authority,
    clients: Authority,
    files: Files,
    directory: TempDir,
}

async fn secured(limits: Limits) -> Secured {
    let directory = TempDir::new().unwrap();
    let (agents, clients) = (Authority::new("agents"), Authority::new("clients"));
    let files = agents.issue(directory.path(), "agent", &["dns:localhost"], Good::Now, &[&clients]);
    let security = Security::Mutual(Certificates::read(files.clone()).unwrap());
    let running = start_with(limits, &RULES, Some(security)).await;
    Secured { running, agents, clients, files, directory }
}

impl Secured {
    fn client(&self, name: &str, names: &[&str]) -> Files {
        self.clients.issue(self.directory.path(), name, names, Good::Now, &[&self.agents])
    }

    async fn connect(&self, files: Files) -> Result<Client, ClientError> {
        let url = format!("https://localhost:{}", self.running.port);
        let client = Client::connect(Server::Tls { url, files }).await?;
        // A TLS 1.3 client believes that it is connected before its certificate was looked at.
        client.capabilities().await?;
        Ok(client)
    }
}

#[tokio::test]
async fn a_certificate_s_names_say_what_may_be_done() {
    let secured = secured(Limits::default()).await;
    let istiod = secured.connect(secured.client("istiod", &["spiffe://td/istiod"])).await.unwrap();
    let receipt = istiod.apply(&transaction("istiod"), Level::Durable, LONG).await.unwrap();
    assert_eq!(receipt.lsn.0, 1);
    let noted = secured.running.node.client.lock().unwrap().clone().unwrap();
    assert!(noted.starts_with("spiffe://td/istiod address=127.0.0.1:"), "{noted}");
    for refused in [
        istiod.apply(&transaction("cli"), Level::Durable, LONG).await.map(drop),
        istiod.create_checkpoint().await.map(drop),
    ] {
        assert!(matches!(refused, Err(ClientError::Denied { .. })), "{refused:?}");
    }

    let anna = secured.connect(secured.client("anna", &["dns:laptop", "spiffe://td/ops/anna"])).await.unwrap();
    anna.create_checkpoint().await.unwrap();
    let refused = anna.apply(&transaction("istiod"), Level::Durable, LONG).await;
    assert!(matches!(refused, Err(ClientError::Denied { .. })), "{refused:?}");

    let unknown = secured.connect(secured.client("unknown", &["spiffe://td/ops", "dns:istiod"])).await;
    let Err(ClientError::Denied { message }) = unknown else { panic!("{unknown:?}") };
    assert_eq!(message, "spiffe://td/ops is nobody that the agent's settings know");
}

#[tokio::test]
async fn wrong_certificates_are_refused_and_others_go_on() {
    let secured = secured(Limits::default()).await;
    let good = secured.connect(secured.client("good", &["spiffe://td/istiod"])).await.unwrap();
    let directory = secured.directory.path();
    let names = ["spiffe://td/istiod"];
    let foreign = Authority::new("clients");
    let wrong = [
        secured.clients.issue(directory, "expired", &names, Good::LongAgo, &[&secured.agents]),
        foreign.issue(directory, "foreign", &names, Good::Now, &[&secured.agents]),
        // The agent's own certificate is from an authority that no client's is from.
        Files { authorities: secured.files.certificate.clone(), ..secured.files.clone() },
        // This client trusts other agents.
        secured.clients.issue(directory, "wary", &names, Good::Now, &[&foreign]),
    ];
    let count = wrong.len();
    for files in wrong {
        let name = files.certificate.clone();
        let outcome = secured.connect(files).await;
        assert!(
            matches!(outcome, Err(ClientError::Unreachable { .. } | ClientError::Failed { .. })),
            "{name:?}: {outcome:?}"
        );
    }
    // Nothing at all, and no TLS at all.
    let url = format!("http://127.0.0.1:{}", secured.running.port);
    let plain =
        tokio::time::timeout(LONG, async { Client::connect(Server::Loopback { url }).await?.capabilities().await });
    assert!(plain.await.expect("it is told so in time").is_err());
    until("every refusal is counted", || secured.running.counts.refused("tls") >= count).await;
    good.apply(&transaction("istiod"), Level::Durable, LONG).await.unwrap();
}

#[tokio::test]
async fn a_client_without_a_certificate_gets_nowhere() {
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::{self, pki_types::CertificateDer};
    let secured = secured(Limits::default()).await;
    let mut roots = rustls::RootCertStore::empty();
    let trusts = secured.client("nobody", &[]).authorities;
    roots.add(CertificateDer::from_pem_file(trusts).unwrap()).unwrap();
    let provider = rustls::crypto::ring::default_provider().into();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", secured.running.port)).await.unwrap();
    let outcome = connector.connect("localhost".try_into().unwrap(), stream).await;
    if let Ok(mut stream) = outcome {
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1]).await;
        assert!(read.is_err(), "{read:?}");
    }
    until("it is counted", || secured.running.counts.refused("tls") == 1).await;
}

/// Connections over TCP that never shake hands end in time, and stand in nobody's way: neither those that go on nor, from
/// another address, new ones.
#[tokio::test]
async fn half_a_handshake_is_in_nobody_s_way() {
    let secured = secured(Limits::default()).await;
    let address: SocketAddr = ([127, 0, 0, 1], secured.running.port).into();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    until("more than an address may have are closed", || secured.running.counts.refused("handshakes") >= 8).await;
    until("the others in time", || secured.running.counts.refused("handshake_timeout") >= 32).await;
    secured.connect(secured.client("late", &["spiffe://td/istiod"])).await.unwrap();
}

#[tokio::test]
async fn new_certificates_are_used_and_bad_ones_are_not() {
    let secured = secured(Limits::default()).await;
    let counts = &secured.running.counts;
    let before = secured.connect(secured.client("before", &["spiffe://td/istiod"])).await.unwrap();

    // Half a rotation: a certificate, and the key of another.
    let good = fs::read(&secured.files.key).unwrap();
    let other = secured.client("other", &[]).key;
    fs::copy(other, &secured.files.key).unwrap();
    until("it is told", || counts.certificates() == [false]).await;
    secured.connect(secured.client("still", &["spiffe://td/istiod"])).await.expect("the old ones are in use");
    fs::write(&secured.files.key, good).unwrap();
    until("it is told", || counts.certificates() == [false, true]).await;

    // All of it anew: the agent has another authority, and so have its clients.
    let (agents, clients) = (Authority::new("agents 2"), Authority::new("clients 2"));
    agents.issue(secured.directory.path(), "agent", &["dns:localhost"], Good::Now, &[&clients]);
    until("it is told", || counts.certificates().last() == Some(&true) && counts.certificates().len() > 2).await;
    let old = secured.connect(secured.client("old", &["spiffe://td/istiod"])).await;
    assert!(old.is_err(), "{old:?}");
    let new = clients.issue(secured.directory.path(), "new", &["spiffe://td/istiod"], Good::Now, &[&agents]);
    secured.connect(new).await.unwrap();
    before.apply(&transaction("istiod"), Level::Durable, LONG).await.expect("what is open stays open");
}

#[tokio::test]
async fn without_tls_only_loopback_is_listened_on_and_anybody_there_may_do_everything() {
    let refused = Tcp::bind(([0, 0, 0, 0], 0).into(), Security::InsecureLoopback).unwrap_err();
    assert!(matches!(refused, TcpError::NotLoopback { .. }), "{refused}");
    let running = start_with(Limits::default(), &[], Some(Security::InsecureLoopback)).await;
    let url = format!("http://127.0.0.1:{}", running.port);
    let client = Client::connect(Server::Loopback { url }).await.unwrap();
    client.apply(&transaction("any"), Level::Durable, LONG).await.unwrap();
    client.create_checkpoint().await.unwrap();
    assert_eq!(client.capabilities().await.unwrap().caller.unwrap().name, "loopback");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new("any");
    let files = authority.issue(directory.path(), "agent", &["dns:a"], Good::Now, &[&authority]);
    let wrong = |change: &dyn Fn(&mut Files)| {
        let mut files = files.clone();
        change(&mut files);
        let error = Certificates::read(files).expect_err("it was used").to_string();
        error.replace(directory.path().to_str().unwrap(), "DIR")
    };
    let other = authority.issue(directory.path(), "other", &["dns:b"], Good::Now, &[&authority]);
    assert!(
        wrong(&|files| files.key = other.key.clone()).starts_with("the certificate DIR/agent.crt cannot be used: ")
    );
    assert!(wrong(&|files| files.key = "/nonexistent".into()).starts_with("cannot read /nonexistent: "));
    assert!(
        wrong(&|files| files.certificate = files.key.clone()).starts_with("DIR/agent.key has no certificate in PEM")
    );
    assert!(
        wrong(&|files| files.key = files.certificate.clone()).starts_with("DIR/agent.crt has no private key in PEM")
    );
    let empty = directory.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(
        wrong(&|files| files.authorities = Path::to_owned(&empty)).starts_with("DIR/empty has no certificate in PEM")
    );
}
