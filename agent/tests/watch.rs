//! Watches over the real socket, with the real agent and its command line.

mod running;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use api::client::{Client, ClientError};
use api::journal::{JournalError, Position};
use api::push::Hello;
use api::replay::StateQuery;
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use api::{Level, proto};
use running::{Place, SERVICE, WORKLOAD};
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Kind, Resource, ResourceKey, Service};
use tokio_stream::{Stream, StreamExt as _};

const SOON: Duration = Duration::from_secs(20);

async fn client(place: &Place) -> Client {
    Client::connect(place.socket()).await.unwrap()
}

fn service(name: &str) -> Delta {
    Delta::Upsert(Resource::Service(Service { name: name.to_owned(), ..Service::default() }))
}

fn removal(name: &str) -> Delta {
    Delta::Remove(ResourceKey::new(Kind::Service, name))
}

async fn push(client: &Client, source: &str, take_over: bool, deltas: Vec<Delta>) -> Lsn {
    let origin = Origin { source: source.to_owned(), incarnation: 0, version: None };
    let transaction = Transaction { take_over, ..Transaction::push(origin, deltas) };
    client.apply(&transaction, Level::Durable, SOON).await.unwrap().lsn
}

/// The next step, in time.
async fn next<T>(steps: &mut (impl Stream<Item = Result<T, ClientError>> + Unpin)) -> T {
    tokio::time::timeout(SOON, steps.next()).await.expect("it comes in time").expect("there is more").unwrap()
}

/// What a client has that takes each step in.
#[derive(Default)]
struct Mirror {
    resources: BTreeMap<String, (u64, String)>,
    complete: bool,
    lsn: u64,
}

impl Mirror {
    fn take(&mut self, step: StateStep) {
        let changed = match step {
            StateStep::Initial(resources) => {
                assert!(!self.complete, "what is initial comes before the mark");
                resources
            }
            StateStep::Changes(changes) => {
                assert!(changes.lsn.0 > self.lsn, "records come in order, each once");
                self.lsn = changes.lsn.0;
                for key in changes.removed {
                    self.resources.remove(&key.to_string());
                }
                changes.changed
            }
            StateStep::Complete(lsn) => {
                assert!(!std::mem::replace(&mut self.complete, true), "there is one mark");
                return self.lsn = lsn.0;
            }
            StateStep::Progress(lsn) => return self.lsn = self.lsn.max(lsn.0),
        };
        for stored in changed {
            let name = stored.resource.key().to_string();
            self.resources.insert(name, (stored.changed_lsn.0, stored.owner));
        }
    }

    fn names(&self) -> Vec<&str> {
        self.resources.keys().map(|key| key.split(' ').next_back().unwrap()).collect()
    }

    async fn follow(&mut self, steps: &mut (impl Stream<Item = Result<StateStep, ClientError>> + Unpin), lsn: Lsn) {
        while !self.complete || self.lsn < lsn.0 {
            self.take(next(steps).await);
        }
    }
}

#[tokio::test]
async fn records_are_told_as_they_come_with_marks_where_none_are() {
    let place = Place::new();
    let _agent = place.start();
    let client = client(&place).await;
    push(&client, "a", false, vec![service("shop/a")]).await;
    push(&client, "b", false, vec![service("shop/b")]).await;
    let watch = |from_lsn: Option<u64>, source: Option<&str>| RecordsWatch {
        from_lsn: from_lsn.map(Lsn),
        source: source.map(str::to_owned),
        ..RecordsWatch::default()
    };
    let mut all = Box::pin(client.watch_records(&watch(Some(1), None)).await.unwrap());
    let mut of_b = Box::pin(client.watch_records(&watch(None, Some("b"))).await.unwrap());
    let mut lsns = Vec::new();
    while lsns.len() < 2 {
        if let RecordsStep::Records(records) = next(&mut all).await {
            lsns.extend(records.iter().map(|record| record.lsn.0));
        }
    }
    assert_eq!(lsns, [1, 2]);
    assert_eq!(next(&mut all).await, RecordsStep::Progress(Lsn(2)), "that is all there is");
    assert_eq!(next(&mut of_b).await, RecordsStep::Progress(Lsn(2)), "from now on");
    push(&client, "a", false, vec![service("shop/c")]).await;
    let RecordsStep::Records(records) = next(&mut all).await else { panic!("a record") };
    assert_eq!(records[0].decode().unwrap().transaction.deltas, [service("shop/c")]);
    assert_eq!(next(&mut of_b).await, RecordsStep::Progress(Lsn(3)), "it was not asked for");
    push(&client, "b", false, vec![service("shop/d")]).await;
    let RecordsStep::Records(records) = next(&mut of_b).await else { panic!("a record") };
    assert_eq!(records.iter().map(|record| record.lsn.0).collect::<Vec<_>>(), [4]);
    let Err(ClientError::Journal(JournalError::OutOfRange(message))) =
        client.watch_records(&watch(Some(9), None)).await.map(drop)
    else {
        panic!("it is not there");
    };
    assert!(message.contains("the last durable one is 4"), "{message}");
}

