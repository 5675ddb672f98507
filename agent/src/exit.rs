//! How a command ends: every failure has one message and one of these numbers, which scripts may rely on.

use std::process::ExitCode;
use std::{fmt, io};

use api::access::TcpError;
use api::access::tls::TlsError;
use api::client::ClientError;
use api::journal::JournalError;
use api::rejection::Rejection;
use api::socket::BindError;
use applier::StartError;
use journal::{ExportError, ImportError, OpenError, ReadError, SnapshotError};
use loader::LoadError;

use crate::config::ConfigError;
use crate::host::HostError;

/// The exit codes. The numbers are part of the command line's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Success = 0,
    /// Something failed that none of the others describes.
    Failure = 1,
    /// An argument, a setting or a manifest is wrong. Nothing was sent.
    Usage = 2,
    /// The agent refused the transaction. Nothing changed.
    Refused = 3,
    /// No agent answers at the socket.
    Unreachable = 4,
    /// A privilege, a mount or a kernel feature is missing.
    Unsupported = 5,
    /// The state directory is damaged, or is not this agent's.
    Damaged = 6,
    /// It did not happen in time; it may still happen.
    TimedOut = 7,
    /// There is no such resource or record.
    NotFound = 8,
    /// An agent is running where none may be.
    InUse = 9,
}

impl Exit {
    /// All codes, with what they mean: for `--help` and the documentation.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::Success, "it did what was asked"),
        (Self::Failure, "something else failed"),
        (Self::Usage, "an argument, a setting or a manifest is wrong; nothing was sent"),
        (Self::Refused, "the agent refused the transaction; nothing changed"),
        (Self::Unreachable, "no agent answers at the socket"),
        (Self::Unsupported, "a privilege, a mount or a kernel feature is missing"),
        (Self::Damaged, "the state directory is damaged, or is not this agent's"),
        (Self::TimedOut, "it did not happen in time; it may still happen"),
        (Self::NotFound, "there is no such resource or record"),
        (Self::InUse, "an agent is running where none may be"),
    ];

    /// The table of codes as `--help` shows it.
    pub fn table() -> String {
        let lines: Vec<String> =
            Self::ALL.iter().map(|(exit, meaning)| format!("  {}  {meaning}", *exit as u8)).collect();
        format!("Exit codes:\n{}", lines.join("\n"))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed: what a person reads, and the code a script reads.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// One message for each thing that is wrong, each one line.
    pub messages: Vec<String>,
}

impl Failure {
    /// A failure with one message.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, messages: vec![message.to_string()] }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::new(Exit::Unsupported, error)
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        let exit = match &error {
            BindError::InUse { .. } => Exit::InUse,
            BindError::NotASocket { .. } | BindError::TooLong { .. } => Exit::Usage,
            BindError::Io { source, .. } => exit_of_io(source),
        };
        Self::new(exit, error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<TcpError> for Failure {
    fn from(error: TcpError) -> Self {
        let exit = match &error {
            TcpError::NotLoopback { .. } => Exit::Usage,
            TcpError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => Exit::InUse,
            TcpError::Listen { source, .. } => exit_of_io(source),
        };
        Self::new(exit, error)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let exit = match &error {
            OpenError::InUse { .. } => Exit::InUse,
            OpenError::BadConfig { .. } => Exit::Usage,
            OpenError::Io { source, .. } => exit_of_io(source),
            _ => Exit::Damaged,
        };
        Self::new(exit, error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        let exit = match &error {
            ReadError::Compacted { .. } | ReadError::NotThere { .. } | ReadError::NoState { .. } => Exit::NotFound,
            ReadError::Damaged { .. } | ReadError::Undecodable { .. } => Exit::Damaged,
            ReadError::Io { source, .. } => exit_of_io(source),
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Read(error) => error.into(),
            error @ ExportError::Line { .. } => Self::new(Exit::Usage, error),
            error => Self::new(Exit::Failure, error),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Export(error) => error.into(),
            ImportError::Open(error) => error.into(),
            error @ (ImportError::Occupied { .. } | ImportError::Partial { .. }) => Self::new(Exit::Usage, error),
            error @ ImportError::Append(_) => Self::new(Exit::Failure, error),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Read(error) => error.into(),
            SnapshotError::Open(error) => error.into(),
            error @ SnapshotError::Occupied { .. } => Self::new(Exit::Usage, error),
            error @ SnapshotError::Damaged { .. } => Self::new(Exit::Damaged, error),
            error @ SnapshotError::Transfer(_) => Self::new(Exit::Failure, error),
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let exit = match &error {
            JournalError::OutOfRange(_) | JournalError::Compacted { .. } => Exit::NotFound,
            JournalError::Invalid(_) => Exit::Usage,
            JournalError::Damaged(_) => Exit::Damaged,
            JournalError::Busy(_) | JournalError::Failed(_) => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::new(exit_of_load(&error), one_line(&error))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::from(&error)
    }
}

impl From<&StartError> for Failure {
    fn from(error: &StartError) -> Self {
        let exit = match error {
            StartError::Load(error) => exit_of_load(error),
            StartError::Journal(ReadError::Io { .. } | ReadError::Closed)
            | StartError::Table(_)
            | StartError::Fill(_)
            | StartError::Thread(_)
            | StartError::Cancelled => Exit::Failure,
            StartError::Journal(_) => Exit::Damaged,
            StartError::TooSmall { .. } => Exit::Usage,
        };
        Self::new(exit, one_line(error))
    }
}

const fn exit_of_load(error: &LoadError) -> Exit {
    match error {
        LoadError::Io { .. } | LoadError::Pin { .. } => Exit::Failure,
        _ => Exit::Unsupported,
    }
}

fn exit_of_io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::Unsupported,
        _ => Exit::Failure,
    }
}

/// The verifier's log has many lines; its first ones say what is wrong.
fn one_line(error: &impl fmt::Display) -> String {
    const CHARS_MAX: usize = 500;
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        if let ClientError::Journal(error) = error {
            return error.into();
        }
        let exit = match &error {
            ClientError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                return Self::new(Exit::Unsupported, format!("{error}: run as the agent's user (usually root)"));
            }
            ClientError::Unreachable { .. } => {
                return Self::new(Exit::Unreachable, format!("{error}: is `holdfast agent` running there?"));
            }
            ClientError::Denied { .. } | ClientError::MissingFeature { .. } => Exit::Unsupported,
            ClientError::Unusable { .. } => Exit::Usage,
            ClientError::Rejected(Rejection::Refused { .. } | Rejection::Owned { .. } | Rejection::Unmet { .. })
            | ClientError::TooLarge { .. } => Exit::Refused,
            ClientError::TimedOut => Exit::TimedOut,
            ClientError::Rejected(_)
            | ClientError::Journal(_)
            | ClientError::Failed { .. }
            | ClientError::UnreadableAnswer { .. } => Exit::Failure,
        };
        Self::new(exit, error)
    }
}
