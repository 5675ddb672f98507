//! `holdfast delete`: removals as one transaction.

use api::client::ClientError;
use api::rejection::Rejection;
use storage_schema::record::Delta;
use storage_schema::resource::ResourceKey;

use super::{block_on, connect, push};
use crate::cli::{Common, DeleteArgs};
use crate::exit::{Exit, Failure};

pub(super) fn run(common: &Common, args: &DeleteArgs) -> Result<(), Failure> {
    push::check_timeout(&args.waiting)?;
    let keys: Vec<ResourceKey> = args.names.iter().map(|name| ResourceKey::new(args.kind, name)).collect();
    block_on(async {
        let client = connect(common).await?;
        if !args.ignore_missing {
            // The agent removes what is not there without a word; a person has more likely misspelt it.
            for key in &keys {
                if client.get(key).await?.is_none() {
                    return Err(Failure::new(Exit::NotFound, format!("{key} does not exist: nothing was removed")));
                }
            }
        }
        let transaction = push::transaction(&args.source, keys.into_iter().map(Delta::Remove).collect());
        match push::push_or_plan(&client, &transaction, &args.expect, &args.waiting, args.dry_run).await {
            Ok(outcome) => push::report_outcome(&outcome, &transaction, &args.waiting),
            Err(ClientError::Rejected(Rejection::Refused { violations, .. } | Rejection::Owned { violations, .. })) => {
                let messages = violations.iter().map(push::describe).chain(push::unsaid(&violations)).collect();
                Err(Failure { exit: Exit::Refused, messages })
            }
            Err(error) => Err(error.into()),
        }
    })
}
