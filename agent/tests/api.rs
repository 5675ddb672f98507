//! The API of a real agent from outside: over TCP with certificates, for a group at the socket, and in the metrics.

#[path = "../../api/tests/guarded/pki.rs"]
mod pki;
mod running;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use api::access::tls::Files;

use self::pki::{Authority, Good};
use self::running::{Place, SERVICE};

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// What a client adds to a command to reach an agent over TCP.
fn remote<'a>(server: &'a str, files: &'a Files) -> Vec<(&'a str, &'a str)> {
    vec![
        ("HOLDFAST_SERVER", server),
        ("HOLDFAST_TLS_CA", path(&files.authorities)),
        ("HOLDFAST_TLS_CERT", path(&files.certificate)),
        ("HOLDFAST_TLS_KEY", path(&files.key)),
    ]
}

fn run(place: &Place, environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let output = place.command(environment).env_remove("HOLDFAST_SOCKET").args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

#[test]
fn an_agent_is_used_over_tcp_by_those_whom_its_settings_know() {
    let place = Place::new();
    let directory = place.path("tls");
    fs::create_dir(&directory).unwrap();
    let (agents, clients) = (Authority::new("agents"), Authority::new("clients"));
    let own = agents.issue(&directory, "agent", &["dns:localhost"], Good::Now, &[&clients]);
    let operator = clients.issue(&directory, "operator", &["spiffe://td/ops/anna"], Good::Now, &[&agents]);
    let reader = clients.issue(&directory, "reader", &["dns:reader.example.org"], Good::Now, &[&agents]);
    let foreign = agents.issue(&directory, "foreign", &["spiffe://td/ops/anna"], Good::Now, &[&agents]);
    let port = free_port();
    let settings = format!(
        "[api]\nlisten = \"127.0.0.1:{port}\"\ntls_cert = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}\n\
         clients = [\"spiffe://td/ops/* push,read cli\", \"dns:reader.example.org read\"]\n",
        own.certificate, own.key, own.authorities
    );
    let settings = place.write("agent.toml", &settings);
    let _agent = place.start_with(&["--config", &settings], &[]);
    let manifest = place.write("service.yaml", SERVICE);
    let server = format!("https://localhost:{port}");

    let operator = remote(&server, &operator);
    assert_eq!(run(&place, &operator, &["apply", "-f", &manifest]), (0, "LSN 1: 1 service, durable\n".to_owned()));
    let log = run(&place, &operator, &["journal", "show", "1"]);
    assert!(log.1.contains("spiffe://td/ops/anna address=127.0.0.1:"), "{log:?}");
    let (code, text) = run(&place, &operator, &["apply", "-f", &manifest, "--source", "istiod"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("spiffe://td/ops/anna may not push as the source `istiod`"), "{text}");

    let reader = remote(&server, &reader);
    let (code, text) = run(&place, &reader, &["get", "services"]);
    assert!(code == 0 && text.contains("shop/cart"), "{text}");
    let (code, text) = run(&place, &reader, &["journal", "checkpoint"]);
    assert!(code == 5 && text.contains("dns:reader.example.org has not the role admin"), "{code} {text}");

    let (code, text) = run(&place, &remote(&server, &foreign), &["status"]);
    assert_eq!(code, 4, "{text}");
    let (code, text) = run(&place, &[("HOLDFAST_SERVER", &server)], &["status"]);
    assert!(code == 2 && text.contains("needs all of --tls-ca, --tls-cert and --tls-key"), "{text}");
}

#[test]
fn an_agent_does_not_start_with_certificates_that_it_cannot_use() {
    let place = Place::new();
    let port = free_port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let missing = place.run_agent(
        &[
            "--api-listen",
            &listen,
            "--api-tls-cert",
            "/none.crt",
            "--api-tls-key",
            "/none.key",
            "--api-tls-client-ca",
            "/none.ca",
        ],
        &[],
    );
    assert_eq!(
        (missing.code, missing.stderr.as_str()),
        (2, "holdfast: cannot read /none.crt: No such file or directory (os error 2)\n")
    );
    let plain = place.run_agent(&["--api-listen", "0.0.0.0:0", "--insecure-loopback"], &[]);
    assert!(plain.code == 2 && plain.stderr.contains("not a loopback address"), "{plain:?}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let in_use = place.run_agent(&["--api-listen", &address, "--insecure-loopback"], &[]);
    assert_eq!(in_use.code, 9, "{in_use:?}");
}

#[test]
fn the_socket_is_a_group_s_if_it_is_given_to_one() {
    let place = Place::new();
    let gid = if rustix::process::geteuid().is_root() { 54_322 } else { rustix::process::getegid().as_raw() };
    let _agent = place.start_with(&["--api-socket-group", &gid.to_string()], &[]);
    let metadata = fs::metadata(place.socket()).unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.gid()), (0o660, gid));
}

#[test]
fn calls_are_in_the_metrics_by_method_and_code() {
    let place = Place::new();
    let (port, api) = (free_port(), free_port());
    let (metrics, listen) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{api}"));
    let _agent = place.start_with(&["--metrics", &metrics, "--api-listen", &listen, "--insecure-loopback"], &[]);
    let manifest = place.write("service.yaml", SERVICE);
    let server = format!("http://{listen}");
    assert_eq!(run(&place, &[("HOLDFAST_SERVER", &server)], &["apply", "-f", &manifest]).0, 0);
    place.run(&["apply", "-f", &manifest, "--source", &"x".repeat(2000)]);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let value = |line: &str| {
        let found = page.lines().find_map(|found| found.strip_prefix(line));
        found.unwrap_or_else(|| panic!("no {line} in\n{page}")).trim().parse::<f64>().unwrap()
    };
    let method = "method=\"holdfast.v1.PushService/Apply\"";
    assert!(value(&format!("holdfast_api_requests_total{{{method},code=\"OK\"}}")) >= 1.0);
    assert!(value(&format!("holdfast_api_requests_total{{{method},code=\"INVALID_ARGUMENT\"}}")) >= 1.0);
    assert!(value(&format!("holdfast_api_request_duration_seconds_bucket{{{method},le=\"+Inf\"}}")) >= 2.0);
}