#[tokio::test]
async fn the_state_is_told_then_marked_then_kept_up_with() {
    let place = Place::new();
    let mut agent = place.start();
    let client = client(&place).await;
    let mut steps = Box::pin(client.watch_state(&StateWatch::default()).await.unwrap());
    assert_eq!(next(&mut steps).await, StateStep::Complete(Lsn(0)), "an empty state is complete at once");
    push(&client, "a", false, vec![service("shop/a"), service("shop/b"), removal("shop/a"), service("shop/a")]).await;
    push(&client, "b", false, vec![service("pay/x")]).await;
    let mut whole = Mirror { complete: true, ..Mirror::default() };
    whole.follow(&mut steps, Lsn(2)).await;
    assert_eq!(whole.names(), ["pay/x", "shop/a", "shop/b"]);
    let watch = StateWatch {
        kind: Some(Kind::Service),
        name_prefix: "shop/".to_owned(),
        owner: Some("a".to_owned()),
        after_lsn: None,
    };
    let (mut steps_of_a, mut of_a) = (Box::pin(client.watch_state(&watch).await.unwrap()), Mirror::default());
    of_a.follow(&mut steps_of_a, Lsn(2)).await;
    assert_eq!((of_a.names(), of_a.lsn), (vec!["shop/a", "shop/b"], 2));
    push(&client, "b", true, vec![service("shop/a")]).await;
    push(&client, "a", false, vec![removal("shop/b"), service("shop/c")]).await;
    of_a.follow(&mut steps_of_a, Lsn(4)).await;
    assert_eq!(of_a.names(), ["shop/c"], "what was taken over is no longer there");
    whole.follow(&mut steps, Lsn(4)).await;
    assert_eq!(whole.resources["Service shop/a"], (3, "b".to_owned()));
    assert_eq!(whole.names(), ["pay/x", "shop/a", "shop/c"]);
    // After a restart it goes on where it was.
    agent.kill();
    let _agent = place.start();
    let client = Client::connect(place.socket()).await.unwrap();
    push(&client, "b", false, vec![removal("pay/x")]).await;
    let after = StateWatch { after_lsn: Some(Lsn(4)), ..StateWatch::default() };
    let mut steps = Box::pin(client.watch_state(&after).await.unwrap());
    whole.complete = false;
    whole.follow(&mut steps, Lsn(5)).await;
    assert_eq!(whole.names(), ["shop/a", "shop/c"]);
}

#[tokio::test]
async fn the_mark_stands_where_the_state_is_exact_though_pushes_go_on() {
    let place = Place::new();
    let _agent = place.start();
    let client = client(&place).await;
    let many = (0..2000).map(|number| service(&format!("shop/{number:04}"))).collect();
    push(&client, "cp", false, many).await;
    let pushing = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut stream = client.push(&Hello::new("cp", 1)).await.unwrap();
            for version in 1..=400_u64 {
                let number = version * 37 % 2000;
                let name = format!("shop/{number:04}");
                let delta = if version % 3 == 0 { removal(&name) } else { service(&name) };
                stream.send(version, &[delta], None).await.unwrap();
                stream.next().await.unwrap().unwrap();
            }
        })
    };
    for _ in 0..5 {
        let mut steps = Box::pin(client.watch_state(&StateWatch::default()).await.unwrap());
        let mut mirror = Mirror::default();
        while !mirror.complete {
            mirror.take(next(&mut steps).await);
        }
        let at = StateQuery { at: Some(Position::Lsn(Lsn(mirror.lsn))), ..StateQuery::default() };
        let expected: BTreeMap<String, (u64, String)> = client
            .state(&at)
            .await
            .unwrap()
            .value
            .into_iter()
            .map(|stored| (stored.resource.key().to_string(), (stored.changed_lsn.0, stored.owner)))
            .collect();
        assert_eq!(mirror.resources, expected, "at LSN {}", mirror.lsn);
    }
    pushing.await.unwrap();
}

