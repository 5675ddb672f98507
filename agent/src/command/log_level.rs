//! `holdfast log-level`: what the agent logs from now on.

use super::{block_on, connect};
use crate::cli::{Common, LogLevelArgs};
use crate::exit::Failure;
use crate::output;

pub(super) fn run(common: &Common, args: &LogLevelArgs) -> Result<(), Failure> {
    let filter = block_on(async { Ok(connect(common).await?.set_log_filter(args.filter.as_deref()).await?) })?;
    output::print(&format!("the agent logs `{}`, it logged `{}` before\n", filter.now, filter.before))
}
