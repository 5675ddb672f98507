//! What a source has pushed, held against the journal: each version is there once, in order, and no ack was a lie.

use api::client::Client;
use api::journal::RecordsQuery;
use storage_schema::record::Delta;
use tokio_stream::StreamExt as _;

/// Checks that the journal holds versions 1 to `last` of `source` with `deltas` in them, each once and in order, and nothing else;
/// and that each of `acked`, a version and the LSN of its ack, is that record.
///
/// # Panics
/// If that is not so.
pub async fn check(client: &Client, source: &str, last: u64, acked: &[(u64, u64)], deltas: impl Fn(u64) -> Vec<Delta>) {
    // It goes on from what is there: the last ones may be durable and not yet shown.
    let query = RecordsQuery { follow: true, ..RecordsQuery::default() };
    let mut batches = Box::pin(client.records(&query).await.expect("the journal can be read"));
    let mut expected = 1;
    let mut lsns = Vec::new();
    while expected <= last {
        let batch = batches.next().await.expect("it follows").expect("it is readable");
        for record in batch {
            let transaction = record.decode().expect("it is readable").transaction;
            assert_eq!(transaction.origin.source, source, "record {}", record.lsn);
            assert_eq!(transaction.origin.version, Some(expected), "record {}", record.lsn);
            assert_eq!(transaction.deltas, deltas(expected));
            lsns.push(record.lsn.0);
            expected += 1;
        }
    }
    let durable_lsn = client.status().await.expect("it answers").durable_lsn;
    assert_eq!(lsns.len() as u64, durable_lsn.0, "there is nothing else");
    for (version, lsn) in acked {
        assert_eq!(lsns[usize::try_from(*version).expect("it is small") - 1], *lsn, "the ack of version {version}");
    }
}
