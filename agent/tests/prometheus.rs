//! The agent's metrics, read by Prometheus itself.
//!
//! Where `prometheus` and `promtool` are not installed (the package `prometheus`), the test is skipped; in CI it fails.

mod running;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use expect_test::expect_file;
use running::{Place, SERVICE};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// A port that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn http_get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// Ended when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Asks until there is an answer that will do.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// After a change run this with `UPDATE_EXPECT=1`.
#[test]
fn the_reference_page_is_up_to_date() {
    expect_file!["../../deploy/METRICS.md"].assert_eq(&agent::daemon::metrics_reference());
}

#[test]
fn prometheus_reads_what_the_agent_serves() {
    if !is_there("prometheus") || !is_there("promtool") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI nothing is skipped: install prometheus");
        eprintln!("skipped: prometheus and promtool are not installed (apt-get install prometheus)");
        return;
    }
    let (place, agent_at, prometheus_at) = (Place::new(), free_address(), free_address());
    let _agent = place.start_with(&["--metrics", &agent_at], &[]);
    place.run_with_stdin(&["apply", "-f", "-", "--wait", "applied"], SERVICE).succeeded();

    let text = until("a metric of the record", || {
        http_get(&agent_at, "/metrics").filter(|text| text.contains("holdfast_journal_records_total 1\n"))
    });
    assert!(text.contains("holdfast_journal_sync_duration_seconds_count 1\n"), "{text}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let checked = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "{complaints}");

    let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/METRICS.md")).unwrap();
    let unknown: Vec<&str> = served.filter(|name| !page.contains(&format!("| `{name}` |"))).collect();
    assert_eq!(unknown, [""; 0], "all that is served is in the reference page");

    let configuration = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: holdfast, static_configs: [{{targets: ['{agent_at}']}}]}}]\n"
    );
    let configuration = place.write("prometheus.yml", &configuration);
    let _prometheus = Server(
        Command::new("prometheus")
            .arg(format!("--config.file={configuration}"))
            .arg(format!("--storage.tsdb.path={}", place.path("tsdb").display()))
            .arg(format!("--web.listen-address={prometheus_at}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let value_of = |query: &str| {
        let body = http_get(&prometheus_at, &format!("/api/v1/query?query={query}"))?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    };
    assert_eq!(until("the scrape", || value_of("holdfast_applier_applied_lsn")), "1");
    assert_eq!(until("the type", || value_of("count(up==1)")), "1");
    assert_eq!(until("the histogram", || value_of("holdfast_journal_sync_duration_seconds_count")), "1");
}
