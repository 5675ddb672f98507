//! What the agent logs, which can be changed while it runs.

use std::io::{self, IsTerminal as _};
use std::sync::{Mutex, PoisonError};

use api::status::LogFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::{Error, Handle};

use crate::cli::LogFormat;
use crate::config::Config;

/// The log of this process.
pub(super) struct Logging {
    reload: Box<dyn Fn(EnvFilter) -> Result<(), Error> + Send + Sync>,
    /// What the settings say.
    configured: String,
    now: Mutex<String>,
}

impl Logging {
    /// Begins to log, as the settings say.
    pub(super) fn begin(config: &Config) -> Self {
        let filter = EnvFilter::new(&config.log_filter);
        let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        let reload = match config.log_format {
            LogFormat::Text => {
                let logging = logging.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
                let reload = changes(logging.reload_handle());
                logging.init();
                reload
            }
            LogFormat::Json => {
                let logging = logging.json().with_filter_reloading();
                let reload = changes(logging.reload_handle());
                logging.init();
                reload
            }
        };
        let configured = config.log_filter.clone();
        Self { reload, now: Mutex::new(configured.clone()), configured }
    }

    /// Logs what another filter lets through from now on; without one, what the settings say. `Err`: why that is no filter.
    pub(super) fn set(&self, filter: Option<String>) -> Result<LogFilter, String> {
        let filter = filter.unwrap_or_else(|| self.configured.clone());
        let parsed = EnvFilter::try_new(&filter).map_err(|error| format!("`{filter}` is not a log filter: {error}"))?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        (self.reload)(parsed).map_err(|error| error.to_string())?;
        let before = std::mem::replace(&mut *now, filter);
        // Told whatever the filter says, so that a log that becomes silent says why.
        eprintln!("holdfast: the log's filter is `{now}`, it was `{before}`", now = *now);
        Ok(LogFilter { now: now.clone(), before })
    }
}

fn changes<S: 'static>(handle: Handle<EnvFilter, S>) -> Box<dyn Fn(EnvFilter) -> Result<(), Error> + Send + Sync> {
    Box::new(move |filter| handle.reload(filter))
}
