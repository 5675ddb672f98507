//! What a control plane in Rust does, once through: hello, transactions, a refusal, a sync, a watch.
//!
//! ```console
//! $ cargo run --package api --example push -- /run/holdfast/holdfast.sock
//! ```
//!
//! It pushes as the source "example" and removes at its end what it has pushed. `api/examples/python/pusher.py` shows how a
//! source goes on after the agent was away: in Rust that is the same [`Outbox`], `hello` for `hello` and `resume` for `resume`.

use std::error::Error;
use std::pin::pin;

use api::client::{Client, ClientError};
use api::push::outbox::Outbox;
use api::push::{Answer, Hello};
use api::watch::{StateStep, StateWatch};
use api::{Level, Stored};
use storage_schema::record::Delta;
use storage_schema::resource::{Backing, Protocol, Resource, Service, ServicePort, Workload};
use tokio_stream::{Stream, StreamExt as _};

const SOURCE: &str = "example";

fn service(name: &str, vip: &str) -> Result<Resource, Box<dyn Error>> {
    let port =
        ServicePort { name: "http".to_owned(), port: 80, target_port: 8080, protocol: Protocol::Tcp, node_port: 0 };
    let (name, vips) = (name.to_owned(), vec![vip.parse()?]);
    Ok(Resource::Service(Service { name, vips, ports: vec![port], ..Service::default() }))
}

fn workload(uid: &str, address: &str, service: &str) -> Result<Resource, Box<dyn Error>> {
    let services = vec![Backing { service: service.to_owned(), ports: Vec::new() }];
    let (uid, addresses) = (uid.to_owned(), vec![address.parse()?]);
    Ok(Resource::Workload(Workload { uid, addresses, services, ..Workload::default() }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args_os().nth(1).ok_or("usage: push SOCKET")?;
    let client = Client::connect(std::path::PathBuf::from(socket)).await?;

    // The outbox remembers what is not answered: it makes the hello of each stream, and says what to send again.
    let mut outbox = Outbox::new(Hello::new(SOURCE, 1));
    let mut stream = client.push(&outbox.hello()).await?;
    for again in outbox.resume(stream.welcome()).again {
        stream.send(again.version, &again.deltas, None).await?;
    }

    // Both are under way before the first answer, and share an fsync.
    let cart = service("shop/cart", "10.96.0.1")?;
    for resource in [cart.clone(), workload("cart-1", "127.1.1.1", "shop/cart")?] {
        let next = outbox.add(vec![Delta::Upsert(resource)]);
        stream.send(next.version, &next.deltas, Some(Level::Applied)).await?;
    }
    // What contradicts the state is refused as a whole, and the stream goes on.
    let next = outbox.add(vec![Delta::Upsert(workload("lost", "127.1.1.2", "shop/none")?)]);
    stream.send(next.version, &next.deltas, None).await?;
    while !outbox.is_empty() {
        let answer = stream.next().await?.ok_or("the stream has ended")?;
        outbox.answered(&answer);
        tell(&answer);
    }

    let watch = StateWatch { owner: Some(SOURCE.to_owned()), ..StateWatch::default() };
    let mut steps = pin!(client.watch_state(&watch).await?);
    println!("watch: {}", until_complete(&mut steps).await?.join(", "));

    // All that there is from now on; what is not named goes, in the same transaction.
    let version = outbox.next_version();
    stream.sync(version, &[cart, service("shop/web", "10.96.0.2")?], None).await?;
    tell(&stream.next().await?.ok_or("the stream has ended")?);
    println!("watch: {}", next_change(&mut steps).await?);

    stream.sync(version + 1, &[], None).await?;
    tell(&stream.next().await?.ok_or("the stream has ended")?);
    Ok(())
}

fn tell(answer: &Answer) {
    let outcome = match answer {
        Answer::Acked { receipt, .. } => format!("{:?}, {} removed", receipt.level, receipt.removed),
        Answer::Nacked { rejection, .. } => format!("refused, {rejection}"),
        Answer::Planned { plan, .. } => format!("would create {}", plan.created),
    };
    println!("version {}: {outcome}", answer.version());
}

async fn until_complete(
    steps: &mut (impl Stream<Item = Result<StateStep, ClientError>> + Unpin),
) -> Result<Vec<String>, ClientError> {
    let mut names = Vec::new();
    while let Some(step) = steps.next().await {
        match step? {
            StateStep::Initial(page) => names.extend(page.iter().map(name)),
            StateStep::Complete(_) => break,
            StateStep::Changes(_) | StateStep::Progress(_) => {}
        }
    }
    names.sort();
    Ok(names)
}

async fn next_change(
    steps: &mut (impl Stream<Item = Result<StateStep, ClientError>> + Unpin),
) -> Result<String, ClientError> {
    while let Some(step) = steps.next().await {
        if let StateStep::Changes(changes) = step? {
            let changed: Vec<String> = changes.changed.iter().map(name).collect();
            let removed: Vec<&str> = changes.removed.iter().map(|key| key.name.as_str()).collect();
            return Ok(format!("{} as they are, {} gone", changed.join(", "), removed.join(", ")));
        }
    }
    Ok("it has ended".to_owned())
}

fn name(stored: &Stored) -> String {
    stored.resource.name().to_owned()
}