#[tokio::test]
async fn who_is_overtaken_by_retention_is_told_the_oldest_record() {
    let place = Place::new();
    let _agent = place.start_with(&["--journal-segment-bytes", "65536"], &[]);
    let client = client(&place).await;
    let large = |number: u32| {
        let hostname = "x".repeat(500);
        let service = Service { name: format!("shop/{number}"), hostname, ..Service::default() };
        Delta::Upsert(Resource::Service(service))
    };
    push(&client, "cp", false, vec![service("shop/a")]).await;
    // It asks, and then it does not read.
    let from_one = RecordsWatch { from_lsn: Some(Lsn(1)), ..RecordsWatch::default() };
    let slow = Client::connect(place.socket()).await.unwrap().watch_records(&from_one).await.unwrap();
    for number in 0..200 {
        push(&client, "cp", false, (0..55).map(large).collect()).await;
        if number == 150 {
            // What lies before it can go without taking away the states behind it.
            client.create_checkpoint().await.unwrap();
        }
    }
    client.compact_journal(proto::CompactJournalRequest { keep_records: Some(1), ..Default::default() }).await.unwrap();
    let oldest_lsn = Lsn(client.journal_stats().await.unwrap().oldest_lsn);
    assert!(oldest_lsn > Lsn(50), "{oldest_lsn}");
    let mut slow = Box::pin(slow);
    let (mut told, mut end) = (0, None);
    while let Ok(Some(step)) = tokio::time::timeout(Duration::from_secs(2), slow.next()).await {
        match step {
            Ok(RecordsStep::Records(records)) => told += records.len(),
            Ok(RecordsStep::Progress(_)) => {}
            Err(error) => end = Some(error),
        }
    }
    // It was told everything that it had asked for in time, and no more was kept for it.
    match end {
        Some(ClientError::Journal(JournalError::Compacted { wanted_lsn, oldest_lsn: oldest })) => {
            assert_eq!((wanted_lsn.0, oldest), (told as u64 + 1, oldest_lsn));
        }
        Some(error) => panic!("{error}"),
        None => assert_eq!(told, 201),
    }
    let Err(ClientError::Journal(error)) = client.watch_records(&from_one).await.map(drop) else { panic!("gone") };
    assert_eq!(error, JournalError::Compacted { wanted_lsn: Lsn(1), oldest_lsn });
    let after_one = StateWatch { after_lsn: Some(Lsn(1)), ..StateWatch::default() };
    let Err(ClientError::Journal(error)) = client.watch_state(&after_one).await.map(drop) else { panic!("gone") };
    assert_eq!(error, JournalError::Compacted { wanted_lsn: Lsn(2), oldest_lsn });
    let mut anew = Box::pin(client.watch_state(&StateWatch::default()).await.unwrap());
    let mut mirror = Mirror::default();
    mirror.follow(&mut anew, Lsn(201)).await;
    assert_eq!(mirror.resources.len(), 56);
}

#[test]
fn the_command_line_watches_until_the_agent_stops() {
    let place = Place::new();
    let mut agent = place.start();
    place.run_with_stdin(&["apply", "-f", "-"], SERVICE).succeeded();
    let watch = |arguments: &[&str]| {
        let mut command = place.command(&[]);
        command.arg("watch").args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut records = watch(&["records", "--from", "1", "--kind", "workload", "-o", "json"]);
    let mut state = watch(&["state"]);
    let (mut told, mut told_of_records) = (lines(&mut state), lines(&mut records));
    // The state is there as soon as its mark is.
    assert_eq!(told.next().unwrap(), format!("        1  {:<16}  =Service shop/cart", "cli"));
    assert_eq!(told.next().unwrap(), "        1  that was the state");
    place.run_with_stdin(&["apply", "-f", "-"], WORKLOAD).succeeded();
    assert_eq!(told.next().unwrap(), format!("        2  {:<16}  +Workload cart-1", "cli"));
    place.run(&["delete", "workload", "cart-1"]).succeeded();
    assert_eq!(told.next().unwrap(), format!("        3  {:<16}  -Workload cart-1", ""));
    let (mut lsns, mut marks) = (Vec::new(), 0);
    while lsns.len() < 2 || marks == 0 {
        let line: serde_json::Value = serde_json::from_str(&told_of_records.next().unwrap()).unwrap();
        lsns.extend(line["lsn"].as_u64());
        marks += u32::from(line["progressLsn"].is_u64());
    }
    assert_eq!(lsns, [2, 3]);
    assert_eq!(agent.terminate(), 0);
    for watch in [records, state] {
        let ended = watch.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains("the agent is stopping"), "{said}");
    }
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap)
}
