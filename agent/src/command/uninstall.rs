//! `holdfast uninstall`: takes Holdfast out of the kernel, and its journal off the disk if that is wanted too.

use journal::Journal;

use super::confirm;
use crate::cli::{Common, Datapath, UninstallArgs};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) fn run(common: &Common, args: &UninstallArgs) -> Result<(), Failure> {
    let config = Config::for_places(common, &args.places)?;
    if api::socket::is_listening(&config.socket).unwrap_or(false) {
        let message = format!("an agent is running on {}: stop it first", config.socket.display());
        return Err(Failure::new(Exit::InUse, message));
    }
    let pins = config.datapath == Datapath::Kernel && config.pin_root.exists();
    let state = args.state && config.state_dir.exists();
    if !pins && !state {
        api::socket::clean_up(&config.socket)?;
        return output::print("there is nothing to remove\n");
    }
    let mut plan = Vec::new();
    if pins {
        plan.push(format!(
            "detach the programs and remove {}: connections stay, new ones are no longer balanced",
            config.pin_root.display()
        ));
    }
    if state {
        plan.push(format!("remove {}: the journal and everything that was pushed", config.state_dir.display()));
    }
    if !args.yes && !confirm(&plan)? {
        return output::print("nothing was removed\n");
    }
    if pins {
        loader::uninstall(&config.pin_root)?;
        output::print(&format!("removed {}\n", config.pin_root.display()))?;
    }
    if state {
        Journal::remove(&config.state_dir)?;
        output::print(&format!("removed {}\n", config.state_dir.display()))?;
    }
    Ok(api::socket::clean_up(&config.socket)?)
}
